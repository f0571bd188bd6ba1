"""The image sets by name, and mdistiller's ``get_dataset``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from yacs.config import CfgNode

from ..errors import DJIPError, first_line
from ..pixels import NORMALISATIONS
from ..processes import say
from .imageset import ImageSet
from .inputs import IMAGENET, InputSpec
from .loader import DeviceLoader
from .models.families import input_spec, is_family
from .synthetic import make_synthetic

if TYPE_CHECKING:  # torchvision and PIL are imported only when there are files to read
    from .imagefolder import FolderLoader, FolderSet

FOLDERS = ("imagefolder", "imagenet")


def load_cifar100(root: str, train: bool, download: bool = False) -> ImageSet:
    """Read CIFAR-100 from ``root``/cifar-100-python; torchvision checks the MD5 of every file before it is opened."""
    from torchvision.datasets import CIFAR100

    try:
        data = CIFAR100(root, train=train, download=download)
    except OSError as error:  # URLError among them
        raise DJIPError(f"CIFAR-100 cannot be fetched or read ({first_line(error)}); put cifar-100-python into {Path(root).resolve()} by hand") from error
    except RuntimeError as error:
        raise DJIPError(
            f"CIFAR-100 is missing or damaged in {Path(root).resolve()}: put the official cifar-100-python folder there, "
            "name its parent with --data-root, or add BENCH.DOWNLOAD True to fetch it"
        ) from error
    return ImageSet(torch.from_numpy(data.data), torch.tensor(data.targets), 100, *NORMALISATIONS["cifar100"], tuple(data.classes))


def load_image_sets(cfg: CfgNode, network: str | None = None) -> tuple[ImageSet, ImageSet] | tuple[FolderSet, FolderSet]:
    """The training set (cut to ``BENCH.FRACTION``) and the test set that ``cfg`` names.

    Args:
        network: whose input size and normalisation the images of a folder get; ``None``: the teacher's.

    Raises:
        DJIPError: an unknown ``DATASET.TYPE``, or data that are missing or damaged.
    """
    kind, root = cfg.DATASET.TYPE, cfg.BENCH.DATA_ROOT
    network = network or cfg.DISTILLER.TEACHER
    if kind in FOLDERS:
        from .imagefolder import load_folders

        if kind == "imagenet" and Path(root, "imagenet").is_dir():  # mdistiller's place for it
            root = Path(root, "imagenet")
        train, test = load_folders(root, folder_spec(cfg, network), cfg.DATASET.NUM_WORKERS)
    elif kind == "cifar100":
        train = load_cifar100(root, True, cfg.BENCH.DOWNLOAD)
        test = load_cifar100(root, False, cfg.BENCH.DOWNLOAD)
    elif kind == "synthetic":
        train, test = make_synthetic(per_class=200, seed=0), make_synthetic(per_class=100, seed=1)
    else:
        raise DJIPError(f"DATASET.TYPE is '{kind}'; the embedded benchmark has cifar100, synthetic, imagenet and imagefolder")
    if is_family(network) and kind not in FOLDERS:
        say(f"note: {network} gets {kind}'s own {train.size[0]}x{train.size[1]} images and scale, not those it was published with")
    return train.subset(cfg.BENCH.FRACTION, cfg.BENCH.FRACTION_SEED), test


def folder_spec(cfg: CfgNode, network: str) -> InputSpec:
    """How the images of a folder are prepared: as ``network``'s own configuration says, else as usual for ImageNet; then as
    ``BENCH.INPUT_SIZE``, ``BENCH.MEAN`` and ``BENCH.STD`` say.  What came out is printed for a network of another library."""
    bench, spec = cfg.BENCH, IMAGENET
    if is_family(network) and not (bench.INPUT_SIZE and bench.MEAN and bench.STD):
        spec = input_spec(network, bench.DOWNLOAD)
    if bench.INPUT_SIZE:
        spec = spec.at(bench.INPUT_SIZE)
    spec = replace(spec, **{name: tuple(map(float, bench[name.upper()])) for name in ("mean", "std") if bench[name.upper()]})
    if is_family(network):
        say(f"note: images for {network}: {spec}")
    return spec


def make_loader(data: ImageSet | FolderSet, batch_size: int, device: torch.device | str = "cpu", **how: Any) -> DeviceLoader | FolderLoader:
    """The loader for that kind of set; ``how`` as :class:`DeviceLoader` takes it."""
    if isinstance(data, ImageSet):
        return DeviceLoader(data, batch_size, device, **how)
    from .imagefolder import FolderLoader

    if how.pop("views", 0):
        raise DJIPError("BENCH.VIEWS keeps views of every image in memory, which a folder's images are too many for; set it to 0")
    return FolderLoader(data, batch_size, device, **how)


def load_run_sets(cfg: CfgNode) -> tuple[ImageSet, ImageSet] | tuple[FolderSet, FolderSet]:
    """The training set and the test set of a run: for its teacher, or for its student when it has none."""
    return load_image_sets(cfg, cfg.DISTILLER.STUDENT if cfg.DISTILLER.TYPE == "NONE" else cfg.DISTILLER.TEACHER)


def get_dataset(cfg: CfgNode) -> tuple[DeviceLoader | FolderLoader, DeviceLoader | FolderLoader, int, int]:
    """mdistiller's entry: ``(train_loader, test_loader, num_data, num_classes)``."""
    train, test = load_run_sets(cfg)
    device = cfg.BENCH.DEVICE
    if cfg.BENCH.VIEWS and not cfg.BENCH.AUGMENT:
        raise DJIPError(f"BENCH.VIEWS is {cfg.BENCH.VIEWS}, but without augmentation (BENCH.AUGMENT False) an image has one view; set BENCH.VIEWS 0")
    how = {"shuffle": True, "augment": cfg.BENCH.AUGMENT, "seed": cfg.BENCH.SEED, "views": cfg.BENCH.VIEWS}
    train_loader = make_loader(train, cfg.SOLVER.BATCH_SIZE, device, **how)
    test_loader = make_loader(test, cfg.DATASET.TEST.BATCH_SIZE, device)
    return train_loader, test_loader, train_loader.num_images, train.num_classes
