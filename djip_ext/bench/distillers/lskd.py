"""Logit standardisation (Sun et al., *Logit Standardization in KD*, CVPR 2024)."""

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.errors import DJIPError

from ._base import Distiller, Output
from ._precision import full_precision
from .dkd import dkd_loss, warm_up
from .kd import kd_loss

DEFAULTS = {"BASE": "KD", "TEMPERATURE": 2.0, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 9.0}}


@full_precision
def standardise(z: Tensor, eps: float = 1e-7) -> Tensor:
    """Z-score of each row of logits ``(B, C)``: mean 0, standard deviation 1 over the classes."""
    return (z - z.mean(dim=1, keepdim=True)) / (z.std(dim=1, keepdim=True) + eps)


class LSKD(Distiller):
    """KD or DKD (``cfg.LSKD.BASE``) of standardised logits: the teacher's scale is not matched.

    With DKD, the weight of cross entropy, alpha, beta and the warm-up are those of the ``DKD``
    node, as in the authors' code.

    Raises:
        DJIPError: another base.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        if cfg.LSKD.BASE not in ("KD", "DKD"):
            raise DJIPError(f"LSKD.BASE is '{cfg.LSKD.BASE}'; choose KD or DKD")
        self.base = cfg.LSKD.BASE
        self.temperature = cfg.LSKD.TEMPERATURE
        self.ce_loss_weight = cfg.LSKD.LOSS.CE_WEIGHT
        self.kd_loss_weight: float = cfg.LSKD.LOSS.KD_WEIGHT
        if self.base == "DKD":
            self.ce_loss_weight = cfg.DKD.CE_WEIGHT
            self.alpha = cfg.DKD.ALPHA
            self.beta = cfg.DKD.BETA
            self.warmup = cfg.DKD.WARMUP

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        z_s = standardise(student.logits)
        z_t = standardise(teacher.logits)
        if self.base == "KD":
            return self.kd_loss_weight * kd_loss(z_s, z_t, self.temperature)
        loss = dkd_loss(z_s, z_t, target, self.alpha, self.beta, self.temperature)
        return self.kd_loss_weight * warm_up(batch["epoch"], self.warmup) * loss
