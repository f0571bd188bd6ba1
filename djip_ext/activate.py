"""What the launcher and the one added line share: flags, cures, seed, and the lens in its place."""

import argparse
import functools
import os
import random
import sys
from pathlib import Path

import torch

from .errors import DJIPError
from .host_cures import CURES, Host, apply_cures
from .install import count_teachers, install
from .lens import JPEGLens
from .lens_file import lens_name, read_lens
from .spawned import follow_spawn


def add_flags(parser: argparse.ArgumentParser, prefix: str) -> None:
    """``--djip-lens``, ``--djip-any-teacher`` and, with ``prefix`` before their names, ``--seed`` and ``--no-cure``."""
    parser.add_argument("--djip-lens", metavar="LENS", help="lens file in front of the teacher, 'identity': the fair baseline, or 'temperature:K': its logits / K")
    parser.add_argument("--djip-any-teacher", action="store_true", help="accept a lens that was fitted for other weights or data")
    parser.add_argument(f"--{prefix}seed", dest="seed", type=int, metavar="N", help="seed random, numpy and torch; the run's folder ends in seed-N")
    cures = ", ".join(cure.name for cure in CURES)
    parser.add_argument(f"--{prefix}no-cure", dest="no_cure", action="append", default=[], metavar="NAME", help=f"leave one of the host's faults alone: {cures}")


def activate(flags: argparse.Namespace, package: str, script: Path, arguments: list[str], quiet: bool = False) -> JPEGLens | str | None:
    """Cure the host, seed, and install the lens that ``flags`` name; says so on the first process of a run.

    Processes that the script starts by ``torch.multiprocessing.spawn`` do the same.

    Raises:
        DJIPError: as :func:`~djip_ext.install.install` and :func:`~djip_ext.host_cures.apply_cures` do.
    """
    lens: JPEGLens | str | None = flags.djip_lens
    if isinstance(lens, str):
        lens = read_lens(lens)
    tag = [] if lens is None else [f"djip-{lens_name(lens)}"]
    tag += [] if flags.seed is None else [f"seed-{flags.seed}"]
    again = functools.partial(_activate_spawned, flags, package, script, arguments)
    follow_spawn(again, functools.partial(count_teachers, package))
    lines = apply_cures(Host(package, script, "/".join(tag), "--resume" in arguments), flags.no_cure)
    if lens is not None:
        lines.append(install(lens, package, flags.djip_any_teacher))
    if flags.seed is not None:
        seed(flags.seed)
    if os.environ.get("RANK", "0") == "0" and not quiet:
        print("\n".join(lines), file=sys.stderr, flush=True)
    return lens


def _activate_spawned(flags: argparse.Namespace, package: str, script: Path, arguments: list[str], index: int) -> None:
    activate(flags, package, script, arguments, quiet=True)


def seed(number: int) -> None:
    """Seed every generator that a host draws from; raises DJIPError when the number is out of range."""
    import numpy as np

    if not 0 <= number < 2**32:
        raise DJIPError(f"--seed is {number}; it must lie in [0, 2^32)")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
