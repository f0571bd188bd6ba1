"""Image sets that stay on the disk: ``train/CLASS/*`` and ``val/CLASS/*``, as ImageNet's."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from djip_ext.bench.dataset.imageset import few_shot, fingerprint
from djip_ext.bench.models.input_spec import InputSpec
from djip_ext.errors import DJIPError
from djip_ext.inputs.pixel_modes import UNREADABLE, to_rgb
from djip_ext.lens.normalisation import Normalisation


@dataclass(frozen=True)
class FolderSet:
    """A labelled image set of which only the file names are in memory.

    The counterpart of :class:`ImageSet`.

    Attributes:
        paths: (N,) bytes: an array, since a list of strings is copied piece by piece into every
            worker.
        labels: int64 (N,).
        classes: the names of the class folders in sorted order; label y is ``classes[y]``.
        spec: how the images are prepared.
        workers: processes that read images; 0: this one.
    """

    paths: np.ndarray
    labels: Tensor
    classes: tuple[str, ...]
    spec: InputSpec
    workers: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.spec.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.spec.std

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images as a network sees them."""
        return self.spec.size

    def select(self, index: Tensor) -> "FolderSet":
        """The images ``index`` (K,) in that order."""
        return replace(self, paths=self.paths[index.numpy()], labels=self.labels[index])

    def subset(self, fraction: float, seed: int = 0) -> "FolderSet":
        """Keep ``fraction`` of every class, as :meth:`ImageSet.subset` does."""
        if fraction == 1:
            return self
        return self.select(few_shot(self.labels, self.num_classes, fraction, seed))

    def pixels(self, index: Tensor) -> Tensor:
        """The images ``index`` (K,) without augmentation, uint8 (K, H, W, 3)."""
        files = _Files(self, augment=False)
        return torch.stack([files[i, 0][0] for i in index.tolist()])

    def fingerprint(self) -> dict[str, Any]:
        """As :meth:`ImageSet.fingerprint`, over the files' names, ``CLASS/FILE``."""
        names = (b"/".join(bytes(path).split(b"/")[-2:]) for path in self.paths)
        return fingerprint(b"\n".join(names), self.labels)


class _Files(Dataset[tuple[Tensor, int, int]]):
    """Reads, crops and scales; an item is asked for by (index, seed of its augmentation)."""

    def __init__(self, data: FolderSet, augment: bool) -> None:
        self.data = data
        spec = data.spec
        how = InterpolationMode(spec.interpolation)
        whole = [
            transforms.Resize(spec.resize, interpolation=how),
            transforms.CenterCrop(spec.size),
        ]
        flip = transforms.RandomHorizontalFlip()
        if not augment:
            steps = whole
        elif spec.train_view == "rotation":
            steps = [*whole, transforms.RandomRotation(20), flip]
        else:
            steps = [transforms.RandomResizedCrop(spec.size, interpolation=how), flip]
        self.transform = transforms.Compose(steps)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        index, seed = key
        path = os.fsdecode(self.data.paths[index])
        try:
            image = to_rgb(Image.open(path))
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise DJIPError(
                f"{path} cannot be read as an image ({reason}); replace or remove it"
            ) from error
        # what is drawn depends on the image and the epoch, not on who reads it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pixels = np.asarray(self.transform(image))
        return torch.from_numpy(pixels.copy()), int(self.data.labels[index]), index


class _BatchSampler:
    """The batches of the coming epoch, as (index, seed) pairs.

    The workers' loader iterates it anew every epoch.
    """

    def __init__(self) -> None:
        self.batches: list[Tensor] = []
        self.seed = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(i, (self.seed * 2_000_003 + i) % 2**63) for i in batch.tolist()]

    def __len__(self) -> int:
        return len(self.batches)


class FolderLoader:
    """Batches of a :class:`FolderSet`; the counterpart of :class:`DeviceLoader`.

    Epoch ``e`` of seed ``s`` yields the same batches whatever ran before and however many workers
    read.

    Args:
        data: the images.
        batch_size: images in a batch, over all processes; the last batch may be smaller.
        device: where the batches go.
        shuffle: another order every epoch, and ``(image, target, index)`` batches; ``augment``
            implies it.
        augment: the training view that the set's ``spec`` names.
        seed: of order and augmentation.
        shard: (rank, processes): this process' share of every batch.
    """

    views = 0  # images are never held, so there are no fixed views of them

    def __init__(
        self,
        data: FolderSet,
        batch_size: int,
        device: torch.device | str = "cpu",
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle or augment
        self.augment = augment
        self.seed = seed
        self.device = torch.device(device)
        self.shard = shard
        self.epoch = 0
        self._normalisation = Normalisation(data.mean, data.std)
        self._sampler = _BatchSampler()
        self._reader: DataLoader[Any] = DataLoader(
            _Files(data, augment),
            batch_sampler=self._sampler,
            num_workers=data.workers,
            persistent_workers=data.workers > 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else every epoch would draw from the global one
        )

    @property
    def num_images(self) -> int:
        """Images of the whole set, over all shards."""
        return len(self.data.labels)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.arange(self.num_images)
        if self.shuffle:
            self._sampler.seed = 1_000_003 * self.seed + self.epoch
            generator = torch.Generator().manual_seed(self._sampler.seed)
            order = torch.randperm(self.num_images, generator=generator)
            self.epoch += 1
        rank, processes = self.shard
        shares = (batch[rank::processes] for batch in torch.split(order, self.batch_size))
        self._sampler.batches = [share for share in shares if len(share)]
        try:
            for batch in self._reader:
                pixels, label, index = (part.to(self.device, non_blocking=True) for part in batch)
                image = self._normalisation.to_network(pixels.permute(0, 3, 1, 2).float())
                yield (image, label, index) if self.shuffle else (image, label)
        except DJIPError as error:  # a worker's error comes wrapped in its traceback
            raise DJIPError(str(error).strip().splitlines()[-1].split("DJIPError: ")[-1]) from error


def load_folders(root: str | Path, spec: InputSpec, workers: int) -> tuple[FolderSet, FolderSet]:
    """Find the images of ``root``/train and ``root``/val (or ``root``/test), a folder per class.

    Raises:
        DJIPError: a folder that is missing or empty, classes that differ between the two.
    """
    root = Path(root)
    held_out = root / "val"
    if not held_out.is_dir() and (root / "test").is_dir():
        held_out = root / "test"
    train = load_folder(root / "train", spec, workers)
    test = load_folder(held_out, spec, workers)
    if train.classes != test.classes:
        only = sorted(set(train.classes) ^ set(test.classes))
        raise DJIPError(
            f"{root / 'train'} and {held_out} hold different classes, for example {only[0]}; both "
            "need the same class folders"
        )
    return train, test


def load_folder(folder: Path, spec: InputSpec, workers: int) -> FolderSet:
    """Find the images of ``folder``/CLASS/*.

    Raises:
        DJIPError: the folder is missing, or holds no images by class.
    """
    if not folder.is_dir():
        raise DJIPError(
            f"there is no folder {folder.resolve()}; --data-root (BENCH.DATA_ROOT) names the "
            "folder that holds train/CLASS/* and val/CLASS/*"
        )
    try:
        found = ImageFolder(str(folder))
    except FileNotFoundError as error:
        reason = " ".join(str(error).split()).split(" Supported")[0].rstrip(".")
        raise DJIPError(
            f"{folder} holds no images by class ({reason}); it needs a folder of image files for "
            "every class"
        ) from error
    paths = np.array([os.fsencode(path) for path, _ in found.samples])
    return FolderSet(
        paths,
        torch.tensor([label for _, label in found.samples]),
        tuple(found.classes),
        spec,
        workers,
    )
