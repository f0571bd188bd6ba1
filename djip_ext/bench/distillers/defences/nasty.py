"""Nasty teacher (Ma et al., *Undistillable: Making a Nasty Teacher that Cannot Teach Students*).

ICLR 2021.  A network is trained for the labels and away from a plain network of its architecture,

    CE - w T^2 KL(softmax(z_plain / T) || softmax(z / T)),

so that its softened answers mislead while its first choice stays.
"""

from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Distiller, Output
from djip_ext.bench.distillers.attacks._kl import check_reduction, kl_to_student

# The published w of .004 to .01 goes with the division by B C.
DEFAULTS = {"TEMPERATURE": 20.0, "WEIGHT": 0.004, "REDUCTION": "mean"}


class NASTY(Distiller):
    """The student is the victim; the teacher is the plain network that it must not resemble."""

    ce_loss_weight = 1.0

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.temperature: float = cfg.NASTY.TEMPERATURE
        self.weight: float = cfg.NASTY.WEIGHT
        self.reduction = check_reduction("NASTY", cfg.NASTY.REDUCTION)

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        plain = torch.softmax(teacher.logits.float() / self.temperature, dim=1)
        kl = kl_to_student(plain, student.logits, self.temperature, self.reduction)
        return -self.weight * kl
