"""HTC: distillation at a high temperature, against answers whose peaks mislead.

High-temperature composition (Jandial et al., *Distilling the Undistillable: Learning from a Nasty
Teacher*, ECCV 2022): the labels give the confidence, the teacher's nearly flat distribution the
relations between classes,

    CE + w T^2 KL(softmax(z_t / T) || softmax(z_s / T)),   T large.

Reconstructed: the authors' repository holds no code; weight and temperature are choices made here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Distiller, Output

from ._kl import check_reduction, kl_to_student

DEFAULTS = {
    "TEMPERATURE": 50.0,
    "REDUCTION": "batchmean",
    "LOSS": {"CE_WEIGHT": 1.0, "KD_WEIGHT": 1.0},
}


class HTC(Distiller):
    """Cross entropy and distillation at a temperature of tens."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.HTC.LOSS.CE_WEIGHT
        self.kd_loss_weight: float = cfg.HTC.LOSS.KD_WEIGHT
        self.temperature: float = cfg.HTC.TEMPERATURE
        self.reduction = check_reduction("HTC", cfg.HTC.REDUCTION)

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        p_t = torch.softmax(teacher.logits.float() / self.temperature, dim=1)
        loss = kl_to_student(p_t, student.logits, self.temperature, self.reduction)
        return self.kd_loss_weight * loss
