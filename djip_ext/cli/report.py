"""``djip report``: the table of results of a file, or of a folder of records.

It is written as Markdown, CSV, LaTeX and pictures; nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from djip_ext.errors import DJIPError
from djip_ext.experiments.arm_costs import arm_costs, cost_lines
from djip_ext.experiments.axes import axes_of
from djip_ext.experiments.differences import Row, cmi_change, gains, table_rows
from djip_ext.experiments.lenses import TableLens, lens_section, lenses_of
from djip_ext.experiments.plan import file_name
from djip_ext.experiments.records import (
    Results,
    arms_of,
    in_order,
    results_of,
    several_lenses,
)
from djip_ext.experiments.report import latex_report, markdown_report, markdown_table
from djip_ext.experiments.runs import read_runs
from djip_ext.experiments.table import Table, runs_of
from djip_ext.fit.record import read_records
from djip_ext.utils.files import atomic_write, write_csv

COSTS = """## What the arms cost

Seconds of the runs as they were recorded, on whatever else the machine did at the time; teacher
passes of what an arm adds to its students, shared by all that read the same choice."""

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip report``."""
    parser.add_argument(
        "what",
        metavar="TABLE|FOLDER",
        help="a table's YAML file (its runs lie in output/NAME), or a folder of runs: as they are, "
        "or collected (runs.csv)",
    )
    parser.add_argument(
        "--runs", metavar="FOLDER", help="where the runs of a table lie (default: output/NAME)"
    )
    parser.add_argument(
        "--baseline",
        metavar="ARM",
        help="what the others are compared with (default: the first arm, or identity)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the report goes (default: report/ beside the runs)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the report and print its text; raises DJIPError as :func:`write_report` does."""
    table, folder = runs_of(args.what, args.runs)
    print(write_report(folder, table, Path(args.out or folder / "report"), args.baseline))


def write_report(folder: Path, table: Table | None, out: Path, baseline: str | None = None) -> str:
    """Write the report on the runs below ``folder`` to ``out``; returns its text.

    Raises:
        DJIPError: no finished student, no arm of that name, or an arm of the table with runs of
            several lenses.
    """
    runs = read_runs(folder)
    results = results_of(runs, folder)
    if table is not None:
        refuse_several_lenses(results, table, folder)
        results = in_order(results, table.distillers, list(table.arms))
    arms = arms_of(results)
    if table is not None:
        arms = [arm for arm in table.arms if arm in arms]
        baseline = baseline or next(iter(table.arms))
    baseline = baseline or arms[0]
    if baseline not in arms:
        raise DJIPError(
            f"{folder} has no finished run of the arm {baseline}; it has {', '.join(arms)}"
        )
    arms = [baseline, *(arm for arm in arms if arm != baseline)]
    rows = table_rows(results, baseline)
    of_lens = {lens: draw_lens(lens, out) for lens in lenses_of(results, read_records(folder))}
    pictures = draw(results, rows, arms, out)
    planned = table.distilled if table else None
    unasked = count_unasked(results, table) if table else 0
    title = table.name if table else folder.name
    lenses = lens_section(list(of_lens), of_lens)
    spent = cost_lines(arm_costs(runs, list(of_lens)), arms)
    if spent:
        lenses = f"{COSTS}\n\n{markdown_table(spent)}\n\n{lenses}"
    text = markdown_report(title, rows, results, arms, planned, unasked, pictures, lenses)
    atomic_write(out / "table.md", lambda path: path.write_text(text))
    atomic_write(out / "table.tex", lambda path: path.write_text(latex_report(rows, results, arms)))
    write_csv(out / "table.csv", rows)
    return text


def refuse_several_lenses(results: Results, table: Table, folder: Path) -> None:
    """Raise DJIPError when an arm of ``table`` has runs with several lenses."""
    for arm, lenses in several_lenses(results).items():
        if arm in table.arms:
            raise DJIPError(
                f"the arm {arm} has runs with several lenses in {folder}: {', '.join(lenses)}; "
                "move away those that the table no longer has"
            )


def count_unasked(results: Results, table: Table) -> int:
    """Students of values of an axis, or of seeds, that ``table`` does not name.

    It was edited, or ``djip reproduce --seeds`` asked for more.
    """
    asked = table.rows
    return sum(
        row not in asked or seed >= table.seeds
        for cells in results.values()
        for row, arms in cells.items()
        for seeds in arms.values()
        for seed in seeds
    )


def draw(results: Results, rows: Sequence[Row], arms: Sequence[str], out: Path) -> list[str]:
    """Draw the pictures of the whole table that its records allow; returns their names."""
    from djip_ext.plots.table import axis_figure, cmi_change_figure, differences_figure, gain_figure

    figures = {}
    axes = axes_of(row for cells in results.values() for row in cells)
    if len(arms) > 1 and any(row["pairs"] and row["arm"] != arms[0] for row in rows):
        figures["differences.png"] = differences_figure(rows, arms, axes)
    changes = cmi_changes(results)
    if changes:
        figures["cmi.png"] = cmi_change_figure(changes)
    points = gains(results, arms[0])
    several = len({round(point.cmi, 3) for point in points}) > 1
    if several and not axes:  # on one value of CMI nothing depends on it
        figures["gain.png"] = gain_figure(points, arms[0])
    names = {axis: f"gain_by_{axis}.png" for axis in axes}
    for axis, name in names.items():
        if "differences.png" in figures and len({row[axis] for row in rows}) > 1:
            figures[name] = axis_figure(rows, arms, axis, axes)
    return save(figures, ("differences.png", "cmi.png", "gain.png", *names.values()), out)


def cmi_changes(results: Results) -> dict[str, tuple[float, float]]:
    """``TEACHER, ARM`` -> the teacher's CMI without and with the lens, nats."""
    changes = {}
    for pair, cells in results.items():
        for arms in cells.values():
            for arm, seeds in arms.items():
                change = cmi_change(seeds)
                if change is not None:
                    changes[f"{pair.teacher}, {arm}"] = change
    return changes


def draw_lens(lens: TableLens, out: Path) -> list[str]:
    """Draw the pictures that the record of ``lens`` allows; returns their names."""
    from djip_ext.plots.lens import lens_figures

    name = f"lens-{lens.arm}-{file_name(lens.teacher)}-{lens.id}"
    figures = lens_figures(lens.record) if lens.record else {}
    kinds = ("tables", "fit", "simplex")
    return save(
        {f"{name}-{kind}.png": figures[kind] for kind in kinds if kind in figures},
        [f"{name}-{kind}.png" for kind in kinds],
        out,
    )


def save(figures: Mapping[str, Figure], names: Sequence[str], out: Path) -> list[str]:
    """Write ``figures`` to ``out``; return their file names.

    Of ``names``, those that are not among the figures are deleted: an earlier report left them.
    """
    from djip_ext.plots.style import save_figure

    for name in names:
        if name not in figures:
            (out / name).unlink(missing_ok=True)
    return [save_figure(figure, out / name).name for name, figure in figures.items()]
