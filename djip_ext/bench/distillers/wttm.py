"""Weighted transformed teacher matching (Zheng & Yang, ICLR 2024)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision

# gamma = 1 / T and the weight were tuned for each pair, appendix A.4 of the paper; these are those
# of resnet32x4-resnet8x4 and wrn_40_2-wrn_40_1, docs/distillers.md has them all.
DEFAULTS = {"GAMMA": 0.1, "LOSS": {"CE_WEIGHT": 1.0, "KD_WEIGHT": 3.0}}


@full_precision
def wttm_loss(z_s: Tensor, z_t: Tensor, gamma: float) -> Tensor:
    """U KL(p_t^gamma / U || p_s) with U = sum_i p_t,i^gamma, mean over the batch, in nats.

    The student has temperature 1; images on which the teacher is unsure have a large U and weigh
    more.

    Shape:
        z_s, z_t: logits ``(B, C)``; output: scalar.
    """
    log_power = gamma * F.log_softmax(z_t, dim=1)
    log_u = log_power.logsumexp(dim=1)
    divergence = F.kl_div(
        F.log_softmax(z_s, dim=1), log_power - log_u[:, None], reduction="none", log_target=True
    )
    return (log_u.exp() * divergence.sum(dim=1)).mean()


class WTTM(Distiller):
    """The student, at temperature 1, matches a power of the teacher's distribution."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.gamma = cfg.WTTM.GAMMA
        self.ce_loss_weight = cfg.WTTM.LOSS.CE_WEIGHT
        self.kd_loss_weight: float = cfg.WTTM.LOSS.KD_WEIGHT

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        return self.kd_loss_weight * wttm_loss(student.logits, teacher.logits, self.gamma)
