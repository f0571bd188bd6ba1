"""Decoupled knowledge distillation (Zhao et al., CVPR 2022)."""

from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from ._base import Distiller, Output
from ._precision import full_precision
from .kd import kd_loss

DEFAULTS = {"CE_WEIGHT": 1.0, "ALPHA": 1.0, "BETA": 8.0, "T": 4.0, "WARMUP": 20}


@full_precision
def dkd_loss(
    z_s: Tensor, z_t: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """T^2 (alpha TCKD + beta NCKD), equation 7 of the paper, mean over the batch, in nats.

    TCKD compares the probabilities of target against rest, NCKD the distributions among the rest.

    Shape:
        z_s, z_t: logits ``(B, C)``; target: ``(B,)``; output: scalar.
    """
    target_s, rest_s = _decouple(z_s / temperature, target)
    target_t, rest_t = _decouple(z_t / temperature, target)
    tckd = kd_loss(_against_rest(target_s, rest_s), _against_rest(target_t, rest_t), 1.0)
    nckd = kd_loss(rest_s, rest_t, 1.0)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _decouple(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the target ``(B, 1)`` and of all other classes ``(B, C - 1)``."""
    target = target[:, None]
    rest = torch.arange(z.shape[1] - 1, device=z.device)
    rest = rest + (rest >= target)  # the class numbers without the target
    return z.gather(1, target), z.gather(1, rest)


def _against_rest(target: Tensor, rest: Tensor) -> Tensor:
    """``(B, 2)`` logits whose softmax is (p_target, 1 - p_target)."""
    return torch.cat([target, rest.logsumexp(dim=1, keepdim=True)], dim=1)


def warm_up(epoch: int, epochs: int) -> float:
    """Weight that grows linearly from 1 / epochs in epoch 1 to 1 in ``epochs``; 0: it is 1."""
    return min(epoch / max(1, epochs), 1.0)


class DKD(Distiller):
    """Target and non-target knowledge with weights of their own, warmed up linearly."""

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.DKD.CE_WEIGHT
        self.alpha = cfg.DKD.ALPHA
        self.beta = cfg.DKD.BETA
        self.temperature = cfg.DKD.T
        self.warmup = cfg.DKD.WARMUP

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        loss = dkd_loss(
            student.logits, teacher.logits, target, self.alpha, self.beta, self.temperature
        )
        return warm_up(batch["epoch"], self.warmup) * loss
