"""Finished runs as files: a folder for each run, or all runs of an experiment in one CSV file.

A run leaves ``result.json`` and ``log.csv`` in a folder of its own.  :func:`collect` turns a tree
of such folders into four things that a person can read and a repository can keep:

* ``runs.csv``: a row per run.  The first columns say which run it is, the others are the fields of
  its ``result.json``: a nested field under its path (``environment.torch``), a field that the run
  lacks as an empty cell, numbers with all their digits.
* ``curves.csv``: the rows of every ``log.csv``, behind the number of their run.
* ``configs/HASH.yaml``: each distinct resolved configuration once, without what the row of a run
  says itself: the seed, the lens, and the project where that is the name of the arm.  So the arms
  that are compared share a configuration.
* ``lenses/``: the records of the lenses (:mod:`djip_ext.fit.record`).

:func:`read_runs` reads both forms to the same runs.
"""

import copy
import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from djip_ext.bench.engine.run import behind_lens
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.errors import DJIPError
from djip_ext.experiments.axes import axes_of, of_name, split
from djip_ext.utils.files import atomic_write, write_csv

RESULT, LOG = "result.json", "log.csv"
TEACHERS = "teachers"  # the project of the teachers that a table trains
RUNS, CURVES, CONFIGS = "runs.csv", "curves.csv", "configs"
# Columns of runs.csv: which run it is (axes of a table come after the distiller), and its results
IDENTITY = (
    "run",
    "dataset",
    "teacher",
    "student",
    "distiller",
    "arm",
    "lens",
    "seed",
    "config",
    "folder",
)
NUMBERS = ("epochs", "last_acc", "best_acc", "best_epoch", "train_acc", "seconds")
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OSError, yaml.YAMLError)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student on a data set: a group of rows in a table of results."""

    dataset: str
    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} - {self.student}"


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        where: its place, for messages.
        folder: its folder, relative to the one that was read or collected.
        config: its resolved configuration.
        result: the fields of its ``result.json``.
        pair: data set, teacher and student.
        row: the distiller, with the values of the axes of its table (``axes.py``); "NONE" is the
            training of a teacher.
        project: ``EXPERIMENT.PROJECT`` without the lens, which ``djip train`` adds to it.
        lens: the id of the lens in front of the teacher, "identity", or "none".
        seed: of the weights and of the order of the images.
    """

    where: str
    folder: str
    config: dict[str, Any]
    result: dict[str, Any]
    pair: Pair
    row: str
    project: str
    lens: str
    seed: int


def _run(where: str, folder: str, config: dict[str, Any], result: dict[str, Any]) -> Run:
    """Make a run; raises one of ``UNREADABLE`` when its configuration or result lacks a part."""
    distiller = config["DISTILLER"]
    teacher = distiller["TEACHER"] if needs_teacher(distiller["TYPE"]) else "none"
    project: str = config["EXPERIMENT"]["PROJECT"]
    return Run(
        where,
        folder,
        config,
        result,
        Pair(config["DATASET"]["TYPE"], teacher, distiller["STUDENT"]),
        distiller["TYPE"] + of_name(config["EXPERIMENT"].get("NAME", "")),
        project.rpartition("/djip-")[0] or project,
        result["lens"],
        config["BENCH"]["SEED"],
    )


def arm_names(runs: Sequence[Run]) -> list[str]:
    """The arm of each run: its project, or its lens where one pair has several in that project."""
    lenses: dict[tuple[str, Pair], set[str]] = {}
    for run in runs:
        lenses.setdefault((run.project, run.pair), set()).add(run.lens)
    return [run.project if len(lenses[run.project, run.pair]) == 1 else run.lens for run in runs]


def read_runs(folder: str | Path) -> list[Run]:
    """Every finished run at or below ``folder``, in the order of their folders.

    Raises:
        DJIPError: a damaged record.
    """
    runs = _read_tree(Path(folder))
    for path in Path(folder).rglob(RUNS):
        runs += _read_collected(path)
    return sorted(runs, key=lambda run: Path(run.folder))


def read_arm(folder: str | Path) -> dict[int, dict[str, Any]]:
    """The fields of every finished run of one arm, by seed.

    Args:
        folder: holds ``seed-N/result.json``, or did so before ``runs.csv`` in one of the folders
            above was collected.

    Raises:
        DJIPError: no finished run, or a damaged record.
    """
    folder = Path(folder)
    fresh = sorted(folder.glob(f"seed-*/{RESULT}"))
    if fresh:
        return dict(_read_seed(path) for path in fresh)
    for parent in (folder, *folder.parents):
        if (parent / RUNS).exists():
            below = folder.relative_to(parent)
            runs = [
                run for run in _read_collected(parent / RUNS) if Path(run.folder).parent == below
            ]
            if runs:
                return {run.seed: run.result for run in runs}
    raise DJIPError(
        f"{folder} holds no finished run (seed-N/{RESULT}), nor did it when a {RUNS} above it "
        "was collected; train one there first"
    )


def _read_seed(path: Path) -> tuple[int, dict[str, Any]]:
    """The seed that the folder of ``path`` names, and the fields of that ``result.json``."""
    try:
        return int(path.parent.name.removeprefix("seed-")), dict(json.loads(path.read_text()))
    except UNREADABLE as error:
        raise not_a_record(path, error) from error


def not_a_record(path: Path, error: Exception) -> DJIPError:
    """What to raise where ``error`` came of reading the ``result.json`` at ``path``."""
    return DJIPError(
        f"{path} is not the record of a run ({one_line(error)}); delete its folder and run it again"
    )


def _read_tree(root: Path) -> list[Run]:
    """The runs that have a folder each."""
    runs = []
    for path in root.rglob(RESULT):
        try:
            result = json.loads(path.read_text())
            folder = path.parent.relative_to(root).as_posix()
            runs.append(_run(str(path.parent), folder, yaml.safe_load(result["config"]), result))
        except UNREADABLE as error:
            raise not_a_record(path, error) from error
    return sorted(runs, key=lambda run: Path(run.folder))


def one_line(error: Exception) -> str:
    """One of :data:`UNREADABLE` in words."""
    text = str(error) if isinstance(error, (OSError, yaml.YAMLError)) else repr(error)
    return " ".join(text.split())


# Collecting


def collect(source: str | Path, target: str | Path) -> tuple[int, int]:
    """Write the runs below ``source`` to ``target`` in the form of this module.

    Runs that ``target`` holds already stay, but for those of the same folder, which are replaced:
    a table whose runs were made on several machines is collected from one after the other.

    Returns:
        How many runs were collected, and how many ``target`` holds now.

    Raises:
        DJIPError: there is none, a record is damaged, ``target`` lies in ``source``, or it cannot
            be written.
    """
    source, target = Path(source), Path(target)
    fresh = _read_tree(source)
    if not fresh:
        raise DJIPError(f"{source} holds no finished run ({RESULT}): there is nothing to collect")
    if target.resolve().is_relative_to(source.resolve()):  # its runs would count twice from then on
        raise DJIPError(f"{target} lies in {source}; collect its runs somewhere else")
    logs = {run.folder: _read_rows(source / run.folder / LOG) for run in fresh}
    kept, old_logs = _kept_runs(target)
    logs = old_logs | logs
    found = {run.folder for run in fresh}
    runs = [*fresh, *(run for run in kept if run.folder not in found)]
    runs.sort(key=lambda run: Path(run.folder))
    arms = arm_names(runs)
    shared = [_shared_config(run, arm) for run, arm in zip(runs, arms, strict=True)]
    configs = {_hash(text): text for text in shared}
    for name, text in configs.items():
        _write_text(target / CONFIGS / f"{name}.yaml", text)
    for record in source.rglob("lenses/*.json"):
        _write_text(target / record.relative_to(source), record.read_text())
    curves = [
        {"run": str(number), **row}
        for number, run in enumerate(runs)
        for row in logs.get(run.folder, [])
    ]
    if curves:
        _write_rows(target / CURVES, curves, ["run", "epoch"])
    rows = [
        _identity(run, number, arm, _hash(text)) | _cells(run.result)
        for number, (run, arm, text) in enumerate(zip(runs, arms, shared, strict=True))
    ]
    axes = axes_of(run.row for run in runs)
    _write_rows(target / RUNS, rows, [*IDENTITY[:5], *axes, *IDENTITY[5:], *NUMBERS])
    for path in (target / CONFIGS).glob("*.yaml"):
        if path.stem not in configs:
            path.unlink()
    return len(fresh), len(runs)


def _kept_runs(target: Path) -> tuple[list[Run], dict[str, list[dict[str, str]]]]:
    """The runs that ``target`` holds, and folder -> the rows of its log, where there are any."""
    if not (target / RUNS).exists():
        return [], {}
    kept = _read_collected(target / RUNS)
    by_number: dict[str, list[dict[str, str]]] = {}
    for row in _read_rows(target / CURVES):
        by_number.setdefault(row.pop("run"), []).append(row)
    numbers = {row["folder"]: row["run"] for row in _read_rows(target / RUNS)}
    logs = {run.folder: by_number.get(numbers[run.folder], []) for run in kept}
    for run in kept:
        ends = run.result["epochs"], run.result["last_acc"]
        for last in logs[run.folder][-1:]:
            if (last.get("epoch"), last.get("test_acc")) == tuple(map(str, ends)):
                continue
            # The two are written one after the other: a process was killed between them.
            raise DJIPError(
                f"{target / CURVES} ends {run.folder} otherwise than its {RUNS} does; restore "
                "both, or collect all runs into an empty folder"
            )
    return kept, logs


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file without its empty cells; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [{key: cell for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def _shared_config(run: Run, arm: str) -> str:
    """The configuration without seed and lens, and without a project that is called as the arm."""
    config = copy.deepcopy(run.config)
    del config["BENCH"]["SEED"]
    if run.project == arm:
        del config["EXPERIMENT"]["PROJECT"]
    else:
        config["EXPERIMENT"]["PROJECT"] = run.project
    return str(yaml.safe_dump(config))


def _whole_config(shared: str, arm: str, lens: str, seed: int) -> dict[str, Any]:
    """The inverse of :func:`_shared_config`."""
    config: dict[str, Any] = yaml.safe_load(shared)
    config["BENCH"]["SEED"] = seed
    project = config["EXPERIMENT"].get("PROJECT", arm)
    config["EXPERIMENT"]["PROJECT"] = project if lens == "none" else behind_lens(project, lens)
    return config


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _identity(run: Run, number: int, arm: str, config: str) -> dict[str, str]:
    """The cells that say which run it is."""
    distiller, values = split(run.row)
    own = {"run": number, **vars(run.pair), "distiller": distiller, **values}
    own |= {"arm": arm, "lens": run.lens, "seed": run.seed, "config": config, "folder": run.folder}
    return {key: str(value) for key, value in own.items()}


def _cells(result: Mapping[str, Any]) -> dict[str, str]:
    """The cells of all fields that :func:`_identity` does not have."""
    fields = {key: value for key, value in result.items() if key not in IDENTITY}
    return {key: _write_cell(value) for key, value in _flatten(fields).items()}


# Reading what was collected


def _read_collected(path: Path) -> list[Run]:
    """The runs of the file ``path``."""
    shared: dict[str, str] = {}
    runs = []
    try:
        with open(path, newline="") as file:
            for row in csv.DictReader(file, strict=True):
                if None in row or None in row.values():
                    raise ValueError(f"row {row.get('run')} is cut off or too long")
                name = row["config"]
                if name not in shared:
                    shared[name] = (path.parent / CONFIGS / f"{name}.yaml").read_text()
                    if _hash(shared[name]) != name:
                        raise ValueError(f"{CONFIGS}/{name}.yaml was changed")
                runs.append(_run_of(path, row, shared[name]))
    except (*UNREADABLE, csv.Error) as error:
        raise DJIPError(
            f"{path} is damaged ({one_line(error)}); restore it, or collect its runs again"
        ) from error
    return runs


def _run_of(path: Path, row: Mapping[str, str], shared: str) -> Run:
    """The inverse of :func:`_identity` and :func:`_cells`."""
    config = _whole_config(shared, row["arm"], row["lens"], int(row["seed"]))
    named = {*IDENTITY, *split(of_name(config["EXPERIMENT"].get("NAME", "")))[1]}
    cells = {key: cell for key, cell in row.items() if key not in named and cell != ""}
    result = _unflatten({key: _read_cell(cell) for key, cell in cells.items()})
    result |= {"config": yaml.safe_dump(config), "lens": row["lens"], "folder": row["folder"]}
    run = _run(f"{path}: {row['folder']}", row["folder"], config, result)
    for key, text in _identity(run, int(row["run"]), row["arm"], row["config"]).items():
        if row[key] != text:
            raise ValueError(f"row {row['run']} says {key} {row[key]}, its configuration {text}")
    return run


# Cells: text stands as it is unless it would be read as something else; all the rest is JSON, which
# gives floats all their digits


def _write_cell(value: Any) -> str:
    if isinstance(value, str) and value and _read_cell(value) == value:
        return value
    return json.dumps(value)


def _read_cell(cell: str) -> Any:
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def _flatten(record: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``; an empty dict counts as a value."""
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value
    return flat


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`_flatten`."""
    record: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, key = path.split(".")
        place = record
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = value
    return record


def _write_rows(path: Path, rows: Sequence[Mapping[str, str]], first: Sequence[str]) -> None:
    """Write ``rows``, which may lack cells: the columns ``first``, then all others as they come."""
    columns = dict.fromkeys([*first, *(key for row in rows for key in row)])
    write_csv(path, [{key: row.get(key, "") for key in columns} for row in rows])


def _write_text(path: Path, text: str) -> None:
    atomic_write(path, lambda place: place.write_text(text))
