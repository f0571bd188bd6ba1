"""``djip audit``: can a model be distilled?  From the records of a table's runs, no training."""

import argparse
from pathlib import Path

from djip_ext.experiments.audit import audit_of, audit_rows, audit_text
from djip_ext.experiments.plan import file_name
from djip_ext.experiments.runs import read_runs
from djip_ext.experiments.table import runs_of
from djip_ext.utils.files import atomic_write, write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip audit``."""
    parser.add_argument(
        "what",
        metavar="TABLE|FOLDER",
        help="YAML file of a table with a bar that djip reproduce has made, or a folder of its "
        "runs",
    )
    parser.add_argument(
        "--runs", metavar="FOLDER", help="where the runs of a table lie (default: output/NAME)"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.0,
        metavar="POINTS",
        help="points above the bar that count as nothing (default: %(default)s)",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="where the audit goes (default: audit/ below the runs)"
    )


def run(args: argparse.Namespace) -> None:
    """Write audit.md, audit.csv and a picture per pair of networks; print the verdicts.

    Raises:
        DJIPError: no finished knockoff student, no student from labels alone.
    """
    table, folder = runs_of(args.what, args.runs)
    out = Path(args.out or folder / "audit")
    runs = read_runs(folder)
    last = audit_of(runs, folder, "last_acc", args.margin, table)
    best = audit_of(runs, folder, "best_acc", args.margin, table)
    from djip_ext.plots.audit import audit_figure
    from djip_ext.plots.style import save_figure

    names = []
    for pair, (bar, victims) in last.items():
        name = f"audit-{file_name(pair.teacher)}-{file_name(pair.student)}.png"
        names.append(save_figure(audit_figure(bar, victims), out / name).name)
    text = audit_text({"last epoch": last, "best epoch": best}, names)
    atomic_write(out / "audit.md", lambda path: path.write_text(text))
    write_csv(out / "audit.csv", audit_rows(last))
    for pair, (_, victims) in last.items():
        for victim in victims:
            print(f"{pair}, {victim.name}: {victim.verdict}")
    print(f"{out}/audit.md, audit.csv and the picture say how")
