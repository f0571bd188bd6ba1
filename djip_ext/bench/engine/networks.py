"""The networks that a configuration names, teacher and student, and torch.compile of both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import FOLDERS
from djip_ext.bench.engine.checkpoints import load_weights
from djip_ext.bench.engine.teacher_cache import CachedTeacher
from djip_ext.bench.models import cifar_model_dict
from djip_ext.bench.models.families import FAMILIES, build, is_family, torchvision_state
from djip_ext.errors import DJIPError, first_line


def models_for(dataset: str) -> dict[str, tuple[Callable[..., nn.Module], str | None]]:
    """The benchmark's own networks for ``DATASET.TYPE dataset``; a folder's images get ImageNet's ResNet18, not CIFAR's."""
    if dataset not in FOLDERS:
        return cifar_model_dict
    from djip_ext.bench.models.imagenet import imagenet_model_dict

    return {
        **{name: (factory, None) for name, (factory, _) in cifar_model_dict.items()},
        **imagenet_model_dict,
    }


def build_model(name: str, num_classes: int, dataset: str = "cifar100") -> nn.Module:
    """A freshly initialised network: one of the benchmark's for that data set, or ``FAMILY:NETWORK`` of another library.

    Raises:
        DJIPError: an unknown name, a library that is not installed.
    """
    if is_family(name):
        return build(name, num_classes)
    known = models_for(dataset)
    if name not in known:
        raise DJIPError(
            f"there is no model '{name}'; choose from {', '.join(known)}, or FAMILY:NETWORK with {', '.join(FAMILIES)}"
        )
    return known[name][0](num_classes=num_classes)


def build_teacher(cfg: CfgNode, num_classes: int) -> nn.Module:
    """The trained teacher that ``cfg`` names: with the weights in ``BENCH.TEACHER_CHECKPOINT``, else its published ones.

    Published CIFAR teachers lie in mdistiller's place.  Those of torchvision, timm and Hugging Face are where their library keeps
    them; it may fetch them with ``BENCH.DOWNLOAD True``.
    """
    name, dataset, path = cfg.DISTILLER.TEACHER, cfg.DATASET.TYPE, cfg.BENCH.TEACHER_CHECKPOINT
    if is_family(name) and not path:
        return build(name, num_classes, pretrained=True, download=cfg.BENCH.DOWNLOAD).eval()
    teacher = build_model(name, num_classes, dataset)
    published = None if is_family(name) else models_for(dataset)[name][1]
    if dataset in FOLDERS and published and not path:
        if num_classes != 1000:
            known = f"{name}'s published weights know ImageNet's 1000 classes, the data have {num_classes}"
            raise DJIPError(f"{known}; name yours with BENCH.TEACHER_CHECKPOINT")
        teacher.load_state_dict(torchvision_state(f"{published}@IMAGENET1K_V1", cfg.BENCH.DOWNLOAD))
        return teacher.eval()
    if not (path or published):
        raise DJIPError(
            f"{name} has no published checkpoint; name yours with BENCH.TEACHER_CHECKPOINT PATH"
        )
    return load_weights(teacher, path or published).eval()


def compile_networks(distiller: nn.Module) -> None:
    """Let torch.compile run student, teacher and lens when they are first called; parameters and their names stay what they are.

    Raises:
        DJIPError: torch.compile does not work here, for want of a C++ compiler, say.
    """
    try:
        torch.compile(torch.neg)(next(distiller.student.parameters()).detach())
    except Exception as error:  # its backends raise what they like
        raise DJIPError(
            f"BENCH.COMPILE: torch.compile does not work here ({first_line(error)}); mend that or leave it out"
        ) from error
    distiller.student.compile()
    teacher = getattr(distiller, "teacher", None)
    if teacher is not None and not isinstance(teacher, CachedTeacher):
        teacher.compile()
        if (lens := getattr(teacher, "djip_lens", None)) is not None:
            lens.compile()
