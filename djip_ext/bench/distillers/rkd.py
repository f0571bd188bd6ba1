"""Relational knowledge distillation (Park et al., CVPR 2019)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision

DEFAULTS = {
    "DISTANCE_WEIGHT": 25.0,
    "ANGLE_WEIGHT": 50.0,
    "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
    "PDIST": {"EPSILON": 1e-12, "SQUARED": False},
}


@full_precision
def rkd_distance_loss(
    f_s: Tensor, f_t: Tensor, eps: float = 1e-12, squared: bool = False
) -> Tensor:
    """Huber loss between pairwise distances, each divided by its mean, section 3.2.1 of the paper.

    Shape:
        f_s, f_t: embeddings ``(B, D_s)`` and ``(B, D_t)``; output: scalar, 0 for an image alone.
    """
    if len(f_s) == 1:  # the mean distance of no pair would be NaN
        return 0 * f_s.sum()
    return F.smooth_l1_loss(
        _relative_distances(f_s, eps, squared), _relative_distances(f_t, eps, squared)
    )


def _relative_distances(f: Tensor, eps: float, squared: bool) -> Tensor:
    square = f.pow(2).sum(dim=1)
    d = (square[:, None] + square[None, :] - 2 * f @ f.T).clamp(min=eps)
    if not squared:
        d = d.sqrt()
    d = d.masked_fill(torch.eye(len(d), dtype=torch.bool, device=d.device), 0)
    return d / (d.sum() / (d > 0).sum())


@full_precision
def rkd_angle_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Huber loss between the cosines of angles in triples of embeddings, section 3.2.2.

    Shape:
        f_s, f_t: embeddings ``(B, D_s)`` and ``(B, D_t)``; output: scalar.
    """
    return F.smooth_l1_loss(_cosines(f_s), _cosines(f_t))


def _cosines(f: Tensor) -> Tensor:
    e = F.normalize(f[None, :] - f[:, None], dim=2)  # e[i, j] points from i to j
    return e @ e.transpose(1, 2)


class RKD(Distiller):
    """The student keeps the distances and angles among the teacher's pooled features."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.distance_weight: float = cfg.RKD.DISTANCE_WEIGHT
        self.angle_weight: float = cfg.RKD.ANGLE_WEIGHT
        self.ce_loss_weight = cfg.RKD.LOSS.CE_WEIGHT
        self.feat_loss_weight: float = cfg.RKD.LOSS.FEAT_WEIGHT
        self.eps = cfg.RKD.PDIST.EPSILON
        self.squared = cfg.RKD.PDIST.SQUARED

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        f_s = student.features["pooled_feat"]
        f_t = teacher.features["pooled_feat"]
        distance = self.distance_weight * rkd_distance_loss(f_s, f_t, self.eps, self.squared)
        angle = self.angle_weight * rkd_angle_loss(f_s, f_t)
        return self.feat_loss_weight * (distance + angle)
