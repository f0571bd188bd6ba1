"""CIFAR-100 from its official files."""

from contextlib import nullcontext
from pathlib import Path

import torch

from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.errors import DJIPError, first_line
from djip_ext.lens.normalisation import NORMALISATIONS
from djip_ext.utils.files import taking_turns


def load_cifar100(root: str | Path, train: bool, download: bool = False) -> ImageSet:
    """Read CIFAR-100 from ``root``/cifar-100-python.

    torchvision checks the MD5 of every file before it is opened.

    Raises:
        DJIPError: files are missing, damaged or cannot be fetched.
    """
    from torchvision.datasets import CIFAR100  # slow to import

    place = Path(root).resolve()
    turn = taking_turns(place / ".cifar100.lock", "CIFAR-100") if download else nullcontext()
    try:
        with turn:
            data = CIFAR100(root, train=train, download=download)
    except OSError as error:  # URLError among them
        raise DJIPError(
            f"CIFAR-100 cannot be fetched or read ({first_line(error)}); put cifar-100-python into "
            f"{place} by hand"
        ) from error
    except RuntimeError as error:
        raise DJIPError(
            f"CIFAR-100 is missing or damaged in {place}: put the official cifar-100-python folder "
            "there, name its parent with --data-root, or add BENCH.DOWNLOAD True to fetch it"
        ) from error
    images = torch.from_numpy(data.data)
    labels = torch.tensor(data.targets)
    mean, std = NORMALISATIONS["cifar100"]
    return ImageSet(images, labels, 100, mean, std, tuple(data.classes))
