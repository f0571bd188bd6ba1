r"""JPEG-DL (ICLR 2025, arXiv 2410.07081): network and quantization tables, trained together.

    min over theta and q of  CE(g_theta(J_d(x, q)), y),

J_d the soft codec of :class:`~djip_ext.lens.jpeg_lens.JPEGLens` as the published code computes it
(five bins, L = 127).  On CIFAR the steps q start inverse to the loss's sensitivity and learn by
Adam at 3e-3 with alpha = 5; the network learns as SOLVER says.  The sensitivity is that of the
network that the run starts from, over one pass of the training images, and the step starts are
scaled to a largest of 10: both are reconstructed.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Training, cross_entropy
from djip_ext.lens.initial_tables import sensitivity
from djip_ext.lens.io import save_lens, weight_hash
from djip_ext.lens.jpeg_lens import Q_MAX, Q_MIN, JPEGLens
from djip_ext.lens.normalisation import NORMALISATIONS, Normalisation

DEFAULTS = {
    "LR": 0.003,  # of Adam, for the steps
    "ALPHA": 5.0,  # sharpness of the soft quantizer
}
LENS_FILE = "lens.safetensors"


class BehindLens(nn.Module):
    """A network whose normalised images pass a lens first, with gradients to both."""

    def __init__(self, network: nn.Module, lens: JPEGLens, normalisation: Normalisation) -> None:
        super().__init__()
        self.network = network
        self.lens = lens
        self.normalisation = normalisation

    def forward(self, image: Tensor) -> Any:
        return self.network(self.normalisation.through(self.lens, image))


class JPEGDL(Training):
    """A network and the tables of the lens before it, trained on labels; it needs no teacher.

    ``student_last.pth`` and ``student_best.pth`` hold the network alone and ``lens.safetensors``
    the last tables: the first and the last together serve as a teacher behind its own lens.  The
    Adam of the tables is part of the state, so that a resumed run goes on with it.
    """

    def __init__(self, student: nn.Module, cfg: CfgNode, num_classes: int) -> None:
        super().__init__()
        mean, std = NORMALISATIONS.get(cfg.DATASET.TYPE, NORMALISATIONS["imagenet"])
        self.mean = tuple(cfg.BENCH.MEAN or mean)
        self.std = tuple(cfg.BENCH.STD or std)
        self.dataset: str = cfg.DATASET.TYPE
        self.student = student
        self.lens = JPEGLens.jpeg_dl()
        self.lens.alpha = cfg.JPEGDL.ALPHA
        self.normalisation = Normalisation(self.mean, self.std)
        self.adam = torch.optim.Adam([self.lens.q], lr=cfg.JPEGDL.LR)

    def get_extra_parameters(self) -> int:
        return self.lens.q.numel()

    def get_extra_state(self) -> dict[str, Any]:
        return self.adam.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state)

    @property
    def evaluated(self) -> nn.Module:
        return BehindLens(self.student, self.lens, self.normalisation)

    def begin_epoch(self, loader: Iterable[tuple[Tensor, ...]], epoch: int, precision: str) -> None:
        """Set the steps by the starting network's sensitivity, before the first epoch."""
        if epoch > 1:
            return
        self.student.eval()
        tables = sensitivity(self.student, loader, self.mean, self.std)
        with torch.no_grad():
            self.lens.q.copy_(tables.clamp(Q_MIN, Q_MAX))

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.adam.zero_grad(set_to_none=True)
        logits: Tensor = self.student(self.normalisation.through(self.lens, image))[0]
        return logits, {"ce": cross_entropy(logits, target)}

    def end_step(self) -> None:
        self.adam.step()
        with torch.no_grad():
            self.lens.q.clamp_(Q_MIN, Q_MAX)

    def end_training(self, folder: Path, accuracy: Callable[[nn.Module], float]) -> dict[str, Any]:
        """Write the lens; return its accuracies (%), soft and with its steps rounding hard."""
        hard = JPEGLens(self.lens.q, max_index=self.lens.max_index, hard=True)
        result = {
            "soft_acc": accuracy(self.evaluated),
            "hard_acc": accuracy(BehindLens(self.student, hard, self.normalisation)),
        }
        self.lens.metadata = {
            "teacher": type(self.student).__name__,
            "teacher_hash": weight_hash(self.student),
            "dataset": self.dataset,
            "mean": list(self.mean),
            "std": list(self.std),
            "start": "sensitivity",
        }
        save_lens(self.lens, folder / LENS_FILE)
        return {"jpeg_dl": result}
