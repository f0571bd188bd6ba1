r"""CMIM: a network whose answers hold little conditional mutual information at any temperature.

With f^a = softmax(a z), a = 1 / T, and the class centres Q_{y,a} = E[f^a_X | Y = y], training
minimises

    CE + lambda * Agg_a I(X; Yhat^a | Y),   I(X; Yhat^a | Y) = E[KL(f^a_X || Q_{Y,a})],

by turns: the centres are the class means of the network as it stands before each epoch, then SGD
steps with these centres held fixed (each turn lowers the same sum: for given f the class means are
the minimising Q).

Reconstructed from the abstract of *Undistillable DNNs by minimising conditional mutual
information* (arXiv 2507.00012): which powers, how they are aggregated and lambda are choices made
here, not the authors'.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Training, cross_entropy
from djip_ext.bench.distillers._centres import class_centres, cmi_of_powers
from djip_ext.errors import DJIPError

DEFAULTS = {
    "LAMBDA": 5.0,  # weight of the CMI in nats against the cross entropy in nats
    # a = 1 / T; at T = 1 and below, an image of the wrong class weighs ln Q, up to 27 nats
    "POWERS": [0.5, 0.25, 0.125],
    "AGGREGATE": "mean",  # over the powers; or "max"
}


class CMIM(Training):
    """Cross entropy plus ``CMIM.LAMBDA`` times the aggregate of the CMI over ``CMIM.POWERS``.

    Without a teacher.  ``BENCH.STUDENT_CHECKPOINT`` makes it a fine-tuning.
    """

    centres: Tensor

    def __init__(self, student: nn.Module, cfg: CfgNode, num_classes: int) -> None:
        super().__init__()
        node = cfg.CMIM
        self.student = student
        self.lam: float = node.LAMBDA
        self.powers = tuple(float(power) for power in node.POWERS)
        self.aggregate: str = node.AGGREGATE
        if not self.powers or min(self.powers) <= 0:
            raise DJIPError(f"CMIM.POWERS is {node.POWERS}; give one or more positive powers 1/T")
        if self.aggregate not in ("mean", "max"):
            raise DJIPError(f"CMIM.AGGREGATE is '{self.aggregate}'; choose mean or max")
        size = (len(self.powers), num_classes, num_classes)
        self.register_buffer("centres", torch.full(size, 1 / num_classes))

    def begin_epoch(self, loader: Iterable[tuple[Tensor, ...]], epoch: int, precision: str) -> None:
        """Measure the centres of the network as it stands."""
        centres = class_centres(self.student, loader, epoch, self.powers, self.centres, precision)
        self.centres.copy_(centres)

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _ = self.student(image)
        cmi = cmi_of_powers(logits, target, self.centres, self.powers)
        aggregated = cmi.max() if self.aggregate == "max" else cmi.mean()
        return logits, {
            "ce": cross_entropy(logits, target),
            "cmi": self.lam * aggregated,
        }
