"""Pictures: how all of them look, what a lens does to images and to the CMI of every class, and what came of it.

Every function returns a matplotlib ``Figure``; :func:`save_figure` writes it.  Nothing here touches pyplot or a user's
backend and style.  Blue is the plain teacher, orange the teacher with the lens (Okabe and Ito's colour-blind-safe hues).
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from djip_ext.errors import DJIPError
from djip_ext.experiments.statistics import summarise
from djip_ext.metrics.cmi import CMI
from djip_ext.utils.files import atomic_write

DPI = 150
PLAIN, LENS, GOAL, INK, FAINT = "#0072B2", "#D55E00", "#009E73", "#333333", "#BBBBBB"
ARMS = (PLAIN, LENS, GOAL, "#CC79A7", "#E69F00", "#56B4E9")
STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 9,
    "text.usetex": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write ``figure`` atomically, in the format that the suffix of ``path`` names; raises DJIPError when that fails."""
    kind = Path(path).suffix.lstrip(".")
    return atomic_write(path, lambda p: figure.savefig(p, format=kind, dpi=DPI))


def luminance(colour: Sequence[float]) -> float:
    """How bright a colour (red, green, blue, ...) looks, 0 to 1: text on it is dark above some middle value."""
    red, green, blue = colour[:3]
    return 0.3 * red + 0.59 * green + 0.11 * blue


@matplotlib.rc_context(STYLE)
def images_figure(originals: Tensor, lensed: Tensor, names: Sequence[str]) -> Figure:
    """Images, what the teacher sees of them, and the amplified difference; eight to a row.

    Shape: ``originals`` and ``lensed`` (N, 3, H, W) in [0, 255], uint8 or float; N names.
    """
    originals, lensed = originals.detach().cpu().float(), lensed.detach().cpu().float()
    change = lensed - originals
    typical = (
        change.abs().flatten().kthvalue(max(1, math.ceil(0.99 * change.numel()))).values.item()
    )
    factor = max((f for f in (2, 4, 8, 16, 32) if f * typical <= 127), default=1)
    rows = ("original", "through the lens", f"difference × {factor}\n(grey: none)")
    count = len(originals)
    columns, groups = min(8, count), math.ceil(count / 8)
    figure = Figure(figsize=(max(2.4, 1.35 * columns + 0.5), 4.75 * groups), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0.01, wspace=0.01)
    figure.suptitle("What the teacher sees")
    grid = figure.subplots(3 * groups, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i in range(count):
        quality = 20 * math.log10(255 / max(1e-9, change[i].square().mean().sqrt().item()))
        shown = (originals[i], lensed[i], 128 + factor * change[i])
        titles = (names[i], f"PSNR {quality:.1f} dB" if quality < 99 else "unchanged", "")
        for row, (image, label, title) in enumerate(zip(shown, rows, titles)):
            axes = grid[3 * (i // 8) + row, i % 8]
            axes.imshow(
                image.clamp(0, 255).round().byte().permute(1, 2, 0).numpy(), interpolation="nearest"
            )
            axes.set_title(title, fontsize=8, pad=3)
            if i % 8 == 0:
                axes.text(
                    -0.06,
                    0.5,
                    label,
                    rotation=90,
                    ha="right",
                    va="center",
                    ma="center",
                    transform=axes.transAxes,
                )
    return figure


@matplotlib.rc_context(STYLE)
def cmi_figure(before: CMI, after: CMI, class_names: Sequence[str] | None = None) -> Figure:
    """CMI of every class without and with the lens as paired dots, classes in the order of CMI with the lens."""
    present = (after.counts > 0).nonzero().flatten()
    order = present[after.per_class[present].argsort()].tolist()
    names = [class_names[y] if class_names else str(y) for y in order]
    x = range(len(order))
    plain, lens = before.per_class[order].tolist(), after.per_class[order].tolist()
    figure = Figure(figsize=(min(15.0, 4.0 + 0.13 * len(order)), 4.6), layout="constrained")
    axes = figure.subplots()
    axes.vlines(x, plain, lens, color=FAINT, linewidth=1.2, zorder=1)
    axes.scatter(x, plain, s=18, color=PLAIN, label="plain teacher", clip_on=False, zorder=2)
    axes.scatter(
        x, lens, s=18, color=LENS, marker="D", label="with the lens", clip_on=False, zorder=3
    )
    axes.set_title(
        f"CMI class by class; over all {len(order)}: {before.total:.4f} → {after.total:.4f} nats"
    )
    axes.set(
        xlim=(-0.8, len(order) - 0.2),
        ylim=(0, 1.05 * max(plain + lens) or 1),
        xlabel="class, sorted by its CMI with the lens",
    )
    axes.set_ylabel("I(X; Ŷ | Y = y)  [nats]")
    axes.set_xticks(x, names, rotation=90, fontsize=8 if len(order) <= 40 else 6)
    axes.tick_params(axis="x", length=2, pad=2)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.legend(loc="upper left")
    return figure


@matplotlib.rc_context(STYLE)
def comparison_figure(arms: Mapping[str, Sequence[float]], ylabel: str, title: str) -> Figure:
    """One number per seed for each arm, the points of a seed joined, every arm against the first.

    Args:
        arms: for each arm the values of the same seeds in the same order; the first arm is the reference.
        ylabel: what the number is, with its unit.

    Raises:
        DJIPError: arms of different lengths, or without values.
    """
    names, values = list(arms), [list(arm) for arm in arms.values()]
    seeds = len(values[0]) if values else 0
    if seeds == 0 or any(len(arm) != seeds for arm in values):
        raise DJIPError(
            f"the arms have {[len(arm) for arm in values]} values; a paired comparison needs the same seeds in every arm"
        )
    figure = Figure(figsize=(2.2 + 1.9 * len(arms), 4.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    x = range(len(arms))
    for run in zip(*values):
        axes.plot(x, run, color=FAINT, linewidth=1, zorder=1)
    ticks = []
    for i, (name, arm) in enumerate(zip(names, values)):
        mean, colour = sum(arm) / seeds, ARMS[i % len(ARMS)]
        axes.scatter([i] * seeds, arm, s=24, color=colour, zorder=3)
        axes.hlines(mean, i - 0.18, i + 0.18, color=colour, linewidth=2.5, zorder=2)
        against = "reference" if i == 0 else _difference_text(values[0], arm)
        ticks.append(f"{name}\nmean {mean:.2f}\n{against}")
    axes.set_xticks(x, ticks)
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.5, len(arms) - 0.5), ylabel=ylabel)
    axes.margins(y=0.12)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    runs = (
        "one seed"
        if seeds == 1
        else f"{seeds} seeds, a line each; bars: means; brackets: 95 % t-interval of the paired difference"
    )
    figure.supxlabel(runs, fontsize=8)
    return figure


def _difference_text(reference: Sequence[float], arm: Sequence[float]) -> str:
    paired = summarise([b - a for a, b in zip(reference, arm)])
    low, high = paired.mean - paired.half_width, paired.mean + paired.half_width
    interval = f" [{low:+.2f}, {high:+.2f}]" if paired.n > 1 else ""
    return f"difference {paired.mean:+.2f}{interval}".replace("-", "−")
