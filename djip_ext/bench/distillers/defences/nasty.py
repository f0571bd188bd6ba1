"""Nasty teacher (Ma et al., *Undistillable: Making a Nasty Teacher that Cannot Teach Students*).

ICLR 2021.  A network is trained for the labels and away from a plain network of its architecture,

    CE - w T^2 KL(softmax(z / T) || softmax(z_plain / T)),

so that its softened answers mislead while its first choice stays.  Direction of the KL and its
division by B alone are those of a public training script; w is reported as .004 to .01.
"""

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Distiller, Output
from djip_ext.bench.distillers.kd import kd_loss

DEFAULTS = {"TEMPERATURE": 20.0, "WEIGHT": 0.004}


class NASTY(Distiller):
    """The student is the victim; the teacher is the plain network that it must not resemble."""

    ce_loss_weight = 1.0

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.temperature: float = cfg.NASTY.TEMPERATURE
        self.weight: float = cfg.NASTY.WEIGHT

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        return -self.weight * kd_loss(teacher.logits, student.logits, self.temperature)
