"""Image sets held whole in memory."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from djip_ext.errors import DJIPError


@dataclass(frozen=True)
class ImageSet:
    """A labelled image set.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,).
        num_classes: labels lie in [0, num_classes).
        mean, std: how a network expects the images scaled, in units of [0, 1] pixels.
        classes: label y is named ``classes[y]``; its number where the names are not known.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) != self.num_classes:
            object.__setattr__(self, "classes", tuple(map(str, range(self.num_classes))))

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.images.shape[1], self.images.shape[2]

    def select(self, index: Tensor) -> "ImageSet":
        """The images ``index`` (K,) in that order."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def subset(self, fraction: float, seed: int = 0) -> "ImageSet":
        """Keep ``fraction`` of every class, at least one image: the few-shot setting.

        ``seed`` decides which; see :func:`few_shot`.
        """
        if fraction == 1:
            return self
        return self.select(few_shot(self.labels, self.num_classes, fraction, seed))

    def pixels(self, index: Tensor) -> Tensor:
        """The images ``index`` (K,), uint8 (K, H, W, 3)."""
        return self.images[index]

    def fingerprint(self) -> dict[str, Any]:
        """The :func:`fingerprint` of pixels and labels, which are equal where those are."""
        return fingerprint(self.images.numpy().tobytes(), self.labels)


def fingerprint(content: bytes, labels: Tensor) -> dict[str, Any]:
    """``images``, their number, and ``sha256``, 16 digits over ``content`` and ``labels`` (N,)."""
    digest = hashlib.sha256(content)
    digest.update(labels.numpy().tobytes())
    return {"images": len(labels), "sha256": digest.hexdigest()[:16]}


def few_shot(labels: Tensor, num_classes: int, fraction: float, seed: int) -> Tensor:
    """Draw ``fraction`` of every class of ``labels`` (N,) with ``seed``.

    With equal seeds a smaller fraction is a part of a larger one.

    Returns:
        indices in ascending order.

    Raises:
        DJIPError: a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise DJIPError(
            f"BENCH.FRACTION is {fraction}; it must lie in (0, 1], for example 0.05 for 5 % of the "
            "data"
        )
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label in range(num_classes):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        kept.append(members[order[: max(1, round(fraction * len(members)))]])
    return torch.cat(kept).sort().values
