"""Pictures of a whole table: differences per distiller and pair, CMI per teacher, gain against CMI."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from .bench.records import Gain
from .pictures import ARMS, FAINT, INK, LENS, PLAIN, STYLE, luminance


@matplotlib.rc_context(STYLE)
def differences_figure(rows: Sequence[dict[str, Any]], arms: Sequence[str], axes_of_table: Sequence[str] = ()) -> Figure:
    """A heat map of the paired differences, last epoch: distillers down, pairs and arms across; those outside their interval in bold.

    Args:
        rows: of :func:`~djip_ext.bench.records.table_rows`.
        arms: the baseline first.
        axes_of_table: options that the table varies, whose values name the lines too.
    """
    cells = {(_line(row, axes_of_table), _column(row)): row for row in rows if row["arm"] != arms[0] and row["last_acc_diff"] != ""}
    distillers, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    values = [[cells[d, c]["last_acc_diff"] if (d, c) in cells else float("nan") for c in columns] for d in distillers]
    reach = max(1.0, *(abs(row["last_acc_diff"]) for row in cells.values()))
    figure = Figure(figsize=(max(4.6, 2.2 + 1.2 * len(columns)), 1.9 + 0.34 * len(distillers)), layout="constrained")
    figure.suptitle(f"Difference to {arms[0]}, last epoch (points)")
    axes = figure.subplots()
    colours, scale = colormaps["PuOr_r"], TwoSlopeNorm(0, -reach, reach)
    picture = axes.imshow(values, cmap=colours, norm=scale, aspect="auto")
    for (distiller, column), row in cells.items():
        sure = row["last_acc_ci95"] != "" and abs(row["last_acc_diff"]) > row["last_acc_ci95"]
        text = f"{row['last_acc_diff']:+.2f}" + (f" ± {row['last_acc_ci95']:.2f}" if row["last_acc_ci95"] != "" else "")
        dark = luminance(colours(scale(row["last_acc_diff"]))) < 0.52
        place = columns.index(column), distillers.index(distiller)
        weight, colour = "bold" if sure else "normal", "white" if dark else INK
        axes.text(*place, text.replace("-", "−"), ha="center", va="center", fontsize=8, weight=weight, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(distillers)), distillers)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, shrink=0.7)
    figure.supxlabel("± half of the 95 % t-interval over seeds; bold: zero lies outside", fontsize=8)
    return figure


def _line(row: dict[str, Any], axes: Sequence[str]) -> str:
    return ", ".join([row["distiller"], *(f"{axis.rpartition('.')[2].lower()} {row[axis]}" for axis in axes if row[axis] != "")])


def _column(row: dict[str, Any]) -> str:
    return f"{row['teacher']}\n{row['student']}\n{row['arm']}"


@matplotlib.rc_context(STYLE)
def cmi_change_figure(changes: Mapping[str, tuple[float, float]]) -> Figure:
    """CMI of each teacher without and with each lens.

    Args:
        changes: name -> CMI before and after, nats.
    """
    figure = Figure(figsize=(6.4, 1.3 + 0.42 * len(changes)), layout="constrained")
    figure.suptitle("The teacher's CMI, training images (nats)")
    axes = figure.subplots()
    heights = range(len(changes) - 1, -1, -1)
    for y, (before, after) in zip(heights, changes.values()):
        axes.plot((before, after), (y, y), color=FAINT, linewidth=2, zorder=1)
        axes.annotate(f"{before:.3f} → {after:.3f}", (max(before, after), y), (8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.scatter([before for before, _ in changes.values()], heights, color=PLAIN, s=40, zorder=2, label="plain")
    axes.scatter([after for _, after in changes.values()], heights, color=LENS, s=40, zorder=2, label="behind the lens")
    axes.set_yticks(heights, list(changes))
    axes.set_xlim(0, 1.25 * max(max(change) for change in changes.values()))
    axes.set_ylim(-0.7, len(changes) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.6)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def gain_figure(gains: Sequence[Gain], baseline: str) -> Figure:
    """The students' paired gain against the teacher's gain in CMI: a mark a pair and arm, a stroke each of its distillers."""
    arms, pairs = list(dict.fromkeys(gain.arm for gain in gains)), list(dict.fromkeys(gain.pair for gain in gains))
    low, high = (end(0.0, *(gain.cmi for gain in gains)) for end in (min, max))  # from the baseline on, so that equal gains look equal
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    figure.suptitle("What the student gains, and what CMI the teacher gained")
    axes = figure.subplots()
    axes.axhline(0, color=FAINT, linewidth=1)
    for gain in gains:
        colour, marker = _look(arms.index(gain.arm))
        if len(gain.each) > 1:
            x, each = [gain.cmi] * len(gain.each), list(gain.each.values())
            axes.scatter(x, each, color=colour, marker="_", s=70, alpha=0.6, linewidth=1, zorder=2)
        error = gain.mean.half_width if gain.mean.n > 1 else None
        axes.errorbar(gain.cmi, gain.mean.mean, error, color=colour, marker=marker, markersize=7, elinewidth=1.2, capsize=3, zorder=3)
        if len(pairs) > 1:
            place = gain.cmi, gain.mean.mean + (error or 0)
            name = f"{gain.pair.teacher}\n{gain.pair.student}"
            axes.annotate(name, place, (0, 6), textcoords="offset points", ha="center", fontsize=6.5, zorder=4)
    for i, arm in enumerate(arms):
        colour, marker = _look(i)
        axes.plot([], [], color=colour, marker=marker, linestyle="none", label=arm)
    margin = 0.08 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    marks = "marks: mean of the distillers, strokes: each of them; " if any(len(gain.each) > 1 for gain in gains) else ""
    axes.set_xlabel(f"CMI of the teacher minus that in the arm {baseline} (nats)\n{marks}bars: 95 % t-interval over seeds")
    axes.set_ylabel(f"paired difference to {baseline}, last epoch (points)")
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    figure.legend(loc="outside lower center", ncols=min(4, len(arms)))
    return figure


@matplotlib.rc_context(STYLE)
def axis_figure(rows: Sequence[dict[str, Any]], arms: Sequence[str], axis: str, axes_of_table: Sequence[str]) -> Figure:
    """The paired gain against the values of ``axis``: a line an arm, with intervals; a panel for all else that differs.

    Args:
        rows: of :func:`~djip_ext.bench.records.table_rows`.
        arms: the baseline first.
        axes_of_table: every option that the table varies.
    """
    others = [name for name in axes_of_table if name != axis]
    shown = [row for row in rows if row["arm"] != arms[0] and row["last_acc_diff"] != "" and row[axis] != ""]

    def panel(row: dict[str, Any]) -> str:
        return f"{row['teacher']}, {row['student']}: {_line(row, others)}"

    panels, values = list(dict.fromkeys(map(panel, shown))), list(dict.fromkeys(row[axis] for row in shown))
    values.sort(key=lambda value: (isinstance(value, str), value))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(6.4, 4.4 * across), 1.2 + 3.6 * down), layout="constrained")
    figure.suptitle(f"What the student gains over {arms[0]}")
    grid = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    for axes in grid[len(panels):]:
        axes.set_visible(False)
    for axes, name in zip(grid, panels):
        axes.set_title(name)
        axes.axhline(0, color=FAINT, linewidth=1)
        for i, arm in enumerate(arms[1:]):
            line = sorted(((values.index(row[axis]), row) for row in shown if row["arm"] == arm and panel(row) == name), key=lambda point: point[0])
            colour, marker = _look(i)
            aside = 0.06 * (i - (len(arms) - 2) / 2)  # so that the bars of arms do not hide one another
            spots = [place + aside for place, _ in line]
            bars = [row["last_acc_ci95"] or 0.0 for _, row in line]
            axes.errorbar(spots, [row["last_acc_diff"] for _, row in line], bars, color=colour, marker=marker, markersize=5, linewidth=1.2, elinewidth=1, capsize=3)
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_xlabel(axis)
        axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    for i, arm in enumerate(arms[1:]):
        colour, marker = _look(i)
        grid[0].plot([], [], color=colour, marker=marker, label=arm)
    counts = sorted({row["pairs"] for row in shown})
    seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    figure.supylabel(f"paired difference to {arms[0]}, last epoch (points)", fontsize=9)
    figure.supxlabel(f"bars: 95 % t-interval over {seeds} seeds", fontsize=8)
    figure.legend(loc="outside right upper")
    return figure


def _look(index: int) -> tuple[str, str]:
    """Colour and marker of an arm; the plain teacher's blue is left out."""
    colours = ARMS[1:]
    return colours[index % len(colours)], "oDs^vPX"[index // len(colours) % 7]
