"""Attention transfer (Zagoruyko & Komodakis, *Paying More Attention to Attention*, ICLR 2017)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision

DEFAULTS = {"P": 2, "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1000.0}}


@full_precision
def at_loss(feats_s: list[Tensor], feats_t: list[Tensor], p: float) -> Tensor:
    """Sum over stages of the mean squared difference of attention maps, equation 2 of the paper.

    The attention of a map is its channel mean of f^p, flattened, of unit length. The larger map is
    pooled to the smaller one; stages that only one network has are left out.

    Shape:
        feats_s, feats_t: maps ``(B, C, H, W)``; output: scalar.
    """
    pairs = [to_common_size(f_s, f_t) for f_s, f_t in zip(feats_s, feats_t, strict=False)]
    return torch.stack(
        [F.mse_loss(attention_map(f_s, p), attention_map(f_t, p)) for f_s, f_t in pairs]
    ).sum()


def attention_map(f: Tensor, p: float) -> Tensor:
    """Normalised channel mean of f^p, ``(B, C, H, W) -> (B, H W)``."""
    return F.normalize(f.pow(p).mean(dim=1).flatten(1))


def to_common_size(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps to the size of the other."""
    size_s = (f_s.shape[2], f_s.shape[3])
    size_t = (f_t.shape[2], f_t.shape[3])
    if size_s > size_t:
        f_s = F.adaptive_avg_pool2d(f_s, size_t)
    elif size_s < size_t:
        f_t = F.adaptive_avg_pool2d(f_t, size_s)
    return f_s, f_t


class AT(Distiller):
    """The student attends to what the teacher attends to, at every stage after the stem."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.p = cfg.AT.P
        self.ce_loss_weight = cfg.AT.LOSS.CE_WEIGHT
        self.feat_loss_weight: float = cfg.AT.LOSS.FEAT_WEIGHT

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        loss = at_loss(student.features["feats"][1:], teacher.features["feats"][1:], self.p)
        return self.feat_loss_weight * loss
