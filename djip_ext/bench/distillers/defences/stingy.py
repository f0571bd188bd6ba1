"""Stingy teacher: *Sparse Logits Suffice to Fail Knowledge Distillation* (Ma et al., 2022).

A network learns from a plain network's answers with all but the largest N logits removed:

    CE_WEIGHT * CE + KD_WEIGHT * T^2 KL(p_N || softmax(z / T)),

p_N the softmax at temperature T over the N largest logits of the plain network, 0 elsewhere.
Reconstructed: N = 10 is public, the weights and the temperature are those of distillation here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Distiller, Output
from djip_ext.bench.distillers._largest import of_largest
from djip_ext.bench.distillers._precision import full_precision
from djip_ext.bench.distillers.attacks._kl import kl_to_student
from djip_ext.errors import DJIPError

DEFAULTS = {"TOP": 10, "TEMPERATURE": 4.0, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}}


@full_precision
def sparse_softmax(logits: Tensor, top: int, temperature: float) -> Tensor:
    """Softmax at temperature T over each row's ``top`` largest logits ``(B, C)``, 0 elsewhere."""
    return of_largest(logits, top, lambda kept: torch.softmax(kept / temperature, dim=1))


class STINGY(Distiller):
    """The student is the victim; the teacher is the plain network it learns from."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.STINGY.LOSS.CE_WEIGHT
        self.kd_loss_weight: float = cfg.STINGY.LOSS.KD_WEIGHT
        self.temperature: float = cfg.STINGY.TEMPERATURE
        self.top: int = cfg.STINGY.TOP
        if self.top < 1:
            raise DJIPError(f"STINGY.TOP is {self.top}; keep at least one logit")

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        p_t = sparse_softmax(teacher.logits, self.top, self.temperature)
        kl = kl_to_student(p_t, student.logits, self.temperature, "batchmean")
        return self.kd_loss_weight * kl
