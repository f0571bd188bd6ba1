"""From a configuration to a finished run: what mdistiller's tools/train.py does, as functions."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import FOLDERS, get_dataset
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.distillers import distiller_dict
from djip_ext.bench.engine.teacher_cache import CachedTeacher, cached_teacher
from djip_ext.bench.engine.trainer import trainer_dict
from djip_ext.bench.models import cifar_model_dict
from djip_ext.bench.models.families import FAMILIES, build, is_family, torchvision_state
from djip_ext.errors import DJIPError, first_line
from djip_ext.lens.io import weight_hash
from djip_ext.utils.distributed import say
from djip_ext.utils.files import claimed

if TYPE_CHECKING:
    from djip_ext.bench.dataset.imagefolder import FolderSet

SHARED_NODES = ("EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "LOG", "BENCH")
ABOUT_LENS = (
    "teacher_hash",
    "before",
    "after",
    "test_before",
    "test_after",
)  # what a record repeats of a lens' metadata


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


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state of a network in a ``.safetensors`` file or a ``torch.save``d ``{"model": state_dict}``, its numbers as float32.

    Pickles are read with ``weights_only``: a checkpoint cannot run code.

    Raises:
        DJIPError: the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DJIPError(
            f"there is no checkpoint {path}; train one with DISTILLER.TYPE NONE or name one with BENCH.TEACHER_CHECKPOINT"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state.get("state_dict", state))
        return {
            key: value.float() if value.is_floating_point() else value
            for key, value in state.items()
        }
    except Exception as error:  # torch.load raises a dozen types for damaged files
        raise DJIPError(
            f"{path} is not a readable checkpoint ({first_line(error)}); fetch or train it again"
        ) from error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint (:func:`read_weights`) into ``model``, strictly.

    Raises:
        DJIPError: the file is missing, damaged, of another architecture or for another number of classes.
    """
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise DJIPError(
            f"{path} does not fit {getattr(model, 'name', type(model).__name__)}: {detail}; name the architecture and the data set it was trained for"
        ) from error
    return model


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


def run_folder(cfg: CfgNode) -> Path:
    """``PREFIX/PROJECT/NAME/seed-N``, with the tag as the name when there is none, as in mdistiller."""
    return Path(
        cfg.LOG.PREFIX,
        cfg.EXPERIMENT.PROJECT,
        cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG,
        f"seed-{cfg.BENCH.SEED}",
    )


def behind_lens(project: str, lens: str) -> str:
    """The project folder of runs with that lens (id or "identity"): they must never continue or overwrite plain ones."""
    return f"{project}/djip-{lens}"


def run_record(cfg: CfgNode) -> dict[str, Any]:
    """What a reader needs to trust and to repeat a run; ``code`` and ``environment`` may differ when it is resumed."""
    kind = cfg.DISTILLER.TYPE
    read = (
        *SHARED_NODES,
        kind,
        cfg.get(kind, {}).get("BASE", ""),
    )  # LSKD reads its base's node as well
    used = CfgNode({name: node for name, node in cfg.items() if name in read})
    return {
        "config": used.dump(),
        "code": code_version(),
        "environment": {
            "python": platform.python_version(),
            "torch": str(
                torch.__version__
            ),  # a plain string: weights_only refuses to load torch's own class
            "threads": torch.get_num_threads(),
            "processor": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else _processor(),
        },
    }


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


def lens_record(teacher: nn.Module | None) -> dict[str, Any]:
    """The hash of ``teacher``'s weights, the id of the lens in front of it, and what that was measured to do to it."""
    if teacher is None:
        return {"lens": "none", "about_lens": {}}
    lens = getattr(teacher, "djip_lens", None)
    about = (
        {}
        if lens is None
        else {key: value for key in ABOUT_LENS if (value := lens.metadata.get(key)) is not None}
    )
    known = weight_hash(getattr(teacher, "djip_teacher", teacher))
    return {"lens": getattr(teacher, "djip_id", "none"), "about_lens": about, "teacher_hash": known}


def code_version() -> str:
    """The commit of this checkout, with ``+`` when files differ from it; empty for an installed package."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
