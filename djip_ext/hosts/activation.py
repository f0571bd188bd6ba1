"""What launcher and added line share: flags, workarounds, seed, and the lens in its place."""

import argparse
import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

from djip_ext.errors import DJIPError
from djip_ext.hosts.registry import count_teachers, install, teachers_behind_lens
from djip_ext.hosts.seeding import pass_seed_on, seed
from djip_ext.hosts.spawn import follow_spawn
from djip_ext.hosts.workarounds import WORKAROUNDS, Host, apply_workarounds
from djip_ext.lens.io import lens_name, read_lens
from djip_ext.lens.jpeg_lens import JPEGLens

NO_LENS = "no lens"


class _Active(NamedTuple):
    """What an entry point asked for."""

    lens: str
    seed: int | None
    any_teacher: bool


_ACTIVE: dict[int, _Active] = {}  # process -> what holds there


def add_flags(parser: argparse.ArgumentParser, prefix: str) -> None:
    """Add the flags of launcher and added line.

    They are ``--djip-lens``, ``--djip-any-teacher`` and, with ``prefix`` before their names,
    ``--seed`` and ``--no-workaround``, whose former name ``--no-cure`` is still taken.
    """
    parser.add_argument(
        "--djip-lens",
        metavar="LENS",
        help="lens file in front of the teacher, 'identity': the fair baseline, "
        "or 'temperature:K': its logits / K",
    )
    parser.add_argument(
        "--djip-any-teacher",
        action="store_true",
        help="accept a lens that was fitted for other weights or data",
    )
    parser.add_argument(
        f"--{prefix}seed",
        dest="seed",
        type=int,
        metavar="N",
        help="seed random, numpy and torch, also where the script seeds them itself; "
        "the run's folder ends in seed-N",
    )
    names = ", ".join(workaround.name for workaround in WORKAROUNDS)
    parser.add_argument(
        f"--{prefix}no-workaround",
        dest="no_workaround",
        action="append",
        default=[],
        metavar="NAME",
        help=f"leave one of the host's faults alone: {names}",
    )
    parser.add_argument(
        f"--{prefix}no-cure", dest="no_workaround", action="append", help=argparse.SUPPRESS
    )


def check_any_teacher(flags: argparse.Namespace) -> None:
    """Raise DJIPError for ``--djip-any-teacher`` without a lens, which would run without one."""
    if flags.djip_any_teacher and not flags.djip_lens:
        raise DJIPError("--djip-any-teacher is about a lens; name it with --djip-lens")


def activate(
    flags: argparse.Namespace, package: str, script: Path, arguments: list[str], quiet: bool = False
) -> JPEGLens | str | None:
    """Apply the workarounds, seed, and install the lens that ``flags`` name.

    What is active is said on the first process of a run.  Processes that the script starts by
    ``torch.multiprocessing.spawn`` do the same.  Where both entry points are used at once, the
    second does nothing, as long as it asks for the same.

    Raises:
        DJIPError: as :func:`~djip_ext.hosts.registry.install` and
            :func:`~djip_ext.hosts.workarounds.apply_workarounds` do; another lens or seed is
            active in this process; ``--djip-any-teacher`` without a lens.
    """
    lens: JPEGLens | str | None = flags.djip_lens
    if isinstance(lens, str):
        lens = read_lens(lens)
    name = NO_LENS if lens is None else lens_name(lens)
    asked = _Active(name, flags.seed, flags.djip_any_teacher)
    if os.getpid() in _ACTIVE:
        _check_same(_ACTIVE[os.getpid()], asked)
        return lens
    check_any_teacher(flags)
    tag = [] if lens is None else [f"djip-{name}"]
    if flags.seed is not None:
        tag.append(f"seed-{flags.seed}")
    again = functools.partial(_activate_spawned, flags, package, script, arguments)
    built = functools.partial(teachers_behind_lens, package)
    follow_spawn(again, built, functools.partial(count_teachers, package))
    host = Host(package, script, "/".join(tag), "--resume" in arguments)
    lines = apply_workarounds(host, flags.no_workaround)
    if lens is not None:
        any_teacher = flags.djip_any_teacher
        lines.append(install(lens, package, any_teacher, refuse_without_teacher=True))
    if flags.seed is not None:
        seed(flags.seed)
        pass_seed_on(flags.seed)
    if os.environ.get("RANK", "0") == "0" and not quiet:
        print("\n".join(lines), file=sys.stderr, flush=True)
    if tag:
        _ACTIVE[os.getpid()] = asked
    return lens


def _check_same(active: _Active, asked: _Active) -> None:
    """Raise DJIPError when the second entry point asks for what the first has not done."""
    if asked.lens not in (NO_LENS, active.lens):
        raise DJIPError(
            f"the launcher has put {active.lens} before the teacher, the script's own --djip-lens "
            f"asks for {asked.lens}; give one of the two"
        )
    if asked.seed not in (None, active.seed):
        raise DJIPError(
            f"the launcher's seed is {active.seed}, the script's own --djip-seed {asked.seed}; "
            "give one of the two"
        )
    if asked.any_teacher and not active.any_teacher:
        raise DJIPError(
            f"the launcher has put {active.lens} before the teacher, the script's own "
            "--djip-any-teacher comes too late; give it to the launcher, with --djip-lens"
        )


def _activate_spawned(
    flags: argparse.Namespace, package: str, script: Path, arguments: list[str], index: int
) -> None:
    activate(flags, package, script, arguments, quiet=True)
