"""What students gain at T = 1 against the entropy of the answers that they learn from.

    python results/cifar100/regime_entropy.py

from the root of the checkout, after results/cifar100/tables.sh; it reads reports and the CSV files
of regime.py alone, prints a table and draws tables/regime_soft/report/entropy.png.  Two teachers;
lenses, JPEG and divided logits before each.
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from djip_ext.experiments.report import markdown_table  # noqa: E402
from djip_ext.plots.style import FAINT, GOAL, LENS, PLAIN, STYLE, save_figure  # noqa: E402

TABLES = Path("results/cifar100/tables")
TEACHERS = {
    "vgg8_saturated, 120 epochs": ("regime_vgg8_cpu", "regime_soft"),
    "wrn_16_2, 60 epochs": ("regime_fifth",),
}
NAMES = {  # arms of the tables -> what they are
    "plain": "plain",
    "mild": "mild lens",
    "strong": "stronger lens",
    "jpeg": "JPEG",
    "temperature": "logits / 2",
    "entropy": "logits / 1.25",
    "cmi": "logits / 1.62",
}
COLOURS = {"lens": LENS, "JPEG": GOAL, "logits": PLAIN, "plain": PLAIN}
MARKS = {"lens": "o", "JPEG": "s", "logits": "D", "plain": "D"}


class Point(NamedTuple):
    """One arm at T = 1: entropy and CMI of the answers (nats), accuracy and paired gain."""

    entropy: float
    cmi: float
    arm: str
    accuracy: float
    gain: float
    half_width: float


def points(tables: tuple[str, ...]) -> list[Point]:
    """The arms of ``tables``, each once, in the order of their entropy."""
    found: dict[str, Point] = {}
    for table in tables:
        asked = TABLES / table.removesuffix("_cpu") / "answers"
        says = {row["arm"]: row for row in rows(asked / "answers.csv")
                if (row["T"], row["images"]) == ("1", "training")}  # fmt: skip
        for row in rows(TABLES / table / "report" / "table.csv"):
            arm = row["arm"]
            if row["KD.TEMPERATURE"] == "1" and arm in says:
                paired = (float(row[key] or 0) for key in ("last_acc_diff", "last_acc_ci95"))
                entropy, cmi = (float(says[arm][key]) for key in ("entropy", "cmi"))
                found[arm] = Point(entropy, cmi, NAMES[arm], float(row["last_acc"]), *paired)
    return sorted(found.values())


def rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def draw(axes: Axes, found: list[Point]) -> None:
    """Gains with their intervals against entropy, each named."""
    axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
    for point in found:
        kind = next(kind for kind in COLOURS if kind in point.arm)
        axes.errorbar(
            point.entropy,
            point.gain,
            point.half_width,
            color=COLOURS[kind],
            marker=MARKS[kind],
            markersize=6,
            elinewidth=1.2,
            capsize=3,
            zorder=3,
        )
        above = any(abs(p.entropy - point.entropy) < 0.03 and p.gain > point.gain for p in found)
        left = kind == "plain" or kind == "JPEG" and above
        side, gap = ("right", -7) if left else ("left", 7)
        axes.annotate(
            point.arm,
            (point.entropy, point.gain),
            (gap, -3),
            textcoords="offset points",
            ha=side,
            fontsize=7.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            zorder=1,  # a name must hide no interval
        )
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.set_xlabel("entropy of the teacher's answers (nats)")
    axes.margins(x=0.18)


def main() -> None:
    """Print the table and draw the picture."""
    lines = [["teacher", "arm", "entropy (nats)", "CMI (nats)", "accuracy (%)", "gain (points)"]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        figure.suptitle("KD at T = 1: what the student gains, whatever made the answers softer")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (teacher, tables) in zip(panels, TEACHERS.items(), strict=True):
            found = points(tables)
            draw(axes, found)
            axes.set_title(teacher)
            for point in found:
                gain = f"{point.gain:+.2f} ± {point.half_width:.2f}" if point.half_width else ""
                numbers = [f"{value:.3f}" for value in (point.entropy, point.cmi)]
                lines.append([teacher, point.arm, *numbers, f"{point.accuracy:.2f}", gain])
        panels[0].set_ylabel("paired difference to plain, last epoch (points)")
        figure.supxlabel("bars: 95 % t-interval over five seeds", fontsize=8)
        save_figure(figure, TABLES / "regime_soft" / "report" / "entropy.png")
    print(markdown_table(lines))


if __name__ == "__main__":
    main()
