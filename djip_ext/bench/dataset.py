"""The image sets by name, and mdistiller's ``get_dataset``."""

from pathlib import Path

import torch
from yacs.config import CfgNode

from ..errors import DJIPError
from ..pixels import NORMALISATIONS
from .imageset import ImageSet
from .loader import DeviceLoader
from .synthetic import make_synthetic


def load_cifar100(root: str, train: bool, download: bool = False) -> ImageSet:
    """Read CIFAR-100 from ``root``/cifar-100-python; torchvision checks the MD5 of every file before it is opened."""
    from torchvision.datasets import CIFAR100

    try:
        data = CIFAR100(root, train=train, download=download)
    except RuntimeError as error:
        raise DJIPError(
            f"CIFAR-100 is missing or damaged in {Path(root).resolve()}: put the official cifar-100-python folder there, "
            "name its parent with --data-root, or add BENCH.DOWNLOAD True to fetch it"
        ) from error
    return ImageSet(torch.from_numpy(data.data), torch.tensor(data.targets), 100, *NORMALISATIONS["cifar100"])


def load_image_sets(cfg: CfgNode) -> tuple[ImageSet, ImageSet]:
    """The training set (cut to ``BENCH.FRACTION``) and the test set that ``cfg`` names.

    Raises:
        DJIPError: an unknown ``DATASET.TYPE``, or data that are missing or damaged.
    """
    kind = cfg.DATASET.TYPE
    if kind == "cifar100":
        train = load_cifar100(cfg.BENCH.DATA_ROOT, True, cfg.BENCH.DOWNLOAD)
        test = load_cifar100(cfg.BENCH.DATA_ROOT, False, cfg.BENCH.DOWNLOAD)
    elif kind == "synthetic":
        train, test = make_synthetic(per_class=200, seed=0), make_synthetic(per_class=100, seed=1)
    else:
        raise DJIPError(f"DATASET.TYPE is '{kind}'; the embedded benchmark has 'cifar100' and 'synthetic'")
    return train.subset(cfg.BENCH.FRACTION, cfg.BENCH.FRACTION_SEED), test


def get_dataset(cfg: CfgNode) -> tuple[DeviceLoader, DeviceLoader, int, int]:
    """mdistiller's entry: ``(train_loader, test_loader, num_data, num_classes)``."""
    train, test = load_image_sets(cfg)
    device = cfg.BENCH.DEVICE
    train_loader = DeviceLoader(train, cfg.SOLVER.BATCH_SIZE, device, augment=True, seed=cfg.BENCH.SEED, views=cfg.BENCH.VIEWS)
    test_loader = DeviceLoader(test, cfg.DATASET.TEST.BATCH_SIZE, device)
    return train_loader, test_loader, train_loader.num_images, train.num_classes
