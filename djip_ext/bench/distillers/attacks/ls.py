"""Label smoothing (Szegedy et al., *Rethinking the Inception Architecture*, CVPR 2016).

No attack, but the bar of one: a student from the labels alone, which a knockoff has to beat before
its teacher's answers can be said to have given anything away.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Training
from djip_ext.bench.distillers._precision import full_precision
from djip_ext.errors import DJIPError

DEFAULTS = {"EPSILON": 0.1}  # probability that is spread evenly over all classes


@full_precision
def smoothed_cross_entropy(logits: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """-sum_i q[i] ln softmax(z)[i] with q = (1 - epsilon) onehot(y) + epsilon / C, batch mean.

    Shape: logits ``(B, C)``, target ``(B,)``; output: scalar, in nats.
    """
    return F.cross_entropy(logits, target, label_smoothing=epsilon)


class LS(Training):
    """Training on smoothed labels, without a teacher."""

    def __init__(self, student: nn.Module, cfg: CfgNode, num_classes: int) -> None:
        super().__init__()
        self.student = student
        self.epsilon: float = cfg.LS.EPSILON
        if not 0 <= self.epsilon < 1:
            raise DJIPError(f"LS.EPSILON is {self.epsilon}; it must lie in [0, 1)")

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _ = self.student(image)
        return logits, {"ce": smoothed_cross_entropy(logits, target, self.epsilon)}
