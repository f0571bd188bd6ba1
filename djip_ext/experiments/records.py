"""The results of a table: finished students by pair, row, arm and seed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from djip_ext.bench.distillers import distiller_dict
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.errors import DJIPError
from djip_ext.experiments.axes import order, split
from djip_ext.experiments.runs import (
    RESULT,
    RUNS,
    TEACHERS,
    Pair,
    Run,
    arm_names,
    read_runs,
)

Result = dict[str, Any]
"""The fields of a run's ``result.json``, with ``where`` it lies and its ``project``."""

Seeds = dict[int, Result]
"""seed -> result: a cell of a table."""

Cells = dict[str, dict[str, Seeds]]
"""row -> arm -> cell; a row is a distiller, with the values of the table's axes (``axes.py``)."""

Results = dict[Pair, Cells]
"""pair -> its rows."""


def read_results(folder: str | Path) -> Results:
    """:func:`results_of` the runs at or below ``folder``; raises as :func:`read_runs` too."""
    return results_of(read_runs(folder), folder)


def results_of(runs: Sequence[Run], folder: str | Path) -> Results:
    """Every finished student among ``runs``.

    Not among them are those that learn from labels alone, and the teachers that a table trained,
    which may have had a teacher themselves (NASTY).

    An arm is called as the first part of its project folder is, or after its lens where runs with
    several lenses share one.  Identity arms come first; distillers are in the order of
    ``distiller_dict``.

    Args:
        folder: where they were read, for messages.

    Raises:
        DJIPError: no finished student, or two runs of one cell and seed.
    """
    runs = [run for run in runs if needs_teacher(split(run.row)[0]) and run.project != TEACHERS]
    if not runs:
        raise DJIPError(
            f"{folder} holds no finished student ({RESULT} or {RUNS}); "
            "djip reproduce TABLE makes them"
        )
    distillers = list(distiller_dict)
    rows = order({run.row for run in runs})
    rows.sort(key=lambda row: [*distillers, split(row)[0]].index(split(row)[0]))
    arms = dict(zip(runs, arm_names(runs), strict=True))

    def place(run: Run) -> tuple[str, int, bool, str]:
        return str(run.pair), rows.index(run.row), run.lens != "identity", run.project

    results: Results = {}
    for run in sorted(runs, key=place):
        arm = arms[run]
        cell = results.setdefault(run.pair, {}).setdefault(run.row, {}).setdefault(arm, {})
        if run.seed in cell:
            raise DJIPError(
                f"{cell[run.seed]['where']} and {run.where} are both {run.row}, {arm}, "
                f"seed {run.seed}; report on a folder that holds one of them"
            )
        cell[run.seed] = run.result | {"where": run.where, "project": run.project}
    return results


def several_lenses(results: Results) -> dict[str, list[str]]:
    """Project -> the lenses of its runs, where :func:`results_of` named arms after them."""
    found: dict[str, set[str]] = {}
    for cells in results.values():
        for arms in cells.values():
            for arm, seeds in arms.items():
                for result in seeds.values():
                    if arm != result["project"]:
                        found.setdefault(result["project"], set()).add(arm)
    return {project: sorted(lenses) for project, lenses in found.items()}


def arms_of(results: Results) -> list[str]:
    """Every arm, in the order in which they are met."""
    cells = (arms for rows in results.values() for arms in rows.values())
    return list(dict.fromkeys(arm for arms in cells for arm in arms))


def in_order(results: Results, distillers: Sequence[str], arms: Sequence[str]) -> Results:
    """``results`` restricted to those distillers and arms, in their order."""
    kept: Results = {}
    for pair, cells in results.items():
        rows = [row for name in distillers for row in cells if split(row)[0] == name]
        chosen = {row: {arm: cells[row][arm] for arm in arms if arm in cells[row]} for row in rows}
        if any(chosen.values()):
            kept[pair] = {row: cell for row, cell in chosen.items() if cell}
    return kept


def all_results(results: Results) -> Iterable[Result]:
    """The result of every run."""
    cells = (arms for rows in results.values() for arms in rows.values())
    return (result for arms in cells for seeds in arms.values() for result in seeds.values())
