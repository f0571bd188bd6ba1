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

SETTINGS = {  # table -> its student and images
    "regime_vgg8_cpu": "resnet8, 5 %",
    "regime_overfit": "vgg8, 20 %",
    "regime_vgg13": "vgg8, all",
    "regime_20": "resnet8, 20 %",
    "regime_100": "resnet8, all",
}
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


def setting(table: str, name: str) -> Setting:
    """What the records of ``table`` say of KD at T = 1."""
    plain = [row for row in rows(TABLES / table / "runs.csv") if row["arm"] == "plain"]
    gaps = [float(row["train_acc"]) - float(row["last_acc"]) for row in plain
            if row["distiller"] == "KD"]  # fmt: skip
    report = rows(TABLES / table / "report" / "table.csv")
    return Setting(summarise(gaps).mean, name, {row["arm"]: row for row in report})


def gain(row: dict[str, str]) -> tuple[float, float]:
    """The paired difference to plain, last epoch, and half of its interval (points)."""
    return float(row["last_acc_diff"]), float(row["last_acc_ci95"])


def draw(axes: Axes, found: list[Setting]) -> None:
    """Gains with their intervals against overfitting, an arm a colour."""
    axes.axhline(0, color=FAINT, linewidth=1, zorder=0)
    for place, (arm, (name, colour, mark)) in enumerate(ARMS.items()):
        gains = [gain(one.arms[arm]) for one in found]
        axes.errorbar(
            [one.overfitting + 0.7 * (place - 1) for one in found],  # side by side
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
    top = axes.get_ylim()[1]
    for one in found:
        axes.annotate(
            one.name.replace(", ", "\n"),
            (one.overfitting, top),
            (0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
        )
    axes.set_ylim(top=top)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.set_xlabel("the plain student: accuracy on its training images less on test images")
    axes.set_ylabel("paired difference to plain (points)")
    axes.legend(loc="lower right", frameon=False)


def main() -> None:
    """Print the table and draw the picture."""
    found = sorted(setting(table, name) for table, name in SETTINGS.items())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.4), layout="constrained")
        figure.suptitle("KD at T = 1: what softer answers are worth to students that overfit")
        draw(figure.subplots(), found)
        figure.supxlabel("points; bars: 95 % t-interval over paired seeds", fontsize=8)
        save_figure(figure, TABLES / "regime_overfit" / "report" / "overfitting.png")
    lines = [
        ["student, images", "overfits by (points)", "n", *(name for name, _, _ in ARMS.values())]
    ]
    for one in reversed(found):
        gains = ["{:+.2f} ± {:.2f}".format(*gain(one.arms[arm])) for arm in ARMS]
        lines.append([one.name, f"{one.overfitting:.1f}", one.arms["mild"]["pairs"], *gains])
    print(markdown_table(lines))


if __name__ == "__main__":
    main()
