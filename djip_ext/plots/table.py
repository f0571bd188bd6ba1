"""Pictures of a table of results: differences per row and pair, CMI per teacher, gains."""

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from djip_ext.experiments.differences import Gain, Row
from djip_ext.plots.style import ARMS, FAINT, INK, LENS, PLAIN, STYLE, luminance


@matplotlib.rc_context(STYLE)
def differences_figure(
    rows: Sequence[Row], arms: Sequence[str], axes_of_table: Sequence[str] = ()
) -> Figure:
    """A heat map of the paired differences, last epoch: distillers down, pairs and arms across.

    Differences that lie outside their interval are bold.

    Args:
        rows: of :func:`~djip_ext.experiments.differences.table_rows`.
        arms: the baseline first.
        axes_of_table: options that the table varies, whose values name the lines too.
    """
    cells = {
        (_line(row, axes_of_table), _column(row)): row for row in _with_difference(rows, arms[0])
    }
    lines = list(dict.fromkeys(line for line, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    nothing = {"last_acc_diff": float("nan")}
    values = [
        [cells.get((line, column), nothing)["last_acc_diff"] for column in columns]
        for line in lines
    ]
    reach = max(1.0, *(abs(row["last_acc_diff"]) for row in cells.values()))
    size = max(4.6, 2.2 + 1.2 * len(columns)), 1.9 + 0.34 * len(lines)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(f"Difference to {arms[0]}, last epoch (points)")
    axes = figure.subplots()
    colours = colormaps["PuOr_r"]
    scale = TwoSlopeNorm(0, -reach, reach)
    picture = axes.imshow(values, cmap=colours, norm=scale, aspect="auto")
    for (line, column), row in cells.items():
        dark = luminance(colours(scale(row["last_acc_diff"]))) < 0.52
        axes.text(
            columns.index(column),
            lines.index(line),
            _difference_text(row),
            ha="center",
            va="center",
            fontsize=8,
            weight="bold" if _is_sure(row) else "normal",
            color="white" if dark else INK,
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(lines)), lines)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, shrink=0.7)
    figure.supxlabel(
        "± half of the 95 % t-interval over seeds; bold: zero lies outside", fontsize=8
    )
    return figure


def _with_difference(rows: Sequence[Row], baseline: str) -> list[Row]:
    return [row for row in rows if row["arm"] != baseline and row["last_acc_diff"] != ""]


def _is_sure(row: Row) -> bool:
    """Whether zero lies outside the interval of the difference."""
    half_width = row["last_acc_ci95"]
    return bool(half_width != "" and abs(row["last_acc_diff"]) > half_width)


def _difference_text(row: Row) -> str:
    text = f"{row['last_acc_diff']:+.2f}"
    if row["last_acc_ci95"] != "":
        text += f" ± {row['last_acc_ci95']:.2f}"
    return text.replace("-", "−")


def _line(row: Row, axes: Sequence[str]) -> str:
    """The distiller and its values along ``axes``, as ``KD, temperature 4``."""
    values = [f"{axis.rpartition('.')[2].lower()} {row[axis]}" for axis in axes if row[axis] != ""]
    return ", ".join([row["distiller"], *values])


def _column(row: Row) -> str:
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
    for y, (before, after) in zip(heights, changes.values(), strict=True):
        axes.plot((before, after), (y, y), color=FAINT, linewidth=2, zorder=1)
        axes.annotate(
            f"{before:.3f} → {after:.3f}",
            (max(before, after), y),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    plain = [before for before, _ in changes.values()]
    lens = [after for _, after in changes.values()]
    axes.scatter(plain, heights, color=PLAIN, s=40, zorder=2, label="plain")
    axes.scatter(lens, heights, color=LENS, s=40, zorder=2, label="behind the lens")
    axes.set_yticks(heights, list(changes))
    axes.set_xlim(0, 1.25 * max(plain + lens))
    axes.set_ylim(-0.7, len(changes) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.6)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@matplotlib.rc_context(STYLE)
def gain_figure(gains: Sequence[Gain], baseline: str) -> Figure:
    """The students' paired gain against the teacher's gain in CMI.

    A mark per pair and arm, a stroke for each of its distillers.  An arm that lacks some distiller
    of its pair is named with those it has.
    """
    arms = list(dict.fromkeys(gain.arm for gain in gains))
    several_pairs = len({gain.pair for gain in gains}) > 1
    several_distillers = any(len(gain.each) > 1 for gain in gains)
    # The axis begins at the baseline, so that equal gains look equal
    low = min(0.0, *(gain.cmi for gain in gains))
    high = max(0.0, *(gain.cmi for gain in gains))
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    figure.suptitle("What the student gains, and what CMI the teacher gained")
    axes = figure.subplots()
    axes.axhline(0, color=FAINT, linewidth=1)
    for gain in gains:
        _draw_gain(axes, gain, arms.index(gain.arm), several_pairs)
    for i, arm in enumerate(arms):
        colour, marker = _arm_style(i)
        label = _gain_label(arm, gains)
        axes.plot([], [], color=colour, marker=marker, linestyle="none", label=label)
    margin = 0.08 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    marks = "marks: mean of the distillers, strokes: each of them; " if several_distillers else ""
    axes.set_xlabel(
        f"CMI of the teacher minus that in the arm {baseline} (nats)\n"
        f"{marks}bars: 95 % t-interval over seeds"
    )
    axes.set_ylabel(f"paired difference to {baseline}, last epoch (points)")
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    figure.legend(loc="outside lower center", ncols=min(4, len(arms)))
    return figure


def _gain_label(arm: str, gains: Sequence[Gain]) -> str:
    """The name of ``arm``, with its distillers where others of the same pair have more."""
    for own in (gain for gain in gains if gain.arm == arm):
        if any(not gain.each.keys() <= own.each.keys() for gain in gains if gain.pair == own.pair):
            return f"{arm} ({', '.join(own.each)})"
    return arm


def _draw_gain(axes: Axes, gain: Gain, index: int, named: bool) -> None:
    """Mark, strokes and interval of one arm of a pair, with the name of the pair if ``named``."""
    colour, marker = _arm_style(index)
    if len(gain.each) > 1:
        x = [gain.cmi] * len(gain.each)
        each = list(gain.each.values())
        axes.scatter(x, each, color=colour, marker="_", s=70, alpha=0.6, linewidth=1, zorder=2)
    error = gain.mean.half_width if gain.mean.n > 1 else None
    axes.errorbar(
        gain.cmi,
        gain.mean.mean,
        error,
        color=colour,
        marker=marker,
        markersize=7,
        elinewidth=1.2,
        capsize=3,
        zorder=3,
    )
    if named:
        axes.annotate(
            f"{gain.pair.teacher}\n{gain.pair.student}",
            (gain.cmi, gain.mean.mean + (error or 0)),
            (0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=6.5,
            zorder=4,
        )


@matplotlib.rc_context(STYLE)
def axis_figure(
    rows: Sequence[Row], arms: Sequence[str], axis: str, axes_of_table: Sequence[str]
) -> Figure:
    """The paired gain against the values of ``axis``.

    A line with intervals per arm, a panel for all else that differs; a note where no row with a
    value of the axis has a difference.

    Args:
        rows: of :func:`~djip_ext.experiments.differences.table_rows`.
        arms: the baseline first.
        axes_of_table: every option that the table varies.
    """
    others = [name for name in axes_of_table if name != axis]
    title = f"What the student gains over {arms[0]}"
    shown = [row for row in _with_difference(rows, arms[0]) if row[axis] != ""]
    if not shown:
        figure = Figure(layout="constrained")
        figure.suptitle(title)
        note = f"no value of {axis} was run in {arms[0]} and in another arm"
        figure.text(0.5, 0.5, note, ha="center")
        return figure
    panels: dict[str, list[Row]] = {}
    for row in shown:
        name = f"{row['teacher']}, {row['student']}: {_line(row, others)}"
        panels.setdefault(name, []).append(row)
    values = sorted({row[axis] for row in shown}, key=lambda v: (isinstance(v, str), v))
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(max(6.4, 4.4 * across), 1.2 + 3.6 * down), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, own) in zip(grid, panels.items(), strict=False):
        axes.set_title(name)
        axes.axhline(0, color=FAINT, linewidth=1)
        for i, arm in enumerate(arms[1:]):
            # Beside one another, so that the bars of arms do not hide one another
            aside = 0.06 * (i - (len(arms) - 2) / 2)
            line = [row for row in own if row["arm"] == arm]
            line.sort(key=lambda row: values.index(row[axis]))
            spots = [values.index(row[axis]) + aside for row in line]
            _draw_line(axes, spots, line, i)
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_xlabel(axis)
        axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    for i, arm in enumerate(arms[1:]):
        colour, marker = _arm_style(i)
        grid[0].plot([], [], color=colour, marker=marker, label=arm)
    counts = {row["pairs"] for row in shown}
    seeds = " to ".join(map(str, dict.fromkeys((min(counts), max(counts)))))
    figure.supylabel(f"paired difference to {arms[0]}, last epoch (points)", fontsize=9)
    figure.supxlabel(f"bars: 95 % t-interval over {seeds} seeds", fontsize=8)
    figure.legend(loc="outside right upper")
    return figure


def _draw_line(axes: Axes, spots: Sequence[float], rows: Sequence[Row], index: int) -> None:
    """The differences of one arm at ``spots``, with their intervals."""
    colour, marker = _arm_style(index)
    axes.errorbar(
        spots,
        [row["last_acc_diff"] for row in rows],
        [row["last_acc_ci95"] or 0.0 for row in rows],
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.2,
        elinewidth=1,
        capsize=3,
    )


def _arm_style(index: int) -> tuple[str, str]:
    """Colour and marker of an arm; the plain teacher's blue is left out."""
    colours = ARMS[1:]
    return colours[index % len(colours)], "oDs^vPX"[index // len(colours) % 7]
