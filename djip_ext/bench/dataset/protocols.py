"""What the rest of the package needs of an image set and of a loader, in memory or on the disk."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class LabelledImages(Protocol):
    """A labelled image set.

    :class:`~djip_ext.bench.dataset.imageset.ImageSet` describes the members.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def mean(self) -> tuple[float, float, float]: ...

    @property
    def std(self) -> tuple[float, float, float]: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def select(self, index: Tensor) -> "LabelledImages": ...

    def subset(self, fraction: float, seed: int = 0) -> "LabelledImages": ...

    def pixels(self, index: Tensor) -> Tensor: ...

    def fingerprint(self) -> dict[str, Any]: ...


class Loader(Protocol):
    """Batches of a set: ``(image, target, index)`` when shuffled, else ``(image, target)``.

    ``epoch`` selects the order and the augmentation of the next pass and grows by one with each;
    ``shard`` is (rank, processes), this process' share of every batch.
    """

    epoch: int
    device: torch.device
    batch_size: int
    shard: tuple[int, int]

    @property
    def data(self) -> LabelledImages: ...

    @property
    def num_images(self) -> int: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]: ...
