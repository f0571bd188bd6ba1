"""Image sets held whole in memory."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DJIPError


@dataclass(frozen=True)
class ImageSet:
    """A labelled image set: images uint8 (N, H, W, 3), labels int64 (N,), and how a network expects them scaled."""

    images: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def subset(self, fraction: float, seed: int = 0) -> "ImageSet":
        """Keep ``fraction`` of every class (at least one image of each), drawn with ``seed``: the few-shot setting."""
        if not 0 < fraction <= 1:
            raise DJIPError(f"BENCH.FRACTION is {fraction}; it must lie in (0, 1], for example 0.05 for 5 % of the data")
        if fraction == 1:
            return self
        generator = torch.Generator().manual_seed(seed)
        kept = []
        for label in range(self.num_classes):
            members = (self.labels == label).nonzero().flatten()
            order = torch.randperm(len(members), generator=generator)
            kept.append(members[order[: max(1, round(fraction * len(members)))]])
        index = torch.cat(kept).sort().values
        return ImageSet(self.images[index], self.labels[index], self.num_classes, self.mean, self.std)
