"""DIST (Huang et al., *Knowledge Distillation from A Stronger Teacher*, NeurIPS 2022)."""

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision

DEFAULTS = {"TAU": 4.0, "LOSS": {"CE_WEIGHT": 1.0, "INTER_WEIGHT": 2.0, "INTRA_WEIGHT": 2.0}}


@full_precision
def dist_loss(z_s: Tensor, z_t: Tensor, beta: float, gamma: float, tau: float) -> Tensor:
    """tau^2 (beta (1 - mean correlation of rows) + gamma (1 - mean correlation of columns)).

    Rows of softmax(z / tau) relate the classes of one image, columns the images of one class. The
    factor tau^2 is the authors' code's.

    Shape:
        z_s, z_t: logits ``(B, C)``; output: scalar.
    """
    p_s = (z_s / tau).softmax(dim=1)
    p_t = (z_t / tau).softmax(dim=1)
    inter = 1 - _pearson(p_s, p_t, dim=1).mean()
    intra = 1 - _pearson(p_s, p_t, dim=0).mean()
    return tau**2 * (beta * inter + gamma * intra)


def _pearson(a: Tensor, b: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    a = a - a.mean(dim, keepdim=True)
    b = b - b.mean(dim, keepdim=True)
    norms: Tensor = a.norm(dim=dim) * b.norm(dim=dim)
    return (a * b).sum(dim) / (norms + eps)


class DIST(Distiller):
    """The student has the order and ratios of the teacher's probabilities, not their values."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.tau = cfg.DIST.TAU
        self.ce_loss_weight = cfg.DIST.LOSS.CE_WEIGHT
        self.beta = cfg.DIST.LOSS.INTER_WEIGHT
        self.gamma = cfg.DIST.LOSS.INTRA_WEIGHT

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        return dist_loss(student.logits, teacher.logits, self.beta, self.gamma, self.tau)
