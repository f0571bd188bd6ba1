"""What students gain at T = 1 against how far they overfit.

    python results/cifar100/regime_overfitting.py

from the root of the checkout, after results/cifar100/tables.sh; it reads reports and runs.csv
alone, prints a table and draws tables/regime_overfit/report/overfitting.png.  KD behind two
saturated teachers; the overfitting of a setting is the accuracy of its plain students on their own
(augmented) training images less that on test images, in points, at the last epoch.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from regime_entropy import TABLES, rows  # noqa: E402

from djip_ext.experiments.report import markdown_table  # noqa: E402
from djip_ext.experiments.statistics import summarise  # noqa: E402
from djip_ext.plots.style import FAINT, GOAL, LENS, PLAIN, STYLE, save_figure  # noqa: E402

# the student, its images and the crops of each, epochs -> the table, and the epochs of its row
SETTINGS = {
    "resnet8, 5 %, 16 crops, 120 epochs": ("regime_vgg8_cpu", ""),
    "resnet8, 5 %, 16 crops, 40 epochs": ("regime_short", "40"),
    "resnet8, 5 %, 16 crops, 20 epochs": ("regime_short", "20"),
    "vgg8, 20 %, 1 crop, 12 epochs": ("regime_overfit", ""),
    "vgg8, 20 %, 16 crops, 12 epochs": ("regime_overfit_crops", ""),
    "resnet8, 20 %, 16 crops, 12 epochs": ("regime_20_short", ""),
    "vgg8, all, 8 crops, 30 epochs": ("regime_vgg13", ""),
    "resnet8, 20 %, 8 crops, 30 epochs": ("regime_20", ""),
    "resnet8, all, 2 crops, 6 epochs": ("regime_100", ""),
}
EPOCHS = "SOLVER.EPOCHS"  # the axis of regime_short
ARMS = {  # arm -> its name, colour and mark
    "temperature": ("teacher's logits / 2", PLAIN, "D"),
    "mild": ("mild lens", LENS, "o"),
    "jpeg": ("JPEG of its CMI", GOAL, "s"),
}


class Setting(NamedTuple):
    """How far the plain students overfit (points), and the report's rows of the arms."""

    overfitting: float
    name: str
    arms: dict[str, dict[str, str]]


def setting(name: str, table: str, epochs: str) -> Setting:
    """What the records of ``table`` say of KD at T = 1, in the row of ``epochs`` if it has one."""

    def of_the_row(path: Path) -> list[dict[str, str]]:
        found = [row for row in rows(path) if row["distiller"] == "KD"]
        return [row for row in found if row.get(EPOCHS, "") == epochs]

    plain = [row for row in of_the_row(TABLES / table / "runs.csv") if row["arm"] == "plain"]
    gaps = [float(row["train_acc"]) - float(row["last_acc"]) for row in plain]
    report = of_the_row(TABLES / table / "report" / "table.csv")
    return Setting(summarise(gaps).mean, name, {row["arm"]: row for row in report})


def gain(row: dict[str, str]) -> tuple[float, float]:
    """The paired difference to plain, last epoch, and half of its interval (points)."""
    return float(row["last_acc_diff"]), float(row["last_acc_ci95"])


def draw(axes: Axes, found: list[Setting]) -> None:
    """Gains with their intervals, an arm a colour; settings in the order of their overfitting."""
    axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
    for place, (arm, (name, colour, mark)) in enumerate(ARMS.items()):
        there = [(x, one) for x, one in enumerate(found) if arm in one.arms]
        gains = [gain(one.arms[arm]) for _, one in there]
        axes.errorbar(
            [x + 0.18 * (place - 1) for x, _ in there],  # side by side
            [mean for mean, _ in gains],
            [half_width for _, half_width in gains],
            label=name,
            color=colour,
            marker=mark,
            markersize=6,
            linestyle="none",
            elinewidth=1.2,
            capsize=3,
        )
    labels = [f"{one.overfitting:.1f}\n" + one.name.replace(", ", "\n") for one in found]
    axes.set_xticks(range(len(found)), labels)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.set_xlabel("how far the plain student overfits (points); student, images, crops, epochs")
    axes.set_ylabel("paired difference to plain (points)")
    axes.legend(loc="lower right", frameon=False)


def main() -> None:
    """Print the table and draw the picture."""
    found = sorted(setting(name, *where) for name, where in SETTINGS.items())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.6), layout="constrained")
        figure.suptitle("KD at T = 1: what softer answers are worth to students that overfit")
        draw(figure.subplots(), found)
        figure.supxlabel("bars: 95 % t-interval over paired seeds", fontsize=8)
        save_figure(figure, TABLES / "regime_overfit" / "report" / "overfitting.png")
    names = [name for name, _, _ in ARMS.values()]
    lines = [["student, images, crops, epochs", "overfits by (points)", "n", *names]]
    for one in reversed(found):
        gains = [
            "{:+.2f} ± {:.2f}".format(*gain(one.arms[arm])) if arm in one.arms else "not run"
            for arm in ARMS
        ]
        lines.append([one.name, f"{one.overfitting:.1f}", one.arms["mild"]["pairs"], *gains])
    print(markdown_table(lines))


if __name__ == "__main__":
    main()
