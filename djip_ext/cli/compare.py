"""``djip compare``: students of several arms over paired seeds, as Markdown, CSV and a picture."""

import argparse
from typing import Any

from djip_ext.errors import DJIPError
from djip_ext.experiments.runs import read_arm
from djip_ext.experiments.statistics import compare, markdown
from djip_ext.utils.files import atomic_write, write_csv


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip compare``."""
    parser.add_argument(
        "arms",
        nargs="+",
        metavar="NAME=FOLDER",
        help="folders with seed-N/result.json, or that had them before djip collect; the first arm "
        "is the baseline",
    )
    parser.add_argument("--out", metavar="FILE", help="also write FILE.md, FILE.csv and FILE.png")
    parser.add_argument(
        "--title", default="Students", help="heading of the picture (default: %(default)s)"
    )


NOTE = (
    "Mean ± standard deviation over seeds, %; "
    "paired difference to the first arm ± half of its 95 % t-interval."
)


def run(args: argparse.Namespace) -> None:
    """Print the comparison and, with ``--out``, write it.

    Raises:
        DJIPError: an argument that is not ``NAME=FOLDER``, a name that comes twice, a folder
            without finished runs, or a damaged record.
    """
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in args.arms:
        name, found, folder = arm.partition("=")
        if not found:
            raise DJIPError(
                f"'{arm}' is not NAME=FOLDER, for example plain=output/runs/djip-identity/KD"
            )
        if name in arms:
            raise DJIPError(f"two arms are called '{name}'; give each a name of its own")
        arms[name] = read_arm(folder)
    rows = compare(arms)
    table = f"{markdown(rows)}\n\n{NOTE}\n"
    print(table)
    if args.out:
        from djip_ext.plots.comparison import comparison_figure
        from djip_ext.plots.style import save_figure

        atomic_write(f"{args.out}.md", lambda path: path.write_text(table))
        write_csv(f"{args.out}.csv", rows)
        shared = sorted(set.intersection(*(set(arm) for arm in arms.values())))
        accuracies = {
            name: [arm[seed]["last_acc"] for seed in shared] for name, arm in arms.items()
        }
        save_figure(
            comparison_figure(accuracies, "accuracy of the student, last epoch (%)", args.title),
            f"{args.out}.png",
        )
