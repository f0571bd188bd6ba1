"""MCMI (ICLR 2024, arXiv 2401.08732): fine-tune a teacher so that it teaches better.

    min over theta of  CE - lambda (1/|B|) sum_x KL(f_x || S_y),

f_x the network's probabilities at T = 1 and S_y its class centres.  The authors measure the centres
once, of the network that they start from, over the augmented images, and never again.  A fixed
lambda can lower CMI or wreck the network, since KL to centres that never move is largest where a
wrong class is predicted; ``GAIN`` steers lambda instead, in the manner of a fit of a lens.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._base import Training, cross_entropy
from djip_ext.bench.distillers._centres import cmi_of_powers
from djip_ext.errors import DJIPError
from djip_ext.metrics.measurement import measure

DEFAULTS = {
    # lambda; with GAIN the largest that the controller may choose
    "LAMBDA": 0.15,
    # "fixed", those of the starting network, or "refreshed", measured before each epoch
    "CENTRES": "fixed",
    # nats of CMI above the starting network's that lambda is steered to; 0: lambda is fixed
    "GAIN": 0.0,
}
POWERS = (1.0,)  # 1 / T of the divergence
MEMORY = 0.9  # of the running estimate of CMI, per step
LINEAR_RANGE = 0.25  # lambda is proportional to the missing CMI within this part of GAIN


def steered_lambda(cmi: Tensor, target: Tensor, gain: float, largest: float) -> Tensor:
    """lambda in proportion to the missing CMI, within [-largest, largest].

    Args:
        cmi: the running estimate, in nats, a scalar.
        target: the CMI to reach, in nats, a scalar.
        gain: how far above the start that is; lambda is ``largest`` where a quarter of it or more
            is missing.
    """
    return largest * ((target - cmi) / (LINEAR_RANGE * gain)).clamp(-1, 1)


class MCMI(Training):
    """A network that is fine-tuned on labels to give more CMI; it needs no teacher.

    Centres, the CMI of the start and the running estimate are buffers, so that a resumed run goes
    on with them.

    Raises:
        DJIPError: settings that no run can have.
    """

    centres: Tensor
    start_cmi: Tensor
    cmi: Tensor

    def __init__(self, student: nn.Module, cfg: CfgNode, num_classes: int) -> None:
        super().__init__()
        node = cfg.MCMI
        if node.CENTRES not in ("fixed", "refreshed"):
            raise DJIPError(f"MCMI.CENTRES is '{node.CENTRES}'; choose fixed or refreshed")
        if node.GAIN < 0:
            raise DJIPError(f"MCMI.GAIN is {node.GAIN}; it must be at least 0 nats")
        self.student = student
        self.largest: float = node.LAMBDA
        self.refreshed = node.CENTRES == "refreshed"
        self.gain: float = node.GAIN
        self.register_buffer("centres", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("start_cmi", torch.zeros(()))
        self.register_buffer("cmi", torch.zeros(()))

    @torch.no_grad()
    def begin_epoch(self, loader: Iterable[tuple[Tensor, ...]], epoch: int, precision: str) -> None:
        """Measure the centres over the augmented images, in eval mode, where they are due."""
        if epoch > 1 and not self.refreshed:
            return
        self.student.eval()
        measured = measure(self.student, loader, len(self.centres), precision=precision).cmi
        self.centres.copy_(measured.centres)
        if epoch == 1:
            self.start_cmi.fill_(measured.total)
            self.cmi.fill_(measured.total)

    def lagrange_multiplier(self) -> Tensor | float:
        """lambda of the coming step."""
        if not self.gain:
            return self.largest
        return steered_lambda(self.cmi, self.start_cmi + self.gain, self.gain, self.largest)

    def forward_train(
        self, image: Tensor, target: Tensor, **batch: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits, _ = self.student(image)
        lam = self.lagrange_multiplier()
        divergence = cmi_of_powers(logits, target, self.centres[None], POWERS)[0]
        self.cmi += (1 - MEMORY) * (divergence.detach() - self.cmi)
        losses = {
            "loss_ce": cross_entropy(logits, target),
            "loss_cmi": -lam * divergence,
        }
        return logits, losses
