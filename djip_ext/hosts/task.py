"""What a fit needs from a host: its teacher with the host's checkpoint, and its plain images."""

import importlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.protocols import LabelledImages
from djip_ext.bench.engine.run import load_weights
from djip_ext.errors import DJIPError, first_line
from djip_ext.hosts.extra_distillers import module_name
from djip_ext.hosts.offline import no_downloads
from djip_ext.hosts.workarounds import Host, apply_workarounds

# transforms, by their names in torchvision, after which an image has the pixels it had before
PLAIN = {"ToTensor", "ToImage", "ToDtype", "PILToTensor", "ConvertImageDtype", "Normalize"}


@dataclass(frozen=True)
class HostTask:
    """A teacher in eval mode and the images it was trained on.

    ``dataset`` and ``teacher_name`` are what the host's YAML calls them.
    """

    teacher: nn.Module
    train: LabelledImages
    test: LabelledImages
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

    Nothing is downloaded, although the host's own code may want to.

    Args:
        checkout: folder of mdistiller or of a fork; its ``package`` is imported.
        limit: of images that the host keeps in files (ImageNet), or that its test transform
            resizes, read at most this many of each set, spread evenly over it: they are then held
            in memory.  Sets that the host itself holds in memory are taken whole.
        options: keys and values in turn that override the file.

    Raises:
        DJIPError: no such package, file, teacher or checkpoint; a data set without a Normalize to
            take the scale from; the host's own code failed.
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
    host = Host(package, checkout / "tools" / "train.py", tag="", resume=False)
    apply_workarounds(host, switched_off=("cpu", "resume", "folders", "torchrun"))
    with no_downloads():
        cfg = _configuration(package, cfg_path, options)
        get_dataset = _member(package, "dataset").get_dataset
        with _running("get_dataset", checkout, cfg_path):
            train_loader, test_loader, _, num_classes = get_dataset(cfg)
        mean, std = _scale(test_loader.dataset)
        plain = test_loader.dataset.transform
        with _running("data set", checkout, cfg_path):
            train = _images(train_loader.dataset, plain, num_classes, mean, std, limit)
            test = _images(test_loader.dataset, plain, num_classes, mean, std, limit)
        with _running("teacher", checkout, cfg_path):
            teacher = _teacher(package, cfg, num_classes)
    return HostTask(teacher, train, test, cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER)


def _configuration(package: str, cfg_path: str | Path, options: Sequence[str]) -> Any:
    """The host's configuration: its schema, the YAML file, and ``options``."""
    cfg = _member(package, "engine.cfg").CFG.clone()
    try:
        cfg.merge_from_file(str(cfg_path))
        cfg.merge_from_list(list(options))
    except (
        KeyError,
        ValueError,
        AssertionError,
        AttributeError,
        TypeError,
        yaml.YAMLError,
    ) as error:
        raise DJIPError(f"{cfg_path}: {first_line(error)}; is it a file of this host?") from error
    return cfg


@contextmanager
def _running(what: str, checkout: Path, cfg_path: str | Path) -> Iterator[None]:
    """Turn what the host's own code raises into one line with the place in ``checkout``.

    Its scripts may set what the YAML file leaves open, by flags of their own.
    """
    try:
        yield
    except DJIPError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(checkout)]
        last = (own or frames)[-1]
        raise DJIPError(
            f"the host's {what} fails at {last.filename}:{last.lineno} with "
            f"{type(error).__name__}: {first_line(error)}; where its scripts set by flags what "
            f"{cfg_path} leaves open, add KEY VALUE pairs, or fit in Python by djip_ext.fit_lens"
        ) from error


def _member(package: str, name: str) -> Any:
    name = module_name(package, name)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DJIPError(
            f"the host's {name} cannot be imported ({error}); "
            "without it fit the lens in Python, by djip_ext.fit_lens"
        ) from error


def _teacher(package: str, cfg: Any, num_classes: int) -> nn.Module:
    """The teacher that ``cfg`` names, with the host's checkpoint."""
    models = _member(package, "models")
    name = cfg.DISTILLER.TEACHER
    kind = cfg.DATASET.TYPE
    known = getattr(models, {"cifar100": "cifar_model_dict"}.get(kind, f"{kind}_model_dict"), {})
    if name not in known:
        raise DJIPError(
            f"the host has no teacher '{name}' for {kind}; it has {', '.join(known) or 'none'}"
        )
    if kind == "imagenet":
        network: nn.Module = known[name](pretrained=True)
        return network.eval()
    build, checkpoint = known[name]
    if checkpoint is None:
        raise DJIPError(
            f"the host has no checkpoint for '{name}'; "
            "choose a DISTILLER.TEACHER that it has trained"
        )
    if not Path(checkpoint).is_file():
        raise DJIPError(
            f"the host's teacher {Path(checkpoint).resolve()} is missing; "
            "fetch its checkpoints into download_ckpts, as its README says"
        )
    return load_weights(build(num_classes=num_classes), checkpoint).eval()


def _scale(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the Normalize among the transforms of ``dataset``."""
    steps = getattr(getattr(dataset, "transform", None), "transforms", [])
    for step in steps:
        if type(step).__name__ == "Normalize":
            return tuple(map(float, step.mean)), tuple(map(float, step.std))
    raise DJIPError(
        f"the host's {type(dataset).__name__} has no Normalize among its transforms; "
        "fit with `djip fit` and the scale by hand"
    )


def _images(
    dataset: Any, transform: Any, num_classes: int, mean: Any, std: Any, limit: int
) -> ImageSet:
    """The images of ``dataset`` as bytes.

    They are its own array, all of it, where it has one that the test ``transform`` only scales,
    else each of ``limit`` images through that.
    """
    count = len(dataset)
    names = tuple(map(str, getattr(dataset, "classes", ())))
    steps = {type(step).__name__ for step in getattr(transform, "transforms", [])}
    if steps <= PLAIN and hasattr(dataset, "data") and hasattr(dataset, "targets"):
        images = torch.as_tensor(dataset.data)
        labels = torch.as_tensor(dataset.targets)
        return ImageSet(images, labels, num_classes, mean, std, names)
    if not limit:
        raise DJIPError(
            f"the host prepares its {count} images one by one, from files or by its transform; say "
            "how many to fit on with --images"
        )
    chosen = torch.linspace(0, count - 1, min(limit, count)).long()
    augmented = dataset.transform
    dataset.transform = transform
    samples = [dataset[i] for i in chosen.tolist()]
    dataset.transform = augmented
    pixels = torch.stack([_bytes(sample[0], mean, std) for sample in samples])
    labels = torch.tensor([sample[1] for sample in samples])
    return ImageSet(pixels, labels, num_classes, mean, std, names)


def _bytes(image: Tensor, mean: Any, std: Any) -> Tensor:
    """Normalised (3, H, W) -> uint8 (H, W, 3)."""
    pixel = image * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (pixel * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
