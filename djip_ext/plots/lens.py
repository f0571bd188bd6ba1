"""Pictures of a lens from its record: its quantization tables, its fit, and one class."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import Locator, LogLocator, MaxNLocator
from torch import Tensor

from djip_ext.fit.record import LensRecord, made_for
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.metrics.class_simplex import Answers, OneClass
from djip_ext.plots.style import FAINT, GOAL, INK, LENS, PLAIN, STYLE, luminance


def lens_figures(record: LensRecord) -> dict[str, Figure]:
    """The pictures that ``record`` allows, by name.

    ``tables`` (the quantization tables) always; ``fit`` when the lens was fitted and its rounds are
    known; ``simplex`` when the answers for a class are.
    """
    title = f"Lens {record.id}, made for {made_for(record.about)}"
    figures = {"tables": tables_figure(record.lens, title)}
    if record.goal is not None and len(record.history) > 1:
        figures["fit"] = fit_figure(record.history, *record.goal, record.about["fit"].get("chosen"))
    if record.one_class is not None:
        figures["simplex"] = simplex_figure(record.one_class)
    return figures


@matplotlib.rc_context(STYLE)
def tables_figure(lens: JPEGLens, title: str) -> Figure:
    """The two quantization tables as heat maps on one logarithmic scale.

    Every step is written out, dead steps are framed.
    """
    q = lens.q.detach().cpu()
    dead = lens.dead().cpu()
    low, high = q.min().item(), q.max().item()
    ends = (low, high) if high > 1.01 * low else (low / 2, high * 2)
    scale = LogNorm(*ends)
    figure = Figure(figsize=(9.6, 5.1), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    names = ("luma (Y)", "chroma (Cb and Cr)")
    for axes, steps, is_dead, name in zip(panels, q, dead, names, strict=True):
        picture = _draw_quantization_table(axes, steps, is_dead, scale)
        axes.set_title(f"{name}: {int(is_dead.sum())} of 64 steps dead")
    bar = figure.colorbar(
        picture,
        ax=panels,
        shrink=0.85,
        pad=0.015,
        format="%g",
        ticks=_log_ticks(*ends),
    )
    bar.minorticks_off()
    bar.set_label("step q of the DCT coefficient (grey levels)")
    if bool(dead.any()):
        figure.supxlabel(
            "orange frame: dead step, α q² < 1, too small to round anything",
            fontsize=8.5,
            color=LENS,
        )
    return figure


def _draw_quantization_table(
    axes: Axes, steps: Tensor, is_dead: Tensor, scale: LogNorm
) -> AxesImage:
    """One channel's quantization table, (8, 8)."""
    colours = colormaps["cividis"]
    picture = axes.imshow(steps.numpy(), cmap=colours, norm=scale)
    for v in range(8):
        for u in range(8):
            step = steps[v, u].item()
            ink = "black" if luminance(colours(scale(step))) > 0.47 else "white"
            axes.text(u, v, step_text(step), ha="center", va="center", fontsize=7.5, color=ink)
            if is_dead[v, u]:
                corner = (u - 0.45, v - 0.45)
                frame = Rectangle(corner, 0.9, 0.9, fill=False, edgecolor=LENS, linewidth=1.5)
                axes.add_patch(frame)
    axes.set(xlabel="horizontal frequency u", ylabel="vertical frequency v")
    axes.set(xticks=range(8), yticks=range(8))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return picture


def step_text(step: float) -> str:
    """A step in at most five characters: 0.012, 1.50, 255, 4e-05."""
    if step < 0.001:
        return f"{step:.0e}"
    if step < 1:
        return f"{step:.3f}"
    return f"{step:#.3g}".rstrip(".")


def _log_ticks(low: float, high: float) -> Locator:
    """Round numbers along a logarithmic axis, a few of them whether it spans a decade or ten."""
    if high < 6 * low:
        return MaxNLocator(4)
    return LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))


@matplotlib.rc_context(STYLE)
def fit_figure(
    history: Sequence[Mapping[str, float]],
    target_cmi: tuple[float, float],
    floor: float,
    chosen: int | None = None,
) -> Figure:
    """A fit round by round.

    Args:
        history: the rows of :class:`~djip_ext.fit.loop.FitResult`.
        target_cmi: the band in nats.
        floor: the least accuracy in percent that the fit accepts.
        chosen: the round whose tables were taken.
    """
    rounds = [row["round"] for row in history]
    title = "The fit of the lens"
    if chosen is not None:
        title += f"; the tables of round {chosen} were taken"
    figure = Figure(figsize=(7.2, 8.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(5, 1, sharex=True, height_ratios=(1.4, 1.4, 1, 1, 1))
    cmi, accuracy, ce, lam, steps = panels
    curves = {
        "cmi": (cmi, "CMI [nats]"),
        "accuracy": (accuracy, "accuracy [%]"),
        "ce": (ce, "cross entropy [nats]"),
        "lam": (lam, "λ"),
    }
    for key, (axes, label) in curves.items():
        axes.plot(rounds, [row[key] for row in history], color=LENS, marker="o", markersize=3.5)
        axes.set_ylabel(label)
    cmi.axhspan(*target_cmi, color=GOAL, alpha=0.18, linewidth=0)
    _note(cmi, target_cmi[1], f"target {target_cmi[0]:.3g} to {target_cmi[1]:.3g}")
    cmi.set_ylim(bottom=0, top=1.12 * max(target_cmi[1], *(row["cmi"] for row in history)))
    accuracy.axhline(floor, color=GOAL, linestyle="--", linewidth=1.2)
    accuracy.margins(y=0.15)
    _note(accuracy, floor, f"floor {floor:.1f} %")
    lam.axhline(0, color=FAINT, linewidth=0.8)
    _draw_range_of_steps(steps, rounds, history)
    for axes in panels:
        axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
        if chosen is not None:
            axes.axvline(chosen, color=INK, linestyle=":", linewidth=1.2)
    figure.align_ylabels(panels)
    return figure


def _draw_range_of_steps(
    axes: Axes, rounds: Sequence[float], history: Sequence[Mapping[str, float]]
) -> None:
    """The smallest and the largest step of every round, on a logarithmic axis."""
    low = [row["q_low"] for row in history]
    high = [row["q_high"] for row in history]
    axes.fill_between(rounds, low, high, color=LENS, alpha=0.25, linewidth=0)
    axes.plot(rounds, low, color=LENS)
    axes.plot(rounds, high, color=LENS)
    axes.set(ylabel="smallest and largest\nstep q", yscale="log", xlabel="round")
    axes.yaxis.set_major_locator(_log_ticks(min(low), max(high)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _note(axes: Axes, y: float, text: str) -> None:
    """Write ``text`` just above height ``y`` at the left edge."""
    axes.annotate(
        text, (0, y), (4, 2), ("axes fraction", "data"), "offset points", color=GOAL, fontsize=8
    )


@matplotlib.rc_context(STYLE)
def simplex_figure(view: OneClass) -> Figure:
    """Predictions for the samples of one class over that class and its two rivals.

    Without and with the lens.  The three probabilities are renormalised to sum to one; the share of
    all probability that they hold is written out.
    """
    before, after = view.before, view.after
    figure = Figure(figsize=(9.6, 4.9), layout="constrained")
    sharpness = "" if view.temperature == 1 else f" at T = {view.temperature:g}"
    figure.suptitle(
        f"What the teacher says{sharpness} of {len(after.f)} images of class "
        f"“{view.corners[0]}”; its CMI {before.cmi:.3f} → {after.cmi:.3f} nats"
    )
    plain, lens = figure.subplots(1, 2)
    _draw_answers(plain, view.corners, before, PLAIN, "plain teacher")
    _draw_answers(lens, view.corners, after, LENS, "with the lens")
    figure.supxlabel(
        "the three probabilities are scaled to sum to 1; dashed: where the decision changes",
        fontsize=8,
    )
    return figure


def _draw_answers(
    axes: Axes, corners: Sequence[str], answers: Answers, colour: str, name: str
) -> None:
    """The simplex with a point per image, and their mean."""
    _triangle(axes, corners)
    x, y = _to_plane(answers.f).T.numpy()
    axes.scatter(x, y, s=16, color=colour, alpha=0.45, linewidth=0, zorder=2, label="an image")
    centre = answers.f.mean(0)
    mean_x, mean_y = _to_plane(centre[None])[0].tolist()
    axes.scatter(
        mean_x,
        mean_y,
        s=60,
        color="none",
        edgecolor="black",
        marker="D",
        zorder=3,
        label="their mean",
    )
    share = 100 * centre.sum().item()
    axes.set_title(
        f"{name}: {answers.accuracy:.0f} % right, the three hold {share:.0f} % of the probability"
    )
    axes.legend(loc="upper left", bbox_to_anchor=(-0.05, 0.97), handletextpad=0.2)


def _to_plane(f: Tensor) -> Tensor:
    """Map barycentric coordinates (N, 3), scaled to sum to 1, to points (N, 2) of a triangle.

    Its first corner is on top.
    """
    corners = torch.tensor([[0.5, math.sqrt(0.75)], [0.0, 0.0], [1.0, 0.0]], dtype=f.dtype)
    return f / f.sum(1, keepdim=True).clamp_min(1e-12) @ corners


def _triangle(axes: Axes, names: Sequence[str]) -> None:
    """Draw an empty simplex: its outline, the borders of the three decisions, named corners."""
    top, left, right = corners = _to_plane(torch.eye(3)).tolist()
    centre = _to_plane(torch.ones(1, 3))[0].tolist()
    axes.plot(*zip(*corners, top, strict=True), color=INK, linewidth=1, zorder=1)
    for a, b in ((top, left), (left, right), (right, top)):
        middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]
        axes.plot(
            *zip(centre, middle, strict=True), color=FAINT, linewidth=0.8, linestyle="--", zorder=0
        )
    axes.text(top[0], top[1] + 0.03, names[0], ha="center", va="bottom", weight="bold")
    axes.text(left[0], left[1] - 0.03, names[1], ha="center", va="top")
    axes.text(right[0], right[1] - 0.03, names[2], ha="center", va="top")
    axes.set(aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.08, 0.96))
    axes.set_axis_off()
