"""Where a run is kept, and what its record says of configuration, code, machine and lens."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.lens.io import weight_hash

SHARED_NODES = ("EXPERIMENT", "DATASET", "DISTILLER", "SOLVER", "LOG", "BENCH")
ABOUT_LENS = (
    "teacher_hash",
    "before",
    "after",
    "test_before",
    "test_after",
)  # what a record repeats of a lens' metadata


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
