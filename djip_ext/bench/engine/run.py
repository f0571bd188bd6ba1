"""From a configuration to a finished run: what mdistiller's tools/train.py does, as functions.

The parts are in :mod:`~djip_ext.bench.engine.checkpoints`,
:mod:`~djip_ext.bench.engine.networks` and :mod:`~djip_ext.bench.engine.record`; their functions can
be imported from here too.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import get_dataset
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.protocols import LabelledImages
from djip_ext.bench.device import resolve_device
from djip_ext.bench.distillers import Training, attacks, distiller_dict
from djip_ext.bench.distillers.rivals import adversarial_losses
from djip_ext.bench.engine.answers import BlackBox
from djip_ext.bench.engine.captured_step import can_capture
from djip_ext.bench.engine.checkpoints import load_weights, read_weights
from djip_ext.bench.engine.coded_teacher import choice_record, coded_teacher
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
    run_name,
    run_record,
    start_record,
    used_config,
)
from djip_ext.bench.engine.teacher_cache import answers_key, cached_teacher
from djip_ext.bench.engine.trainer import trainer_dict
from djip_ext.bench.models.closed import is_closed
from djip_ext.bench.teacherless import FINE_TUNING, needs_teacher
from djip_ext.errors import DJIPError
from djip_ext.utils.distributed import say
from djip_ext.utils.files import claimed

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
    "used_config",
]


def build_distiller(
    cfg: CfgNode, teacher: nn.Module | None, num_data: int, num_classes: int
) -> Training:
    """Build the method that ``cfg`` names, on its device.

    Its student starts from weights of ``BENCH.SEED``, or from ``BENCH.STUDENT_CHECKPOINT``.

    Raises:
        DJIPError: an unknown method, trainer or student, or a method and a trainer that do not go
            together.
    """
    kind = cfg.DISTILLER.TYPE
    trainer = cfg.SOLVER.TRAINER
    if kind not in distiller_dict:
        raise DJIPError(f"there is no distiller '{kind}'; choose from {', '.join(distiller_dict)}")
    if trainer not in trainer_dict:
        raise DJIPError(f"there is no trainer '{trainer}'; choose from {', '.join(trainer_dict)}")
    if (kind == "CRD") != (trainer == "crd"):
        raise DJIPError(
            f"DISTILLER.TYPE {kind} does not go with SOLVER.TRAINER {trainer}; CRD takes crd, "
            "all others take base"
        )
    if cfg.BENCH.CKD and not (cfg.BENCH.VIEWS and needs_teacher(kind)):
        raise DJIPError(
            "BENCH.CKD chooses a JPEG quality for each fixed view of an image that a teacher sees; "
            "set BENCH.VIEWS, 16 for example, and a DISTILLER.TYPE with a teacher"
        )
    _check_adversarial(cfg)
    torch.manual_seed(cfg.BENCH.SEED)
    student = build_model(cfg.DISTILLER.STUDENT, num_classes, cfg.DATASET.TYPE)
    if cfg.BENCH.STUDENT_CHECKPOINT:
        load_weights(student, cfg.BENCH.STUDENT_CHECKPOINT)
    build = distiller_dict[kind]
    distiller: Training
    if kind == "NONE":
        distiller = build(student)
    elif teacher is None:
        distiller = build(student, cfg, num_classes)
    elif kind == "CRD":
        distiller = build(student, teacher, cfg, num_data)
    elif kind in attacks.BY_CLASS:
        distiller = build(student, teacher, cfg, num_classes)
    else:
        distiller = build(student, teacher, cfg)
    # nn.Module.to is annotated for either argument alone
    return distiller.to(cfg.BENCH.DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _check_adversarial(cfg: CfgNode) -> None:
    """Refuse a ``BENCH.ADVERSARIAL`` that does not exist or that nothing can be added to."""
    loss = cfg.BENCH.ADVERSARIAL
    if not loss:
        return
    if loss not in adversarial_losses:
        raise DJIPError(
            f"BENCH.ADVERSARIAL is '{loss}'; choose {' or '.join(adversarial_losses)}, or leave "
            "it empty"
        )
    if not needs_teacher(cfg.DISTILLER.TYPE):
        raise DJIPError(
            f"BENCH.ADVERSARIAL {loss} asks a teacher, but DISTILLER.TYPE {cfg.DISTILLER.TYPE} "
            "has none; name a distiller"
        )
    if cfg.BENCH.CKD:
        raise DJIPError(
            f"BENCH.ADVERSARIAL {loss} makes images that BENCH.CKD has chosen no quality for; use "
            "one of the two"
        )
    if cfg.BENCH.ANSWERS or is_closed(cfg.DISTILLER.TEACHER):
        box = f"BENCH.ANSWERS {cfg.BENCH.ANSWERS}" if cfg.BENCH.ANSWERS else cfg.DISTILLER.TEACHER
        raise DJIPError(
            f"BENCH.ADVERSARIAL {loss} follows gradients through the teacher, and {box} is a "
            "black box, which has none; leave out one of the two"
        )


def scaled_as(cfg: CfgNode, data: LabelledImages) -> CfgNode:
    """``cfg`` with the normalisation of ``data``, which a lens in front of the teacher undoes."""
    cfg = cfg.clone()
    cfg.BENCH.MEAN = list(data.mean)
    cfg.BENCH.STD = list(data.std)
    return cfg


def train(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Run ``cfg`` to its end and return its result.

    See :class:`~djip_ext.bench.engine.trainer.BaseTrainer` for what it leaves on the disk.

    Raises:
        Busy: another process is at work on the same run.
        DJIPError: as the parts do.
    """
    folder = run_folder(cfg)
    with claimed(folder / ".lock", str(folder)):
        return _train(cfg, resume)


def _train(cfg: CfgNode, resume: bool) -> dict[str, Any]:
    cfg = cfg.clone()
    cfg.BENCH.DEVICE = str(resolve_device(cfg.BENCH.DEVICE))
    cfg.BENCH.CUDA_GRAPH = can_capture(cfg)
    if cfg.LOG.WANDB:
        say(
            "note: LOG.WANDB is True, but the embedded benchmark writes TensorBoard files and a "
            "CSV only"
        )
    if cfg.DISTILLER.TYPE in FINE_TUNING and not cfg.BENCH.STUDENT_CHECKPOINT:
        raise DJIPError(
            f"{cfg.DISTILLER.TYPE} fine-tunes a trained network, but BENCH.STUDENT_CHECKPOINT is "
            "empty; name the weights to start from"
        )
    train_loader, test_loader, num_data, num_classes = get_dataset(cfg)
    teacher = build_teacher(cfg, num_classes) if needs_teacher(cfg.DISTILLER.TYPE) else None
    distiller = build_distiller(scaled_as(cfg, train_loader.data), teacher, num_data, num_classes)
    data = {"train": train_loader.data.fingerprint(), "test": test_loader.data.fingerprint()}
    behind = getattr(distiller, "teacher", None)
    record = run_record(cfg) | {"data": data} | lens_record(behind)
    record |= start_record(cfg, distiller.student)
    if behind is not None and cfg.BENCH.ANSWERS:
        behind = BlackBox(behind, cfg.BENCH.ANSWERS)
        distiller.teacher = behind
    if behind is not None and cfg.BENCH.VIEWS:
        assert isinstance(train_loader, DeviceLoader)  # of other loaders there are no views
        asked = behind
        folder = Path(cfg.LOG.PREFIX, "teacher_cache")
        precision = cfg.BENCH.PRECISION
        if cfg.BENCH.CKD:
            key = answers_key(behind, train_loader, precision)
            path = folder / f"{key}.ckd.safetensors"
            asked = coded_teacher(behind, train_loader, path, precision)
            record["ckd"] = choice_record(asked.choice)
        distiller.teacher = cached_teacher(asked, train_loader, folder, precision)
    if cfg.BENCH.COMPILE:
        compile_networks(distiller)
    if cfg.BENCH.ADVERSARIAL:
        assert behind is not None  # build_distiller checked it
        distiller = adversarial_losses[cfg.BENCH.ADVERSARIAL](distiller, behind, cfg)
        distiller.to(cfg.BENCH.DEVICE)
    trainer = trainer_dict[cfg.SOLVER.TRAINER](
        run_name(cfg), distiller, train_loader, test_loader, cfg, record
    )
    return trainer.train(resume)
