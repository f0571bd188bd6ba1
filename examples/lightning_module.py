"""PyTorch Lightning: a teacher behind its lens as a submodule of the LightningModule."""

import lightning
import torch
import torch.nn.functional as F
from tiny import MEAN, STD, dataset, lens, network
from torch import Tensor, nn
from torch.utils.data import DataLoader

import djip_ext

TEMPERATURE = 1.0  # where a lens can help: results/when_it_helps.md


class Distillation(lightning.LightningModule):
    """A student and its frozen teacher.

    Checkpoints hold the teacher with the fingerprint of its lens: resuming with another lens, or
    without one, is an error.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = djip_ext.DJIPTeacher(teacher, lens(), MEAN, STD)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        image, label = batch
        logits = self.student(image)
        with torch.no_grad():
            target = F.softmax(self.teacher(image) / TEMPERATURE, dim=1)
        kd = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), target, reduction="batchmean")
        loss = F.cross_entropy(logits, label) + TEMPERATURE**2 * kd
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9)


torch.manual_seed(0)
model = Distillation(network(8), network(16))
trainer = lightning.Trainer(
    max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)  # fmt: skip
trainer.fit(model, DataLoader(dataset(), batch_size=16, shuffle=True))
print(f"lens {model.teacher.djip_id}, loss {trainer.callback_metrics['loss']:.3f}")
