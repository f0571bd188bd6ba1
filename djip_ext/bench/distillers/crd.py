"""Contrastive representation distillation (Tian et al., ICLR 2020)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.errors import DJIPError

from ._base import Distiller, Output
from ._precision import full_precision

DEFAULTS = {
    # what is a positive, which the trainer draws: the image itself; "relax": any of its class
    "MODE": "exact",
    "FEAT": {"DIM": 128, "STUDENT_DIM": 256, "TEACHER_DIM": 256},
    "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.8},
    "NCE": {"K": 16384, "MOMENTUM": 0.5, "TEMPERATURE": 0.07},
}


@full_precision
def nce_loss(scores: Tensor, num_data: int, eps: float = 1e-7) -> Tensor:
    """Noise-contrastive estimation with uniform noise, section 3.2 of the paper.

    The mean over the batch, in nats.

    Shape:
        scores: unnormalised probabilities ``(B, 1 + K)``, the positive first; output: scalar.
    """
    positive = scores[:, 0]
    negative = scores[:, 1:]
    noise = negative.shape[1] / num_data
    log_d1 = (positive / (positive + noise + eps)).log()
    log_d0 = (noise / (negative + noise + eps)).log()
    return -(log_d1.sum() + log_d0.sum()) / len(scores)


class Embed(nn.Module):
    """A linear map to the unit sphere, ``(B, D_in) -> (B, D_out)``."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    @full_precision
    def forward(self, f: Tensor) -> Tensor:
        return F.normalize(self.linear(f))


class ContrastMemory(nn.Module):
    """The last embeddings of every training image by both networks, and the scores against them.

    The normalising constants are set by the first batch and then stay.
    """

    memory_s: Tensor
    memory_t: Tensor
    z: Tensor

    def __init__(self, dim: int, num_data: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        bound = 1 / math.sqrt(dim / 3)
        self.register_buffer("memory_s", torch.empty(num_data, dim).uniform_(-bound, bound))
        self.register_buffer("memory_t", torch.empty(num_data, dim).uniform_(-bound, bound))
        self.register_buffer("z", torch.zeros(2))  # zero: not set yet

    @full_precision
    def forward(
        self, v_s: Tensor, v_t: Tensor, index: Tensor, contrastive_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score each embedding against what the other network remembers, then remember it.

        Shape:
            v_s, v_t: ``(B, D)``; index: ``(B,)``; contrastive_index: ``(B, 1 + K)``, whose first
            column is ``index``; outputs: ``(B, 1 + K)`` each.
        """
        # One product with the whole memory and a gather of numbers is cheaper than a gather of
        # B (1 + K) vectors.
        scores_s = (v_s @ self.memory_t.T).gather(1, contrastive_index).div(self.temperature).exp()
        scores_t = (v_t @ self.memory_s.T).gather(1, contrastive_index).div(self.temperature).exp()
        with torch.no_grad():
            z = len(self.memory_s) * torch.stack([scores_s.mean(), scores_t.mean()])
            self.z = torch.where(self.z > 0, self.z, z)
            self.memory_s = self._remember(self.memory_s, v_s, index)
            self.memory_t = self._remember(self.memory_t, v_t, index)
        return scores_s / self.z[0], scores_t / self.z[1]

    def _remember(self, memory: Tensor, v: Tensor, index: Tensor) -> Tensor:
        """A copy: the backward pass still needs the old memory."""
        rows = F.normalize(self.momentum * memory[index] + (1 - self.momentum) * v)
        return memory.index_copy(0, index, rows)


class CRD(Distiller):
    """The student's embedding of an image is near the teacher's of it, far from those of others.

    Args:
        num_data: training images; batches carry their ``index`` and ``contrastive_index``.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: CfgNode, num_data: int) -> None:
        super().__init__(student, teacher)
        self.ce_loss_weight = cfg.CRD.LOSS.CE_WEIGHT
        self.feat_loss_weight: float = cfg.CRD.LOSS.FEAT_WEIGHT
        self.num_data = num_data
        self.embed_s = Embed(cfg.CRD.FEAT.STUDENT_DIM, cfg.CRD.FEAT.DIM)
        self.embed_t = Embed(cfg.CRD.FEAT.TEACHER_DIM, cfg.CRD.FEAT.DIM)
        self.contrast = ContrastMemory(
            cfg.CRD.FEAT.DIM, num_data, cfg.CRD.NCE.TEMPERATURE, cfg.CRD.NCE.MOMENTUM
        )

    def get_extra_parameters(self) -> int:
        return (
            super().get_extra_parameters()
            + self.contrast.memory_s.numel()
            + self.contrast.memory_t.numel()
        )

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        for network, output, embed in (
            ("STUDENT", student, self.embed_s),
            ("TEACHER", teacher, self.embed_t),
        ):
            found = output.features["pooled_feat"].shape[1]
            expected = embed.linear.in_features
            if found != expected:
                raise DJIPError(
                    f"CRD.FEAT.{network}_DIM is {expected}, but that network's pooled feature has "
                    f"{found} numbers; set it to {found}"
                )
        v_s = self.embed_s(student.features["pooled_feat"])
        v_t = self.embed_t(teacher.features["pooled_feat"])
        scores_s, scores_t = self.contrast(v_s, v_t, batch["index"], batch["contrastive_index"])
        return self.feat_loss_weight * (
            nce_loss(scores_s, self.num_data) + nce_loss(scores_t, self.num_data)
        )
