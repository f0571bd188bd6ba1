"""What the knockoff attacks share: their node, and a KL to targets made of a teacher's answers."""

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Distiller, Output

from ._kl import check_reduction, kl_to_student


class Knockoff(Distiller):
    """A student that learns ``CE_WEIGHT * CE + KD_WEIGHT * T^2 KL(targets || softmax(z_s / T))``.

    An attack names its configuration node, the method's own name, and defines :meth:`targets`.

    Raises:
        DJIPError: a ``REDUCTION`` that there is not.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        name = type(self).__name__
        node = cfg[name]
        self.ce_loss_weight = node.LOSS.CE_WEIGHT
        self.kd_loss_weight: float = node.LOSS.KD_WEIGHT
        self.temperature: float = node.TEMPERATURE
        self.reduction = check_reduction(name, node.REDUCTION)

    def targets(self, logits: Tensor, target: Tensor) -> Tensor:
        """The probabilities (B, C) to match, of the teacher's logits (B, C) and the labels (B,)."""
        raise NotImplementedError

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        p_t = self.targets(teacher.logits, target)
        loss = kl_to_student(p_t, student.logits, self.temperature, self.reduction)
        return self.kd_loss_weight * loss
