"""MKD: a map of the teacher's answers is learned for each class, together with the student.

Markov knowledge distillation (Yang and Ye, *Markov Knowledge Distillation: Make Nasty Teachers
Trained by Self-undermining Knowledge Distillation Fully Distillable*, ECCV 2024): the softened
answer p = softmax(z_t / T) to an image of class y becomes p M_y, M_y a Markov matrix of that
class, and student and matrices descend the same loss,

    CE_WEIGHT * CE + KD_WEIGHT * T^2 KL(p M_y || softmax(z_s / T)).

Reconstructed from a summary: here M_y is a full matrix, each row the softmax of C parameters, and
starts near the identity; the paper restricts it ("intrinsic dimension" 3) in a way not known here.
"""

import math

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._precision import full_precision

from ._knockoff import Knockoff

DEFAULTS = {
    "TEMPERATURE": 4.0,
    "REDUCTION": "batchmean",
    "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9},
}
STAY = 0.9  # diagonal of every matrix before training


@full_precision
def mapped(z_t: Tensor, target: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """softmax(z_t / T) M_y with M_y = softmax of the rows of ``scores[y]``.

    Shape:
        z_t ``(B, C)``, target ``(B,)``, scores ``(C, C, C)``; output: probabilities ``(B, C)``.
    """
    p_t = torch.softmax(z_t / temperature, dim=1)
    markov = torch.softmax(scores[target], dim=2)
    return (p_t[:, None, :] @ markov)[:, 0]


class MKD(Knockoff):
    """Distillation through a Markov matrix per class, trained with the student."""

    def __init__(
        self, student: nn.Module, teacher: nn.Module, cfg: CfgNode, num_classes: int
    ) -> None:
        super().__init__(student, teacher, cfg)
        on_diagonal = math.log(STAY / (1 - STAY) * (num_classes - 1))
        identity = on_diagonal * torch.eye(num_classes)
        self.scores = nn.Parameter(identity.repeat(num_classes, 1, 1))

    def targets(self, logits: Tensor, target: Tensor) -> Tensor:
        return mapped(logits, target, self.scores, self.temperature)
