"""ImageNet's validation images, as mdistiller's tools/eval.py asks for them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from djip_ext.bench.dataset.imagefolder import FolderLoader, load_folder
from djip_ext.bench.device import resolve_device
from djip_ext.bench.models.input_spec import IMAGENET, triple

VALIDATION = Path("data", "imagenet", "val")  # mdistiller's place, from the working directory
WORKERS = 16


def get_imagenet_val_loader(
    val_batch_size: int,
    mean: Sequence[float] = IMAGENET.mean,
    std: Sequence[float] = IMAGENET.std,
) -> FolderLoader:
    """The test batches of ``./data/imagenet/val``, a folder per class, on a GPU if there is one.

    Raises:
        DJIPError: the folder is missing or empty.
    """
    spec = replace(IMAGENET, mean=triple(mean), std=triple(std))
    data = load_folder(VALIDATION, spec, WORKERS)
    return FolderLoader(data, val_batch_size, resolve_device("auto"))
