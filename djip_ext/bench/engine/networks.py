"""The networks that a configuration names, teacher and student, and torch.compile of both."""

from collections.abc import Callable

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.distillers import Training
from djip_ext.bench.engine.checkpoints import load_weights
from djip_ext.bench.engine.teacher_cache import CachedTeacher
from djip_ext.bench.models import cifar_model_dict, tiny_imagenet_model_dict
from djip_ext.bench.models.families import FAMILIES, build, is_family
from djip_ext.errors import DJIPError, first_line

Factory = Callable[..., nn.Module]

OF_IMAGENETS_SIZE = ("imagenet", "imagefolder")  # data sets whose networks are ImageNet's


def models_for(dataset: str) -> dict[str, tuple[Factory, str | None]]:
    """The benchmark's own networks for ``DATASET.TYPE dataset``: name -> (factory, checkpoint).

    The checkpoint is the place of the published one in mdistiller's layout, if there is any.  A
    folder's images get ImageNet's ResNet18, not CIFAR's; its published weights are torchvision's
    (:func:`build_teacher`).
    """
    if dataset == "tiny_imagenet":
        return tiny_imagenet_model_dict
    if dataset not in OF_IMAGENETS_SIZE:
        return cifar_model_dict
    from djip_ext.bench.models import imagenet_model_dict

    for_small_images = {name: (factory, None) for name, (factory, _) in cifar_model_dict.items()}
    return for_small_images | {name: (build, None) for name, build in imagenet_model_dict.items()}


def build_model(name: str, num_classes: int, dataset: str = "cifar100") -> nn.Module:
    """Build a network with random weights.

    Args:
        name: one of the benchmark's for that data set, or ``FAMILY:NETWORK`` of another library.
        num_classes: number of logits.
        dataset: ``DATASET.TYPE``.

    Raises:
        DJIPError: an unknown name, a library that is not installed.
    """
    if is_family(name):
        return build(name, num_classes)
    known = models_for(dataset)
    if name not in known:
        raise DJIPError(
            f"there is no model '{name}'; choose from {', '.join(known)}, or FAMILY:NETWORK with "
            f"{', '.join(FAMILIES)}"
        )
    factory, _ = known[name]
    return factory(num_classes=num_classes)


def build_teacher(cfg: CfgNode, num_classes: int) -> nn.Module:
    """Build the trained teacher that ``cfg`` names.

    Its weights are those in ``BENCH.TEACHER_CHECKPOINT``, else its published ones.  Published CIFAR
    teachers lie in mdistiller's place.  Those of torchvision, timm and Hugging Face are where their
    library keeps them; it may fetch them with ``BENCH.DOWNLOAD True``.

    Raises:
        DJIPError: an unknown name, weights that are missing or of another network or number of
            classes.
    """
    name = cfg.DISTILLER.TEACHER
    dataset = cfg.DATASET.TYPE
    path = cfg.BENCH.TEACHER_CHECKPOINT
    if is_family(name) and not path:
        return build(name, num_classes, pretrained=True, download=cfg.BENCH.DOWNLOAD).eval()
    teacher = build_model(name, num_classes, dataset)
    if path:
        return load_weights(teacher, path).eval()
    if dataset in OF_IMAGENETS_SIZE:
        from djip_ext.bench.models.imagenet import PUBLISHED, published_state

        if name in PUBLISHED:
            teacher.load_state_dict(published_state(name, num_classes, cfg.BENCH.DOWNLOAD))
            return teacher.eval()
    _, published = models_for(dataset)[name]
    if not published:
        raise DJIPError(
            f"{name} has no published checkpoint; name yours with BENCH.TEACHER_CHECKPOINT PATH"
        )
    return load_weights(teacher, published).eval()


def compile_networks(distiller: Training) -> None:
    """Let torch.compile run student, teacher and lens when they are first called.

    Parameters and their names stay what they are.

    Raises:
        DJIPError: torch.compile does not work here, a C++ compiler being missing, for example.
    """
    try:
        torch.compile(torch.neg)(next(distiller.student.parameters()).detach())
    except Exception as error:  # its backends raise what they like
        raise DJIPError(
            f"BENCH.COMPILE: torch.compile does not work here ({first_line(error)}); correct that "
            "or leave it out"
        ) from error
    distiller.student.compile()
    teacher = getattr(distiller, "teacher", None)
    if teacher is None or isinstance(teacher, CachedTeacher):
        return
    teacher.compile()
    lens = getattr(teacher, "djip_lens", None)
    if lens is not None:
        lens.compile()
