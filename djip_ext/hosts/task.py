"""What a fit needs, taken from a host: its teacher with the host's checkpoint, and its images without augmentation."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.engine.run import load_weights
from djip_ext.errors import DJIPError
from djip_ext.hosts.extra_distillers import module_name
from djip_ext.hosts.workarounds import Host, apply_cures

if TYPE_CHECKING:
    from djip_ext.bench.dataset.imagefolder import FolderSet


@dataclass(frozen=True)
class HostTask:
    """A teacher in eval mode and the images it was trained on; ``dataset`` and ``teacher_name`` as the host's YAML has them."""

    teacher: nn.Module
    train: "ImageSet | FolderSet"
    test: "ImageSet | FolderSet"
    dataset: str
    teacher_name: str


def read_host(
    checkout: str | Path,
    cfg_path: str | Path,
    package: str = "mdistiller",
    limit: int = 0,
    options: Sequence[str] = (),
) -> HostTask:
    """Read the task that ``cfg_path``, a YAML file of the host, describes.

    Args:
        checkout: folder of mdistiller or of a fork; its ``package`` is imported.
        limit: read at most this many images of each set, spread evenly over it; 0: all.  Images that the host keeps in
            files (ImageNet) are held in memory, so a limit is asked for there.
        options: keys and values in turn that override the file.

    Raises:
        DJIPError: no such package, file, teacher or checkpoint; a data set without a Normalize to take the scale from.
    """
    checkout = Path(checkout).resolve()
    distillers = module_name(package, "distillers").replace(".", "/")
    if not (checkout / distillers).is_dir():
        raise DJIPError(
            f"{checkout} has no {distillers}; --host takes a checkout of mdistiller or of a fork"
        )
    if not Path(cfg_path).is_file():
        raise DJIPError(
            f"there is no configuration {cfg_path}; --cfg takes one of the host's YAML files"
        )
    apply_cures(
        Host(package, checkout / "tools" / "train.py", tag="", resume=False),
        switched_off=("cpu", "resume", "folders"),
    )
    cfg = _member(package, "engine.cfg").CFG.clone()
    try:
        cfg.merge_from_file(str(cfg_path))
        cfg.merge_from_list(list(options))
    except (KeyError, ValueError, AssertionError) as error:
        raise DJIPError(
            f"{cfg_path}: {error.args[0] if error.args else error}; is it a file of this host?"
        ) from error
    train_loader, test_loader, _, num_classes = _member(package, "dataset").get_dataset(cfg)
    mean, std = _scale(test_loader.dataset)
    train, test = (
        _images(loader.dataset, test_loader.dataset.transform, num_classes, mean, std, limit)
        for loader in (train_loader, test_loader)
    )
    return HostTask(
        _teacher(package, cfg, num_classes), train, test, cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER
    )


def _member(package: str, name: str) -> Any:
    name = module_name(package, name)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DJIPError(
            f"the host's {name} cannot be imported ({error}); without it fit the lens in Python, by djip_ext.fit_lens"
        ) from error


def _teacher(package: str, cfg: Any, num_classes: int) -> nn.Module:
    models, name, kind = _member(package, "models"), cfg.DISTILLER.TEACHER, cfg.DATASET.TYPE
    known = getattr(models, {"cifar100": "cifar_model_dict"}.get(kind, f"{kind}_model_dict"), {})
    if name not in known:
        raise DJIPError(
            f"the host has no teacher '{name}' for {kind}; it has {', '.join(known) or 'none'}"
        )
    if kind == "imagenet":
        return known[name](pretrained=True).eval()
    build, checkpoint = known[name]
    if checkpoint is None:
        raise DJIPError(
            f"the host has no checkpoint for '{name}'; choose a DISTILLER.TEACHER that it has trained"
        )
    if not Path(checkpoint).is_file():
        raise DJIPError(
            f"the host's teacher {Path(checkpoint).resolve()} is missing; fetch its checkpoints into download_ckpts, as its README says"
        )
    return load_weights(build(num_classes=num_classes), checkpoint).eval()


def _scale(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the Normalize among the transforms of ``dataset``."""
    steps = getattr(getattr(dataset, "transform", None), "transforms", [])
    for step in steps:
        if type(step).__name__ == "Normalize":
            return tuple(map(float, step.mean)), tuple(map(float, step.std))
    raise DJIPError(
        f"the host's {type(dataset).__name__} has no Normalize among its transforms; fit with `djip fit` and the scale by hand"
    )


def _images(
    dataset: Any, transform: Any, num_classes: int, mean: Any, std: Any, limit: int
) -> ImageSet:
    """The images of ``dataset`` as bytes: its own array where it has one, else each through the test ``transform``."""
    count = len(dataset)
    names = tuple(map(str, getattr(dataset, "classes", ())))
    chosen = (
        torch.arange(count)
        if not limit or limit >= count
        else torch.linspace(0, count - 1, limit).long()
    )
    if hasattr(dataset, "data") and hasattr(dataset, "targets"):
        images = torch.as_tensor(dataset.data)[chosen]
        return ImageSet(
            images, torch.as_tensor(dataset.targets)[chosen], num_classes, mean, std, names
        )
    if not limit:
        raise DJIPError(
            f"the host reads its {count} images from files; say how many to fit on with --images"
        )
    augmented, dataset.transform = dataset.transform, transform
    samples = [dataset[i] for i in chosen.tolist()]
    dataset.transform = augmented
    pixels = torch.stack([_bytes(sample[0], mean, std) for sample in samples])
    return ImageSet(
        pixels, torch.tensor([sample[1] for sample in samples]), num_classes, mean, std, names
    )


def _bytes(image: Tensor, mean: Any, std: Any) -> Tensor:
    """Normalised (3, H, W) -> uint8 (H, W, 3)."""
    pixel = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (pixel * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
