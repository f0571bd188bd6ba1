"""Hugging Face's Trainer: a teacher behind its lens gives the targets."""

import tempfile

import torch
import torch.nn.functional as F
from tiny import CLASSES, MEAN, STD, dataset, lens
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import djip_ext

TEMPERATURE = 1.0  # where a lens can help: results/when_it_helps.md


class Distillation(Trainer):
    """Cross entropy and the divergence from the teacher's softened answers."""

    def __init__(self, *args, teacher: nn.Module, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device)  # not a part of the model: it is not saved

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(**inputs)
        with torch.no_grad():
            target = self.teacher(pixel_values=inputs["pixel_values"]).logits / TEMPERATURE
        kd = F.kl_div(
            F.log_softmax(outputs.logits / TEMPERATURE, 1),
            F.softmax(target, 1),
            reduction="batchmean",
        )
        loss = outputs.loss + TEMPERATURE**2 * kd
        return (loss, outputs) if return_outputs else loss


def network(width: int) -> nn.Module:
    """Yours: ``AutoModelForImageClassification.from_pretrained(NAME)``."""
    config = ResNetConfig(
        embedding_size=width, hidden_sizes=[width], depths=[1], layer_type="basic",
        num_labels=CLASSES,
    )  # fmt: skip
    return ResNetForImageClassification(config)


def collate(batch: list) -> dict[str, Tensor]:
    images, labels = zip(*batch, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


torch.manual_seed(0)
teacher = djip_ext.DJIPTeacher(network(16), lens(), MEAN, STD)
with tempfile.TemporaryDirectory() as folder:
    how = TrainingArguments(folder, max_steps=3, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Distillation(
        network(8), how, train_dataset=dataset(), data_collator=collate, teacher=teacher
    )
    print(f"lens {teacher.djip_id}, loss {trainer.train().training_loss:.3f}")
