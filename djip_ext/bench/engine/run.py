"""From a configuration to a finished run: what mdistiller's tools/train.py does, as functions.

The parts are in :mod:`~djip_ext.bench.engine.checkpoints`, :mod:`~djip_ext.bench.engine.networks` and
:mod:`~djip_ext.bench.engine.record`; their functions can be imported from here too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import get_dataset
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.distillers import distiller_dict
from djip_ext.bench.engine.checkpoints import load_weights, read_weights
from djip_ext.bench.engine.networks import (
    build_model,
    build_teacher,
    compile_networks,
    models_for,
)
from djip_ext.bench.engine.record import (
    behind_lens,
    code_version,
    lens_record,
    run_folder,
    run_record,
)
from djip_ext.bench.engine.teacher_cache import cached_teacher
from djip_ext.bench.engine.trainer import trainer_dict
from djip_ext.errors import DJIPError
from djip_ext.utils.distributed import say
from djip_ext.utils.files import claimed

if TYPE_CHECKING:
    from djip_ext.bench.dataset.imagefolder import FolderSet

__all__ = [
    "behind_lens",
    "build_distiller",
    "build_model",
    "build_teacher",
    "code_version",
    "compile_networks",
    "lens_record",
    "load_weights",
    "models_for",
    "read_weights",
    "resolve_device",
    "run_folder",
    "run_record",
    "scaled_as",
    "train",
]


def resolve_device(name: str) -> torch.device:
    """``auto``: a GPU when there is one; anything else as torch spells it.  Raises DJIPError when it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DJIPError(
            f"BENCH.DEVICE is '{name}', which this machine or this torch lacks; choose auto or cpu"
        ) from error


def build_distiller(
    cfg: CfgNode, teacher: nn.Module | None, num_data: int, num_classes: int
) -> nn.Module:
    """The method that ``cfg`` names on a student with weights of ``BENCH.SEED`` (or ``BENCH.STUDENT_CHECKPOINT``), on its device.

    Raises:
        DJIPError: an unknown method, trainer or student, or a method and a trainer that do not go together.
    """
    kind = cfg.DISTILLER.TYPE
    if kind not in distiller_dict:
        raise DJIPError(f"there is no distiller '{kind}'; choose from {', '.join(distiller_dict)}")
    if cfg.SOLVER.TRAINER not in trainer_dict:
        raise DJIPError(
            f"there is no trainer '{cfg.SOLVER.TRAINER}'; choose from {', '.join(trainer_dict)}"
        )
    if (kind == "CRD") != (cfg.SOLVER.TRAINER == "crd"):
        raise DJIPError(
            f"DISTILLER.TYPE {kind} does not go with SOLVER.TRAINER {cfg.SOLVER.TRAINER}; CRD takes crd, all others take base"
        )
    torch.manual_seed(cfg.BENCH.SEED)
    student = build_model(cfg.DISTILLER.STUDENT, num_classes, cfg.DATASET.TYPE)
    if cfg.BENCH.STUDENT_CHECKPOINT:
        load_weights(student, cfg.BENCH.STUDENT_CHECKPOINT)
    if teacher is None:
        distiller = distiller_dict[kind](student)
    elif kind == "CRD":
        distiller = distiller_dict[kind](student, teacher, cfg, num_data)
    else:
        distiller = distiller_dict[kind](student, teacher, cfg)
    return distiller.to(cfg.BENCH.DEVICE, memory_format=torch.channels_last)


def scaled_as(cfg: CfgNode, data: ImageSet | FolderSet) -> CfgNode:
    """``cfg`` saying what ``data`` are normalised with, which a lens in front of the teacher must undo."""
    cfg = cfg.clone()
    cfg.BENCH.MEAN, cfg.BENCH.STD = list(data.mean), list(data.std)
    return cfg


def train(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Run ``cfg`` to its end and return its result (see :class:`~djip_ext.bench.engine.trainer.BaseTrainer`).

    Raises:
        Busy: another process is at work on the same run.
        DJIPError: as the parts do.
    """
    folder = run_folder(cfg)
    with claimed(folder / ".lock", str(folder)):
        return _train(cfg, folder, resume)


def _train(cfg: CfgNode, folder: Path, resume: bool) -> dict[str, Any]:
    cfg = cfg.clone()
    cfg.BENCH.DEVICE = str(resolve_device(cfg.BENCH.DEVICE))
    if cfg.LOG.WANDB:
        say(
            "note: LOG.WANDB is True, but the embedded benchmark writes TensorBoard files and a CSV only"
        )
    train_loader, test_loader, num_data, num_classes = get_dataset(cfg)
    teacher = None if cfg.DISTILLER.TYPE == "NONE" else build_teacher(cfg, num_classes)
    distiller = build_distiller(scaled_as(cfg, train_loader.data), teacher, num_data, num_classes)
    data = {"train": train_loader.data.fingerprint(), "test": test_loader.data.fingerprint()}
    record = run_record(cfg) | {"data": data} | lens_record(getattr(distiller, "teacher", None))
    if teacher is not None and cfg.BENCH.VIEWS:
        distiller.teacher = cached_teacher(
            distiller.teacher,
            train_loader,
            Path(cfg.LOG.PREFIX, "teacher_cache"),
            cfg.BENCH.PRECISION,
        )
    if cfg.BENCH.COMPILE:
        compile_networks(distiller)
    return trainer_dict[cfg.SOLVER.TRAINER](
        folder, distiller, train_loader, test_loader, cfg, record
    ).train(resume)
