"""Arms of students side by side, paired by seed."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

from djip_ext.errors import DJIPError
from djip_ext.experiments.statistics import summarise
from djip_ext.plots.style import ARMS, FAINT, STYLE


@matplotlib.rc_context(STYLE)
def comparison_figure(arms: Mapping[str, Sequence[float]], ylabel: str, title: str) -> Figure:
    """One number per seed for each arm, the points of a seed joined, every arm against the first.

    Args:
        arms: for each arm the values of the same seeds in the same order; the first arm is the
            reference.
        ylabel: what the number is, with its unit.

    Raises:
        DJIPError: arms of different lengths, or without values.
    """
    lengths = [len(arm) for arm in arms.values()]
    if len(set(lengths)) != 1 or 0 in lengths:
        raise DJIPError(
            f"the arms have {lengths} values; a paired comparison needs the same seeds in every arm"
        )
    seeds = lengths[0]
    reference = next(iter(arms.values()))
    figure = Figure(figsize=(2.2 + 1.9 * len(arms), 4.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    x = range(len(arms))
    for run in zip(*arms.values(), strict=True):
        axes.plot(x, run, color=FAINT, linewidth=1, zorder=1)
    ticks = []
    for i, (name, arm) in enumerate(arms.items()):
        mean = sum(arm) / seeds
        colour = ARMS[i % len(ARMS)]
        axes.scatter([i] * seeds, arm, s=24, color=colour, zorder=3)
        axes.hlines(mean, i - 0.18, i + 0.18, color=colour, linewidth=2.5, zorder=2)
        against = "reference" if i == 0 else _difference_text(reference, arm)
        ticks.append(f"{name}\nmean {mean:.2f}\n{against}")
    axes.set_xticks(x, ticks)
    axes.tick_params(axis="x", length=0)
    axes.set(xlim=(-0.5, len(arms) - 0.5), ylabel=ylabel)
    axes.margins(y=0.12)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    figure.supxlabel(_legend_text(seeds), fontsize=8)
    return figure


def _legend_text(seeds: int) -> str:
    if seeds == 1:
        return "one seed"
    return (
        f"{seeds} seeds, a line each; bars: means; "
        "brackets: 95 % t-interval of the paired difference"
    )


def _difference_text(reference: Sequence[float], arm: Sequence[float]) -> str:
    paired = summarise([b - a for a, b in zip(reference, arm, strict=True)])
    low, high = paired.mean - paired.half_width, paired.mean + paired.half_width
    interval = f" [{low:+.2f}, {high:+.2f}]" if paired.n > 1 else ""
    return f"difference {paired.mean:+.2f}{interval}".replace("-", "−")
