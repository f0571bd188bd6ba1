"""ER-KD: distillation that listens most where the teacher is unsure.

Su et al., *Knowledge from the Dark Side: Entropy-Reweighted Knowledge Distillation* (arXiv
2311.13621): every image's KL is multiplied by the entropy of the teacher's softened answer to it,

    CE + w T^2 E[H_T(x) KL(softmax(z_t / T) || softmax(z_s / T))],   H_T = H(softmax(z_t / T)).
"""

from typing import Any

import torch
from torch import Tensor

from djip_ext.bench.distillers._base import Output
from djip_ext.bench.distillers._precision import full_precision

from ._kl import kl_to_student
from ._knockoff import Knockoff

DEFAULTS = {
    "TEMPERATURE": 4.0,
    "REDUCTION": "batchmean",
    "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9},
}


@full_precision
def entropy_weighted_loss(
    z_s: Tensor, z_t: Tensor, temperature: float, reduction: str = "batchmean"
) -> Tensor:
    """T^2 times the mean of H(p_t) KL(p_t || p_s), both at temperature T; logits ``(B, C)``."""
    ln_p_t = torch.log_softmax(z_t / temperature, dim=1)
    p_t = ln_p_t.exp()
    entropy = -(p_t * ln_p_t).sum(1)
    return kl_to_student(p_t, z_s, temperature, reduction, entropy)


class ERKD(Knockoff):
    """Distillation with each image weighted by the entropy of the teacher's answer."""

    def distillation_loss(
        self, student: Output, teacher: Output, target: Tensor, **batch: Any
    ) -> Tensor:
        return self.kd_loss_weight * entropy_weighted_loss(
            student.logits, teacher.logits, self.temperature, self.reduction
        )
