"""``djip report``: the table of a file, or of a folder of records, as Markdown, CSV, LaTeX and pictures; nothing is trained."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..bench.axes import axes_of
from ..bench.plan import file_name
from ..bench.records import Results, arms_of, cmi_change, gains, in_order, read_results, several_lenses, table_rows
from ..bench.report import latex_report, markdown_report
from ..bench.table import Table, load_table
from ..bench.table_lenses import TableLens, lens_section, lenses_of
from ..errors import DJIPError
from ..files import atomic_write, write_csv
from ..lens_record import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="TABLE|FOLDER", help="a table's YAML file (its runs lie in output/NAME), or a folder of records")
    parser.add_argument("--runs", metavar="FOLDER", help="where the runs of a table lie, if not in output/NAME")
    parser.add_argument("--baseline", metavar="ARM", help="what the others are compared with (default: the first arm, or identity)")
    parser.add_argument("--out", metavar="FOLDER", help="where the report goes (default: report/ beside the runs)")


def run(args: argparse.Namespace) -> None:
    table = load_table(args.what) if Path(args.what).suffix in (".yaml", ".yml") else None
    folder = Path(args.runs or (f"output/{table.name}" if table else args.what))
    print(write_report(folder, table, Path(args.out or folder / "report"), args.baseline))


def write_report(folder: Path, table: Table | None, out: Path, baseline: str | None = None) -> str:
    """Write the report on the runs below ``folder`` to ``out``; returns its text.

    Raises:
        DJIPError: no finished student, no arm of that name, or an arm of the table with runs of several lenses.
    """
    results = read_results(folder)
    if table is not None:
        for arm, ids in several_lenses(results).items():
            if arm in table.arms:
                raise DJIPError(f"the arm {arm} has runs with several lenses in {folder}: {', '.join(ids)}; move away those that the table no longer has")
        results = in_order(results, table.distillers, list(table.arms))
    arms = arms_of(results) if table is None else [arm for arm in table.arms if arm in arms_of(results)]
    baseline = baseline or (next(iter(table.arms)) if table else arms[0])
    if baseline not in arms:
        raise DJIPError(f"{folder} has no finished run of the arm {baseline}; it has {', '.join(arms)}")
    arms = [baseline, *(arm for arm in arms if arm != baseline)]
    rows = table_rows(results, baseline)
    lenses = lenses_of(results, read_records(folder))
    of_lens = {lens: draw_lens(lens, out) for lens in lenses}
    pictures = draw(results, rows, arms, out)
    planned = table.students if table else None
    title = table.name if table else folder.name
    text = markdown_report(title, rows, results, arms, planned, pictures, lens_section(lenses, of_lens))
    atomic_write(out / "table.md", lambda path: path.write_text(text))
    atomic_write(out / "table.tex", lambda path: path.write_text(latex_report(rows, results, arms)))
    write_csv(out / "table.csv", rows)
    return text


def draw(results: Results, rows: list[dict], arms: list[str], out: Path) -> list[str]:
    """The pictures of the whole table that the records allow; returns their names."""
    from ..table_pictures import axis_figure, cmi_change_figure, differences_figure, gain_figure

    figures = {}
    axes = axes_of(row for cells in results.values() for row in cells)
    if len(arms) > 1 and any(row["pairs"] and row["arm"] != arms[0] for row in rows):
        figures["differences.png"] = differences_figure(rows, arms, axes)
    changes = {
        f"{pair.teacher}, {arm}": change
        for pair, cells in results.items()
        for cell in cells.values()
        for arm, runs in cell.items()
        if (change := cmi_change(runs)) is not None
    }
    if changes:
        figures["cmi.png"] = cmi_change_figure(changes)
    points = gains(results, arms[0])
    if len({round(point.cmi, 3) for point in points}) > 1 and not axes:  # on one value of CMI nothing depends on it
        figures["gain.png"] = gain_figure(points, arms[0])
    names = {axis: f"gain_by_{axis}.png" for axis in axes}
    for axis, name in names.items():
        if "differences.png" in figures and len({row[axis] for row in rows}) > 1:
            figures[name] = axis_figure(rows, arms, axis, axes)
    return save(figures, ("differences.png", "cmi.png", "gain.png", *names.values()), out)


def draw_lens(lens: TableLens, out: Path) -> list[str]:
    """The pictures that the record of ``lens`` allows; returns their names."""
    from ..lens_pictures import lens_figures

    name = f"lens-{lens.arm}-{file_name(lens.teacher)}-{lens.id}"
    figures = lens_figures(lens.record) if lens.record else {}
    kinds = ("tables", "fit", "simplex")
    return save({f"{name}-{kind}.png": figures[kind] for kind in kinds if kind in figures}, [f"{name}-{kind}.png" for kind in kinds], out)


def save(figures: Mapping[str, Figure], names: Sequence[str], out: Path) -> list[str]:
    """Write ``figures`` to ``out`` and take away what an earlier report left there under other ``names``; returns their names."""
    from ..pictures import save_figure

    for name in names:
        if name not in figures:
            (out / name).unlink(missing_ok=True)
    return [save_figure(figure, out / name).name for name, figure in figures.items()]
