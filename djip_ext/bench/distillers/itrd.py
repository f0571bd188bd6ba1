"""Information theoretic representation distillation (Miles et al., BMVC 2022).

The losses are those of its authors' code.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision
from ._probe import probe
from .cc import LinearEmbed

DEFAULTS = {
    "ALPHA": 1.01,
    "INPUT_SIZE": (32, 32),
    "LOSS": {"CE_WEIGHT": 1.0, "CORR_WEIGHT": 2.0, "MUTUAL_WEIGHT": 1.0},
}


@full_precision
def itrd_correlation_loss(f_s: Tensor, f_t: Tensor, alpha: float) -> Tensor:
    """log2 sum_d abs(c_d - 1)^(2 alpha), c_d the batch's correlation of the d-th features, in bits.

    A feature that is constant over the batch counts as uncorrelated. Standard deviations divide by
    B - 1, correlations by B, as in the authors' code, so that the sum is never zero.

    Shape:
        f_s, f_t: ``(B, D)``; output: scalar, of any sign, 0 for an image alone.
    """
    if len(f_s) == 1:  # its standard deviation would be NaN
        return 0 * f_s.sum()
    c = (_standardise(f_s) * _standardise(f_t)).mean(dim=0)
    return (c - 1).abs().pow(2 * alpha).sum().log2()


def _standardise(f: Tensor, eps: float = 1e-8) -> Tensor:
    return (f - f.mean(dim=0)) / (f.std(dim=0) + eps)


@full_precision
def itrd_mutual_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """||G_s||_F^2 - ||G_st||_F^2 of the Gram matrices of unit features, both of trace one.

    G_st = G_s * G_t, element by element.

    Shape:
        f_s: ``(B, D_s)``, f_t: ``(B, D_t)``; output: scalar.
    """
    f_s = F.normalize(f_s)
    f_t = F.normalize(f_t)
    g_s = f_s @ f_s.T
    g_st = g_s * (f_t @ f_t.T)
    return _of_unit_trace(g_s).pow(2).sum() - _of_unit_trace(g_st).pow(2).sum()


def _of_unit_trace(gram: Tensor) -> Tensor:
    # the backward pass of Tensor.trace waits for the GPU
    return gram / gram.diagonal().sum()


class ITRD(Distiller):
    """Pooled features that correlate with the teacher's and share their information.

    One linear map serves both.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.alpha = cfg.ITRD.ALPHA
        self.ce_loss_weight = cfg.ITRD.LOSS.CE_WEIGHT
        self.corr_loss_weight: float = cfg.ITRD.LOSS.CORR_WEIGHT
        self.mutual_loss_weight: float = cfg.ITRD.LOSS.MUTUAL_WEIGHT
        dim_s, dim_t = (
            probe(network, cfg.ITRD.INPUT_SIZE)["pooled_feat"].shape[1]
            for network in (student, teacher)
        )
        self.embed = LinearEmbed(dim_s, dim_t)

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        f_s = student.features["pooled_feat"]
        f_t = teacher.features["pooled_feat"]
        embedded = self.embed(f_s)
        correlation = itrd_correlation_loss(embedded, f_t, self.alpha)
        mutual = itrd_mutual_loss(f_s if f_s.shape == f_t.shape else embedded, f_t)
        return self.corr_loss_weight * correlation + self.mutual_loss_weight * mutual
