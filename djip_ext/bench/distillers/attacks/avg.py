"""AVG: the student matches what the teacher answers to its image's class on average.

Class means wash out what a teacher says of single images to mislead (Keser and Toreyin, *Averager
Student: Distillation from Undistillable Teacher*, 2023):

    CE_WEIGHT * CE + KD_WEIGHT * T^2 KL(mean of softmax(z_t / T) over class y || softmax(z_s / T)).

Reconstructed: the weights, the temperature and the one pass that measures the means are choices
made here.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers._centres import class_centres

from ._knockoff import Knockoff

DEFAULTS = {
    "TEMPERATURE": 4.0,
    "REDUCTION": "batchmean",
    "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9},
}


class AVG(Knockoff):
    """Distillation from class-averaged answers, measured once before the first epoch."""

    averages: Tensor

    def __init__(
        self, student: nn.Module, teacher: nn.Module, cfg: CfgNode, num_classes: int
    ) -> None:
        super().__init__(student, teacher, cfg)
        uniform = torch.full((num_classes, num_classes), 1 / num_classes)
        self.register_buffer("averages", uniform)

    def begin_epoch(self, loader: Iterable[tuple[Tensor, ...]], epoch: int, precision: str) -> None:
        """Measure the class means of the teacher's answers, before the first epoch only."""
        if epoch == 1:
            powers = [1 / self.temperature]
            like = self.averages[None]
            centres = class_centres(self.teacher, loader, epoch, powers, like, precision)
            self.averages.copy_(centres[0])

    def targets(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.averages[target]
