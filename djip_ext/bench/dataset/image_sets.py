"""The image sets and loaders that a configuration names, and mdistiller's ``get_dataset``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from djip_ext.bench.dataset.cifar100 import load_cifar100
from djip_ext.bench.dataset.imageset import ImageSet, few_shot
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.protocols import LabelledImages, Loader
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.device import resolve_device
from djip_ext.bench.models.families import input_spec, is_family
from djip_ext.bench.models.input_spec import IMAGENET, TINY_IMAGENET, InputSpec, triple
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.errors import DJIPError
from djip_ext.utils.distributed import say

# torchvision and PIL, which imagefolder.py needs, are imported only when there are files to read.

__all__ = [
    "FOLDERS",
    "folder_spec",
    "get_dataset",
    "get_test_loader",
    "hold_out",
    "load_cifar100",
    "load_image_sets",
    "load_run_sets",
    "make_loader",
]

FOLDERS = ("imagefolder", "imagenet", "tiny_imagenet")  # the DATASET.TYPEs read from image files
SUBFOLDERS = {"imagenet": "imagenet", "tiny_imagenet": "tiny-imagenet-200"}  # mdistiller's places


def load_image_sets(
    cfg: CfgNode, network: str | None = None
) -> tuple[LabelledImages, LabelledImages]:
    """Load the training set (cut to ``BENCH.FRACTION``) and the test set that ``cfg`` names.

    With ``BENCH.HOLDOUT`` a part of that training set takes the test set's place.

    Args:
        network: whose input size and normalisation the images of a folder get; ``None``: the
            teacher's.

    Raises:
        DJIPError: an unknown ``DATASET.TYPE``, or data that are missing or damaged.
    """
    kind = cfg.DATASET.TYPE
    root = cfg.BENCH.DATA_ROOT
    network = network or cfg.DISTILLER.TEACHER
    train: LabelledImages
    test: LabelledImages
    if kind in FOLDERS:
        from djip_ext.bench.dataset.imagefolder import load_folders

        spec = folder_spec(cfg, network)
        train, test = load_folders(folder_root(cfg), spec, cfg.DATASET.NUM_WORKERS)
    elif kind == "cifar100":
        train = load_cifar100(root, True, cfg.BENCH.DOWNLOAD)
        test = load_cifar100(root, False, cfg.BENCH.DOWNLOAD)
    elif kind == "synthetic":
        train = make_synthetic(per_class=200, seed=0)
        test = make_synthetic(per_class=100, seed=1)
    else:
        raise DJIPError(
            f"DATASET.TYPE is '{kind}'; the embedded benchmark has cifar100, synthetic, imagenet, "
            "tiny_imagenet and imagefolder"
        )
    if is_family(network) and kind not in FOLDERS:
        height, width = train.size
        say(
            f"note: {network} gets {kind}'s own {height}x{width} images and scale, not those it "
            "was published with"
        )
    train = train.subset(cfg.BENCH.FRACTION, cfg.BENCH.FRACTION_SEED)
    if cfg.BENCH.HOLDOUT:
        return hold_out(train, cfg.BENCH.HOLDOUT, cfg.BENCH.FRACTION_SEED)
    return train, test


def hold_out(
    data: LabelledImages, fraction: float, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Split ``data`` into (what is left, ``fraction`` of every class), drawn with ``seed``.

    Raises:
        DJIPError: a fraction outside (0, 1), or one that takes all images of a class.
    """
    if not 0 < fraction < 1:
        raise DJIPError(f"BENCH.HOLDOUT is {fraction}; it must lie in (0, 1), or be 0 for none")
    held = few_shot(data.labels, data.num_classes, fraction, seed)
    left = torch.ones(len(data.labels), dtype=torch.bool)
    left[held] = False
    before = data.labels.bincount(minlength=data.num_classes)
    after = data.labels[left].bincount(minlength=data.num_classes)
    if bool(((before > 0) & (after == 0)).any()):
        raise DJIPError(
            f"BENCH.HOLDOUT {fraction} takes every image of a class; hold out less, or use more "
            "images of each class"
        )
    return data.select(left.nonzero().flatten()), data.select(held)


def folder_root(cfg: CfgNode) -> Path:
    """The folder of ``train`` and ``val``: mdistiller's in the data root, else the root itself."""
    root = Path(cfg.BENCH.DATA_ROOT)
    place = root / SUBFOLDERS.get(cfg.DATASET.TYPE, "")
    return place if place.is_dir() else root


def folder_spec(cfg: CfgNode, network: str) -> InputSpec:
    """How the images of a folder are prepared.

    As ``network``'s own configuration says, else as usual for the data set; then as
    ``BENCH.INPUT_SIZE``, ``BENCH.MEAN`` and ``BENCH.STD`` say.  The result is printed for a network
    of another library.
    """
    bench = cfg.BENCH
    spec = TINY_IMAGENET if cfg.DATASET.TYPE == "tiny_imagenet" else IMAGENET
    if is_family(network) and not (bench.INPUT_SIZE and bench.MEAN and bench.STD):
        spec = input_spec(network, bench.DOWNLOAD)
    if bench.INPUT_SIZE:
        spec = spec.at(bench.INPUT_SIZE)
    if bench.MEAN:
        spec = replace(spec, mean=triple(bench.MEAN))
    if bench.STD:
        spec = replace(spec, std=triple(bench.STD))
    if is_family(network):
        say(f"note: images for {network}: {spec}")
    return spec


def make_loader(
    data: LabelledImages, batch_size: int, device: torch.device | str = "cpu", **how: Any
) -> Loader:
    """The loader for that kind of set; ``how`` as :class:`DeviceLoader` takes it."""
    if isinstance(data, ImageSet):
        return DeviceLoader(data, batch_size, device, **how)
    from djip_ext.bench.dataset.imagefolder import FolderLoader, FolderSet

    assert isinstance(data, FolderSet)
    if how.pop("views", 0):
        raise DJIPError(
            "BENCH.VIEWS keeps views of every image in memory, which a folder's images are too "
            "many for; set it to 0"
        )
    return FolderLoader(data, batch_size, device, **how)


def load_run_sets(cfg: CfgNode) -> tuple[LabelledImages, LabelledImages]:
    """Load both sets of a run: for its teacher, or for its student when it has none."""
    names = cfg.DISTILLER
    return load_image_sets(cfg, names.TEACHER if needs_teacher(names.TYPE) else names.STUDENT)


def get_dataset(cfg: CfgNode) -> tuple[Loader, Loader, int, int]:
    """mdistiller's entry point.

    Returns:
        ``(train_loader, test_loader, num_data, num_classes)``; the loaders make their batches on
        ``BENCH.DEVICE``.

    Raises:
        DJIPError: as :func:`load_image_sets`, and for views without augmentation.
    """
    bench = cfg.BENCH
    train, test = load_run_sets(cfg)
    device = resolve_device(bench.DEVICE)
    if bench.VIEWS and not bench.AUGMENT:
        raise DJIPError(
            f"BENCH.VIEWS is {bench.VIEWS}, but without augmentation (BENCH.AUGMENT False) an "
            "image has one view; set BENCH.VIEWS 0"
        )
    train_loader = make_loader(
        train,
        cfg.SOLVER.BATCH_SIZE,
        device,
        shuffle=True,
        augment=bench.AUGMENT,
        seed=bench.SEED,
        views=bench.VIEWS,
    )
    test_loader = make_loader(test, cfg.DATASET.TEST.BATCH_SIZE, device)
    return train_loader, test_loader, train_loader.num_images, train.num_classes


def get_test_loader(cfg: CfgNode, network: str) -> Loader:
    """The test batches alone, with images prepared for ``network``.

    Raises:
        DJIPError: as :func:`load_image_sets`.
    """
    _, test = load_image_sets(cfg, network)
    return make_loader(test, cfg.DATASET.TEST.BATCH_SIZE, resolve_device(cfg.BENCH.DEVICE))
