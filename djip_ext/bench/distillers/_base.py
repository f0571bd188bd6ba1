"""The surface that a trainer sees: mdistiller's ``Distiller`` and ``Vanilla``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djip_ext.bench.models import Features

from ._precision import full_precision

cross_entropy = full_precision(F.cross_entropy)


class Output(NamedTuple):
    """What a classifier of the benchmark returns."""

    logits: Tensor
    features: Features


class Training(nn.Module):
    """What a trainer trains: a step returns losses, inference returns logits."""

    student: nn.Module

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """What the optimiser updates."""
        return list(self.student.parameters())

    def get_extra_parameters(self) -> int:
        """How many numbers the method keeps beside student and teacher."""
        return 0

    def begin_epoch(self, loader: Iterable[tuple[Tensor, ...]], epoch: int, precision: str) -> None:
        """Prepare for ``epoch``, counted from 1; called before its first step.

        What is measured here and needed in later epochs belongs in a buffer, so that a resumed run
        has it.  ``loader`` may be gone through: its ``epoch`` and the random state are set anew
        afterwards.
        """

    def end_step(self) -> None:
        """Update what the method trains with an optimiser of its own; called after each step."""

    def end_training(self, folder: Path, accuracy: Callable[[nn.Module], float]) -> dict[str, Any]:
        """Write what belongs beside the weights in ``folder``; return what the result says of it.

        Args:
            folder: of the run.
            accuracy: top-1 accuracy (%) of a network on the test images.
        """
        return {}

    @property
    def evaluated(self) -> nn.Module:
        """What test images go through: the student, and what the method puts before it."""
        return self.student

    def forward(self, **batch: Any) -> Any:
        """Logits ``(B, C)`` of ``image`` in eval mode; in training mode ``(logits, losses)``.

        The batch holds ``image`` (normalised, ``(B, 3, H, W)``), ``target`` (``(B,)``), ``epoch``
        (from 1) and, where a method needs them, ``index`` and ``contrastive_index``. The losses are
        to be summed.
        """
        if self.training:
            return self.forward_train(**batch)
        return self.forward_test(batch["image"])

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def forward_test(self, image: Tensor) -> Tensor:
        logits: Tensor = self.evaluated(image)[0]
        return logits


class Vanilla(Training):
    """Training on the labels alone."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _ = self.student(image)
        return logits, {"ce": cross_entropy(logits, target)}


class Distiller(Training):
    """A student, a frozen teacher and ``ce_loss_weight * CE + distillation_loss``.

    A method sets ``ce_loss_weight`` and defines :meth:`distillation_loss`; modules it adds are
    trained with the student. The teacher may be any module that returns ``(logits, Features)``. It
    stays in eval mode, runs without gradients, and its parameters are never handed to the
    optimiser.
    """

    ce_loss_weight: float
    frozen: tuple[str, ...] = ("teacher.",)
    """Prefixes of the parameters that the optimiser must not touch."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def train(self, mode: bool = True) -> "Distiller":
        super().train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return [p for name, p in self.named_parameters() if not name.startswith(self.frozen)]

    def get_extra_parameters(self) -> int:
        networks = ("student.", "teacher.")
        own = (p for name, p in self.named_parameters() if not name.startswith(networks))
        return sum(p.numel() for p in own)

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        student = Output(*self.student(image))
        # inference_mode would forbid the trained layers that some methods put on the teacher
        with torch.no_grad():
            teacher = Output(*self.teacher(image))
        losses = {
            "loss_ce": self.ce_loss_weight * cross_entropy(student.logits, target),
            "loss_kd": self.distillation_loss(student, teacher, target, **batch),
        }
        return student.logits, losses

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        """The weighted loss of the method, a scalar."""
        raise NotImplementedError
