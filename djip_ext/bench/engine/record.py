"""Where a run is kept, and what its record says of configuration, code, machine and lens."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.lens.io import weight_hash

SHARED_NODES = ("EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "LOG", "BENCH")

# what a record repeats of a lens' metadata
ABOUT_LENS = ("teacher_hash", "before", "after", "test_before", "test_after")


def run_name(cfg: CfgNode) -> str:
    """``PROJECT/NAME/seed-N``, with the tag as the name when there is none, as in mdistiller."""
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    return str(Path(cfg.EXPERIMENT.PROJECT, name, f"seed-{cfg.BENCH.SEED}"))


def run_folder(cfg: CfgNode) -> Path:
    """The folder of a run, ``LOG.PREFIX`` before its :func:`run_name`."""
    return Path(cfg.LOG.PREFIX, run_name(cfg))


def behind_lens(project: str, lens: str) -> str:
    """The project folder of runs with that lens (id or "identity").

    It is not that of plain runs, which must never be continued or overwritten with a lens.
    """
    return f"{project}/djip-{lens}"


def run_record(cfg: CfgNode) -> dict[str, Any]:
    """What a reader needs to trust and to repeat a run.

    ``code`` and ``environment`` may differ when the run is resumed.
    """
    return {"config": used_config(cfg), "code": code_version(), "environment": _environment()}


def used_config(cfg: CfgNode) -> str:
    """The nodes of ``cfg`` that its run reads, as YAML."""
    kind = cfg.DISTILLER.TYPE
    base = cfg.get(kind, {}).get("BASE", "")  # LSKD reads its base's node as well
    read = (*SHARED_NODES, kind, base, cfg.BENCH.ADVERSARIAL)
    used = CfgNode({name: node for name, node in cfg.items() if name in read})
    text: str = used.dump()
    return text


def start_record(cfg: CfgNode, student: nn.Module) -> dict[str, str]:
    """``start_hash``, of the weights in ``BENCH.STUDENT_CHECKPOINT``; nothing without them.

    Args:
        student: before its training.
    """
    return {"start_hash": weight_hash(student)} if cfg.BENCH.STUDENT_CHECKPOINT else {}


def lens_record(teacher: nn.Module | None) -> dict[str, Any]:
    """What is known of a run's teacher.

    Returns:
        ``teacher_hash`` (of its weights), ``lens`` (the id of the lens in front of it, or "none")
        and ``about_lens`` (what that lens was measured to do); the first is missing without a
        teacher.
    """
    if teacher is None:
        return {"lens": "none", "about_lens": {}}
    lens = getattr(teacher, "djip_lens", None)
    metadata = {} if lens is None else lens.metadata
    about = {key: metadata[key] for key in ABOUT_LENS if metadata.get(key) is not None}
    known = weight_hash(getattr(teacher, "djip_teacher", teacher))
    return {"lens": getattr(teacher, "djip_id", "none"), "about_lens": about, "teacher_hash": known}


def code_version() -> str:
    """The commit of this checkout, with ``+`` when files differ from it.

    Empty for an installed package, also where its environment lies in another project's checkout.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # fails for what is not tracked
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "-uno")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # weights_only refuses to load torch's own string class
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = (line.split(":", 1)[1] for line in lines if line.startswith("model name"))
        return next(names).strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
