"""Correlation congruence (Peng et al., ICCV 2019), in RepDistiller's form, from its authors."""

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision
from ._probe import probe

DEFAULTS = {"DIM": 128, "INPUT_SIZE": (32, 32), "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.02}}


@full_precision
def cc_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """Mean over i of <D_i, D_i+1>, D = abs(f_s - f_t): neighbours in the batch must not err alike.

    Shape:
        f_s, f_t: embeddings ``(B, D)``; output: scalar, 0 for an image alone.
    """
    if len(f_s) == 1:  # the mean of nothing would be NaN
        return 0 * f_s.sum()
    gap = (f_s - f_t).abs()
    return (gap[:-1] * gap[1:]).sum(dim=1).mean()


class LinearEmbed(nn.Linear):
    """A linear map in full precision."""

    forward = full_precision(nn.Linear.forward)


class CC(Distiller):
    """Both pooled features, through trained linear maps, agree up to uncorrelated gaps."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.CC.LOSS.CE_WEIGHT
        self.feat_loss_weight: float = cfg.CC.LOSS.FEAT_WEIGHT
        dim_s, dim_t = (
            probe(network, cfg.CC.INPUT_SIZE)["pooled_feat"].shape[1]
            for network in (student, teacher)
        )
        self.embed_s = LinearEmbed(dim_s, cfg.CC.DIM)
        self.embed_t = LinearEmbed(dim_t, cfg.CC.DIM)

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        f_s = self.embed_s(student.features["pooled_feat"])
        f_t = self.embed_t(teacher.features["pooled_feat"])
        return self.feat_loss_weight * cc_loss(f_s, f_t)
