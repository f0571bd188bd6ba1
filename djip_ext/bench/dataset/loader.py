"""Batches made on the device that holds the images.

A loader yields what mdistiller's loaders yield: training batches ``(image, target, index)``, test
batches ``(image, target)``, images normalised float32 (B, 3, H, W).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from djip_ext.bench.dataset.augment import crop_and_flip, draw
from djip_ext.bench.dataset.imageset import ImageSet


class DeviceLoader:
    """Batches of an :class:`ImageSet`, made on the ``device`` that holds it.

    They are normalised, and optionally shuffled and augmented.  Epoch ``e`` of seed ``s`` always
    yields the same batches, whatever ran before: a resumed run sees what an uninterrupted one would
    have seen.

    Args:
        data: the images.
        batch_size: images in a batch; the last batch may be smaller.
        device: where the images are kept and the batches are made.
        shuffle: another order every epoch, and ``(image, target, index)`` batches; ``augment``
            implies it.  Without either: the stored order and ``(image, target)`` batches.
        augment: random crop with a zero border of ``padding`` pixels and horizontal flip.
        seed: of order and augmentation.
        padding: the border, in pixels.
        views: with ``augment``: 0 draws new augmentations every epoch; K > 0 takes K fixed
            augmentations of every image in turn, the same for all seeds, so that a teacher's
            answers can be kept.
        shard: (rank, processes): this process' share of every batch.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        padding: int = 4,
        views: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle or augment
        self.augment = augment
        self.seed = seed
        self.padding = padding
        self.views = views
        self.shard = shard
        self.device = torch.device(device)
        self.epoch = 0
        images = data.images
        if augment:
            images = torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))
        self._images = images.to(self.device)
        self._labels = data.labels.to(self.device)
        scale = 255 * torch.tensor(data.std, device=self.device)
        self._gain = 1 / scale
        self._offset = -255 * torch.tensor(data.mean, device=self.device) / scale

    @property
    def num_images(self) -> int:
        """Images of the whole set, over all shards."""
        return len(self.data.labels)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) -> normalised float32 (B, 3, H, W), in channels-last memory."""
        return torch.addcmul(self._offset, images.float(), self._gain).permute(0, 3, 1, 2)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        rank, processes = self.shard
        if not self.shuffle:
            for start in range(0, self.num_images, self.batch_size):
                share = slice(start + rank, start + self.batch_size, processes)
                if len(self._labels[share]):
                    yield self.normalise(self._images[share]), self._labels[share]
            return
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        view = self.view(self.epoch)
        self.epoch += 1
        order = torch.randperm(self.num_images, generator=generator)
        for batch in torch.split(order, self.batch_size):
            chosen = batch[rank::processes]
            if not len(chosen):
                continue
            index = chosen.to(self.device, non_blocking=True)  # nothing here waits for the device
            if not self.augment:
                images = self._images[index]
            elif view is None:
                images = self._augmented(index, *draw(len(index), 2 * self.padding + 1, generator))
            else:
                images = self._augmented(index, *(choice[chosen] for choice in view))
            yield self.normalise(images), self._labels[index], index

    def view(self, epoch: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """The fixed augmentation of every image in that epoch; ``None`` without ``views``."""
        if not self.views:
            return None
        generator = torch.Generator().manual_seed(epoch % self.views)
        return draw(self.num_images, 2 * self.padding + 1, generator)

    def view_batches(self, epoch: int, batch_size: int) -> Iterator[Tensor]:
        """The normalised images of that epoch's view in their stored order; needs ``views``."""
        view = self.view(epoch)
        assert view is not None
        for index in torch.split(torch.arange(self.num_images), batch_size):
            top, left, mirrored = (choice[index] for choice in view)
            images = self._augmented(index.to(self.device), top, left, mirrored)
            yield self.normalise(images)

    def _augmented(self, index: Tensor, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
        return crop_and_flip(self._images, index, self.data.images.shape[1], top, left, mirrored)
