"""HTC: distillation at a high temperature, against answers whose peaks mislead.

High-temperature composition (Jandial et al., *Distilling the Undistillable: Learning from a Nasty
Teacher*, ECCV 2022): the labels give the confidence, the teacher's nearly flat distribution the
relations between classes,

    CE + w T^2 KL(softmax(z_t / T) || softmax(z_s / T)),   T large.

Reconstructed: the authors' repository holds no code; weight and temperature are choices made here.
"""

import torch
from torch import Tensor

from ._knockoff import Knockoff

DEFAULTS = {
    "TEMPERATURE": 50.0,
    "REDUCTION": "batchmean",
    "LOSS": {"CE_WEIGHT": 1.0, "KD_WEIGHT": 1.0},
}


class HTC(Knockoff):
    """Cross entropy and distillation at a temperature of tens."""

    def targets(self, logits: Tensor, target: Tensor) -> Tensor:
        return torch.softmax(logits.float() / self.temperature, dim=1)
