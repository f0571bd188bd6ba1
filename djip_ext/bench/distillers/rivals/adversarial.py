"""A distiller with one more loss: the student's answers to adversarial images near the teacher.

``BENCH.ADVERSARIAL`` names it, :class:`~djip_ext.bench.distillers.rivals.tald.TALD` or
:class:`~djip_ext.bench.distillers.rivals.bss.BSS`.  The wrapped distiller may keep its teacher's
answers; adversarial images are new at every step, so that the living teacher is asked about these.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.bench.distillers._base import Training
from djip_ext.errors import DJIPError


class Adversarial(Training):
    """``wrapped``, to whose losses :meth:`adversarial_loss` is added.

    Args:
        wrapped: a distiller; student, trained modules and pretraining are its own.
        teacher: the living teacher, frozen, which may be another module than ``wrapped.teacher``.

    Raises:
        DJIPError: the teacher has a lens whose rounding leaves its images no gradient.
    """

    teacher_passes: Tensor

    def __init__(self, wrapped: Training, teacher: nn.Module) -> None:
        super().__init__()
        lens = getattr(teacher, "djip_lens", None)
        if lens is not None and lens.hard:
            raise DJIPError(
                "BENCH.ADVERSARIAL follows gradients of the images, and the hard lens in front of "
                "this teacher has none; use a soft one, or identity"
            )
        self.wrapped = wrapped
        # In a tuple it is no submodule: its weights are not saved with the run again.
        self._living = (teacher.eval().requires_grad_(False),)
        self.register_buffer("teacher_passes", torch.zeros((), dtype=torch.int64))
        if hasattr(wrapped, "pretrain"):
            self.pretrain = wrapped.pretrain

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        """The student of the wrapped distiller."""
        return self.wrapped.student

    @property
    def teacher(self) -> Any:
        """The teacher of the wrapped distiller, living or kept."""
        return self.wrapped.teacher

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return self.wrapped.get_learnable_parameters()

    def get_extra_parameters(self) -> int:
        return self.wrapped.get_extra_parameters()

    def begin_epoch(self, loader: Iterable[tuple[Tensor, ...]], epoch: int, precision: str) -> None:
        self.wrapped.begin_epoch(loader, epoch, precision)

    def teacher_logits(self, image: Tensor) -> Tensor:
        """The living teacher's logits (B, C); a pass there, and its way back, counts once."""
        self.teacher_passes += len(image)
        (teacher,) = self._living
        logits: Tensor = teacher(image)[0]
        return logits

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, losses = self.wrapped.forward_train(image=image, target=target, **batch)
        extra = self.adversarial_loss(image, target, logits, epoch=batch["epoch"])
        return logits, losses | {"loss_adversarial": extra}

    def adversarial_loss(self, image: Tensor, target: Tensor, logits: Tensor, epoch: int) -> Tensor:
        """The weighted additional loss, a scalar; ``logits`` (B, C) are the student's."""
        raise NotImplementedError

    def end_step(self) -> None:
        self.wrapped.end_step()

    def end_training(self, folder: Path, accuracy: Callable[[nn.Module], float]) -> dict[str, Any]:
        """What the wrapped distiller says, and the teacher passes of the additional loss."""
        passes = {"adversarial_teacher_passes": int(self.teacher_passes)}
        return self.wrapped.end_training(folder, accuracy) | passes
