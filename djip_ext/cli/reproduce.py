"""``djip reproduce``: a table of results from its file: data, teachers, lenses, students, report.

It may be stopped and started again anywhere.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from djip_ext.bench.dataset.image_sets import load_run_sets
from djip_ext.bench.models.closed import is_closed
from djip_ext.cli import train_lens
from djip_ext.cli.options import add_scheduler_arguments, fit_settings
from djip_ext.cli.report import write_report
from djip_ext.errors import DJIPError
from djip_ext.experiments.arms import is_fit
from djip_ext.experiments.cost import Cost, Estimate, data_key
from djip_ext.experiments.plan import Step, check_images, file_name, make_plan
from djip_ext.experiments.scheduler import (
    Outcome,
    cluster_start,
    local_start,
    log_file,
    run_plan,
    threads_of,
)
from djip_ext.experiments.table import Table, load_table
from djip_ext.fit.record import record_of
from djip_ext.utils.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip reproduce``."""
    parser.add_argument(
        "table",
        metavar="TABLE",
        help="YAML file, see docs/tables.md and results/cifar100/fewshot13.yaml",
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default: the table's)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="where everything goes (default: output/NAME_OF_TABLE)"
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        default="",
        help="folder that holds cifar-100-python (default: BENCH.DATA_ROOT)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the commands, their cost and an estimate of the hours; run none",
    )
    add_scheduler_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Make the table, or print what that would take.

    Raises:
        DJIPError: anything wrong with the table or its data, or a command of it that failed.
    """
    table = table_of(args)
    out = args.out or f"output/{table.name}"
    steps = make_plan(table, out, args.data_root)
    refuse_other_images(steps, check_data(steps))
    if args.dry_run:
        dry_run(steps, args.workers or 1)
        return
    keep_lens_records(steps, out)
    workers = args.workers or (len(steps) if args.cluster else 1)
    start = (
        cluster_start(args.cluster, out, parameters(args.job))
        if args.cluster
        else local_start(out, workers)
    )
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # as Ctrl-C does, end what was begun
    outcome = run_plan(steps, start, workers, lambda line: print(line, flush=True))
    keep_lens_records(steps, out)  # of the lenses that teachers were trained with
    report(outcome, table, Path(out))
    finish(outcome, out)


def report(outcome: Outcome, table: Table, out: Path) -> None:
    """Write and print the report, if a student is there.

    Raises:
        DJIPError: there can be none, and no failure explains it.
    """
    if not any(step.kind == "student" for step in [*outcome.here, *outcome.found]):
        return
    try:
        print(f"\n{write_report(out, table, out / 'report')}")
    except DJIPError as error:
        if not outcome.failed:
            raise
        print(f"\nno report: {error}")  # what failed is said next, and may be why


def table_of(args: argparse.Namespace) -> Table:
    """The table that the arguments name; raises DJIPError when it cannot be read."""
    table = load_table(args.table)
    for name, arm in table.arms.items():
        check_fit_flags(name, arm.before)
    if args.seeds is None:
        return table
    if args.seeds < 1:
        raise DJIPError(f"--seeds is {args.seeds}; it must be at least 1")
    return dataclasses.replace(table, seeds=args.seeds)


def check_fit_flags(name: str, source: str) -> None:
    """Raise DJIPError when the arm ``name`` is a fit whose flags ``djip fit`` would refuse.

    Those that the plan itself gives, which these would override, are refused too.
    """
    if not is_fit(source):
        return
    parser = argparse.ArgumentParser(prog="fit", add_help=False)
    train_lens.add_arguments(parser)
    complaint = io.StringIO()
    planned = ["--out", "lens.safetensors"]
    try:
        with contextlib.redirect_stderr(complaint):
            flags = parser.parse_args([*planned, *shlex.split(source)[1:]])
    except (SystemExit, ValueError) as error:
        said = complaint.getvalue().strip().splitlines() or [str(error)]
        raise DJIPError(f"arm {name} is '{source}'; {said[-1]}") from error
    own = (flags.cfg, flags.data_root, flags.host, flags.options)
    if flags.out != planned[1] or any(own):
        raise DJIPError(
            f"arm {name} is '{source}'; it cannot have --out, --cfg, --data-root, --host or KEY "
            "VALUE pairs, which every fit gets from the table (options) or the command"
        )
    try:
        train_lens.check_flags(flags)
        fit_settings(flags, "float32")
    except DJIPError as error:
        raise DJIPError(f"arm {name} is '{source}'; {error}") from error


def check_data(steps: list[Step]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Load what the commands will read, before the first is started; print what was found.

    Returns:
        :func:`~djip_ext.experiments.cost.data_key` -> the fingerprints of training and test set,
        for each data that they read.
    """
    found = {}
    for step in steps:
        cfg = step.settings()
        key = data_key(cfg)
        if key not in found:
            train, test = (data.fingerprint() for data in load_run_sets(cfg))
            found[key] = [train, test]
            said = ", ".join(
                f"{part['images']} {name} images ({part['sha256']})"
                for name, part in (("training", train), ("test", test))
            )
            print(f"data: {cfg.DATASET.TYPE}, {said}")
    return found


def refuse_other_images(
    steps: list[Step], found: dict[tuple[Any, ...], list[dict[str, Any]]]
) -> None:
    """Raise DJIPError for a finished run of other images than :func:`check_data` has ``found``."""
    for step in steps:
        train, test = found[data_key(step.settings())]
        check_images(step, {"train": train, "test": test})


def keep_lens_records(steps: list[Step], out: str) -> None:
    """Write the record of every lens that is there already into ``out``/lenses.

    ``djip fit`` leaves those of the table's own fits there.
    """
    fitted = {step.makes: step for step in steps if step.kind == "lens"}
    for path, step in {step.lens: step for step in steps if step.lens_file}.items():
        if step.lacks_its_lens() and path not in fitted:
            continue  # its teacher's training will leave it
        if path not in fitted:
            cfg = step.settings()
            record = record_of(path)
            name = (
                f"{file_name(cfg.DISTILLER.TEACHER)}-{cfg.EXPERIMENT.PROJECT}-{record['id']}.json"
            )
            write_json(Path(out, "lenses", name), record)
        elif (
            known := fitted[path].result()
        ) is not None and "id" not in known:  # of a fit from before records had one
            write_json(Path(path).with_suffix(".json"), record_of(path))


def dry_run(steps: list[Step], workers: int) -> None:
    """Print every command with its state and cost, then the sums.

    The passes are timed with the threads that each of ``workers`` would get.
    """
    if (threads := threads_of(workers)) and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    costs = Estimate()(steps)
    for step, cost in zip(steps, costs, strict=True):
        epochs = 0 if step.result() else step.epochs_done()
        if step.result():
            state = "done"
        elif epochs:
            state = f"{epochs} epochs done, {_cost(cost)} left"
        else:
            state = _cost(cost)
        print(f"\n# {step.name}: {state}\n{step}")
    print()
    for kind in ("teacher", "lens", "student"):
        own = [cost for step, cost in zip(steps, costs, strict=True) if step.kind == kind]
        print(f"{len(own)} {kind} commands: {_cost(sum(own, Cost()))}")
    whole = sum(costs, Cost())
    several = (
        f", {whole.seconds / 3600 / workers:.2f} with {workers} workers," if workers > 1 else ""
    )
    print(
        f"in all: {_cost(whole)} of one worker{several} on this machine as busy as it was just now"
    )
    asking = [step for step, cost in zip(steps, costs, strict=True) if cost.teacher]
    teachers = {step.settings().DISTILLER.TEACHER for step in asking}
    for teacher in sorted(filter(is_closed, teachers)):
        print(f"passes of {teacher} are queries, and its own time is not in the hours")


def _cost(cost: Cost) -> str:
    hours = cost.seconds / 3600
    return f"{cost.teacher:,} teacher and {cost.student:,} student passes, {hours:.2f} hours"


def parameters(pairs: list[str]) -> dict[str, object]:
    """``KEY=VALUE`` words as submitit's parameters, numbers as numbers."""
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise DJIPError(f"--job takes KEY=VALUE, not '{wrong[0]}', for example timeout_min=240")
    return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


def finish(outcome: Outcome, out: str) -> None:
    """Say what was done; raise DJIPError when something failed."""
    print(
        f"{len(outcome.here)} commands run here, {len(outcome.found)} done before or elsewhere, "
        f"all below {out}"
    )
    if outcome.failed:
        first = outcome.failed[0]
        rest = (
            f", and {len(outcome.blocked)} that need them were not begun" if outcome.blocked else ""
        )
        where = f"the first: {first.name}, see {log_file(first, out)}"
        raise DJIPError(
            f"{len(outcome.failed)} commands failed{rest}; {where}. "
            "Correct it and start the same command again"
        )
