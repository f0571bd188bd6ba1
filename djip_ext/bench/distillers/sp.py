"""Similarity-preserving distillation (Tung & Mori, ICCV 2019)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision

DEFAULTS = {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 3000.0}}


@full_precision
def sp_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """||G_t - G_s||_F^2 / B^2, G a batch's row-normalised similarities, section 3 of the paper.

    Shape:
        f_s, f_t: ``(B, ...)``, of any two sizes; output: scalar.
    """
    return F.mse_loss(_similarity(f_s), _similarity(f_t))


def _similarity(f: Tensor) -> Tensor:
    f = f.flatten(1)
    return F.normalize(f @ f.T)


class SP(Distiller):
    """Images that are similar to the teacher are similar to the student."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.SP.LOSS.CE_WEIGHT
        self.feat_loss_weight: float = cfg.SP.LOSS.FEAT_WEIGHT

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        return self.feat_loss_weight * sp_loss(
            student.features["feats"][-1], teacher.features["feats"][-1]
        )
