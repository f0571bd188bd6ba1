"""Pictures of a lens, of its fit and of what came of it.

Every function returns a matplotlib ``Figure``; :func:`save_figure` writes it.  Nothing here touches pyplot or a user's
backend and style.  Blue is the plain teacher, orange the teacher with the lens (Okabe and Ito's colour-blind-safe hues).
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import Locator, LogLocator, MaxNLocator
from torch import Tensor

from .bench.compare import summarise
from .cmi import CMI
from .errors import DJIPError
from .files import atomic_write
from .lens import JPEGLens

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


@matplotlib.rc_context(STYLE)
def tables_figure(lens: JPEGLens, title: str) -> Figure:
    """The two quantization tables as heat maps on one logarithmic scale, every step written out, dead steps framed."""
    q, dead = lens.q.detach().cpu(), lens.dead().cpu()
    low, high = q.min().item(), q.max().item()
    scale = LogNorm(low, high) if high > 1.01 * low else LogNorm(low / 2, high * 2)
    colours = colormaps["cividis"]
    figure = Figure(figsize=(9.6, 5.1), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    for axes, table, is_dead, name in zip(panels, q, dead, ("luma (Y)", "chroma (Cb and Cr)")):
        picture = axes.imshow(table.numpy(), cmap=colours, norm=scale)
        for v in range(8):
            for u in range(8):
                step = table[v, u].item()
                red, green, blue, _ = colours(scale(step))
                ink = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.47 else "white"
                axes.text(u, v, step_text(step), ha="center", va="center", fontsize=7.5, color=ink)
                if is_dead[v, u]:
                    axes.add_patch(Rectangle((u - 0.45, v - 0.45), 0.9, 0.9, fill=False, edgecolor=LENS, linewidth=1.5))
        axes.set(title=f"{name}: {int(is_dead.sum())} of 64 steps dead", xlabel="horizontal frequency u", ylabel="vertical frequency v")
        axes.set(xticks=range(8), yticks=range(8))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    bar = figure.colorbar(picture, ax=panels, shrink=0.85, pad=0.015, format="%g", ticks=_log_ticks(scale.vmin, scale.vmax))
    bar.minorticks_off()
    bar.set_label("step q of the DCT coefficient (grey levels)")
    if bool(dead.any()):
        figure.supxlabel("orange frame: dead step, α q² < 1, too small to round anything", fontsize=8.5, color=LENS)
    return figure


def step_text(step: float) -> str:
    """A step in at most five characters: 0.012, 1.50, 255, 4e-05."""
    return f"{step:.0e}" if step < 0.001 else f"{step:.3f}" if step < 1 else f"{step:#.3g}".rstrip(".")


def _log_ticks(low: float, high: float) -> Locator:
    """Round numbers along a logarithmic axis, a few of them whether it spans a decade or ten."""
    return MaxNLocator(4) if high < 6 * low else LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))


@matplotlib.rc_context(STYLE)
def images_figure(originals: Tensor, lensed: Tensor, names: Sequence[str]) -> Figure:
    """Images, what the teacher sees of them, and the amplified difference; eight to a row.

    Shape: ``originals`` and ``lensed`` (N, 3, H, W) in [0, 255], uint8 or float; N names.
    """
    originals, lensed = originals.detach().cpu().float(), lensed.detach().cpu().float()
    change = lensed - originals
    typical = change.abs().flatten().kthvalue(max(1, math.ceil(0.99 * change.numel()))).values.item()
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
            axes.imshow(image.clamp(0, 255).round().byte().permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_title(title, fontsize=8, pad=3)
            if i % 8 == 0:
                axes.text(-0.06, 0.5, label, rotation=90, ha="right", va="center", ma="center", transform=axes.transAxes)
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
    axes.scatter(x, lens, s=18, color=LENS, marker="D", label="with the lens", clip_on=False, zorder=3)
    axes.set_title(f"CMI class by class; over all {len(order)}: {before.total:.4f} → {after.total:.4f} nats")
    axes.set(xlim=(-0.8, len(order) - 0.2), ylim=(0, 1.05 * max(plain + lens) or 1), xlabel="class, sorted by its CMI with the lens")
    axes.set_ylabel("I(X; Ŷ | Y = y)  [nats]")
    axes.set_xticks(x, names, rotation=90, fontsize=8 if len(order) <= 40 else 6)
    axes.tick_params(axis="x", length=2, pad=2)
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.legend(loc="upper left")
    return figure


@matplotlib.rc_context(STYLE)
def fit_figure(
    history: Sequence[Mapping[str, float]], target_cmi: tuple[float, float], floor: float, chosen: int | None = None
) -> Figure:
    """A fit round by round.

    Args:
        history: the rows of :class:`~djip_ext.fit.FitResult`.
        target_cmi: the band in nats.
        floor: the least accuracy in percent that the fit accepts.
        chosen: the round whose tables were taken.
    """
    rounds = [row["round"] for row in history]
    figure = Figure(figsize=(7.2, 8.6), layout="constrained")
    figure.suptitle("The fit of the lens" if chosen is None else f"The fit of the lens; the tables of round {chosen} were taken")
    panels = figure.subplots(5, 1, sharex=True, height_ratios=(1.4, 1.4, 1, 1, 1))
    curves = (("cmi", "CMI [nats]"), ("accuracy", "accuracy [%]"), ("ce", "cross entropy [nats]"), ("lam", "λ"))
    for axes, (key, label) in zip(panels, curves):
        axes.plot(rounds, [row[key] for row in history], color=LENS, marker="o", markersize=3.5)
        axes.set_ylabel(label)
    cmi, accuracy, _, price, steps = panels
    cmi.axhspan(*target_cmi, color=GOAL, alpha=0.18, linewidth=0)
    _note(cmi, target_cmi[1], f"target {target_cmi[0]:.3g} to {target_cmi[1]:.3g}")
    cmi.set_ylim(bottom=0, top=1.12 * max(target_cmi[1], *(row["cmi"] for row in history)))
    accuracy.axhline(floor, color=GOAL, linestyle="--", linewidth=1.2)
    accuracy.margins(y=0.15)
    _note(accuracy, floor, f"floor {floor:.1f} %")
    price.axhline(0, color=FAINT, linewidth=0.8)
    low, high = [row["q_low"] for row in history], [row["q_high"] for row in history]
    steps.fill_between(rounds, low, high, color=LENS, alpha=0.25, linewidth=0)
    steps.plot(rounds, low, color=LENS)
    steps.plot(rounds, high, color=LENS)
    steps.set(ylabel="smallest and largest\nstep q", yscale="log", xlabel="round")
    steps.yaxis.set_major_locator(_log_ticks(min(low), max(high)))
    steps.yaxis.set_major_formatter("{x:g}")
    steps.minorticks_off()
    steps.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)
    steps.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels:
        axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
        if chosen is not None:
            axes.axvline(chosen, color=INK, linestyle=":", linewidth=1.2)
    figure.align_ylabels(panels)
    return figure


def _note(axes: Axes, y: float, text: str) -> None:
    """Write ``text`` just above height ``y`` at the left edge."""
    axes.annotate(text, (0, y), (4, 2), ("axes fraction", "data"), "offset points", color=GOAL, fontsize=8)


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
        raise DJIPError(f"the arms have {[len(arm) for arm in values]} values; a paired comparison needs the same seeds in every arm")
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
    runs = "one seed" if seeds == 1 else f"{seeds} seeds, a line each; bars: means; brackets: 95 % t-interval of the paired difference"
    figure.supxlabel(runs, fontsize=8)
    return figure


def _difference_text(reference: Sequence[float], arm: Sequence[float]) -> str:
    paired = summarise([b - a for a, b in zip(reference, arm)])
    low, high = paired.mean - paired.half_width, paired.mean + paired.half_width
    interval = f" [{low:+.2f}, {high:+.2f}]" if paired.n > 1 else ""
    return f"difference {paired.mean:+.2f}{interval}".replace("-", "−")


@matplotlib.rc_context(STYLE)
def simplex_figure(probabilities_before: Tensor, probabilities_after: Tensor, label: int, class_names: Sequence[str]) -> Figure:
    """Predictions for the samples of one class over that class and the two it is most confused with, before and after.

    The three probabilities are renormalised to sum to one; the share of all probability that they hold is written out.

    Shape: (N, C) probabilities of samples that all have class ``label``; C >= 3 names.
    """
    before, after = probabilities_before.detach().cpu().double(), probabilities_after.detach().cpu().double()
    rivals = after.mean(0)
    rivals[label] = -1
    corners = [label, *rivals.topk(2).indices.tolist()]
    figure = Figure(figsize=(9.6, 4.7), layout="constrained")
    figure.suptitle(f"What the teacher says of the {len(before)} samples of class “{class_names[label]}”")
    panels = figure.subplots(1, 2)
    for axes, f, colour, name in zip(panels, (before, after), (PLAIN, LENS), ("plain teacher", "with the lens")):
        _triangle(axes, [class_names[y] for y in corners])
        points, centre = _to_plane(f[:, corners]), _to_plane(f.mean(0)[corners][None])[0]
        axes.scatter(*points.T.numpy(), s=16, color=colour, alpha=0.45, linewidth=0, zorder=2, label="a sample")
        axes.scatter(*centre.tolist(), s=60, color="none", edgecolor="black", marker="D", zorder=3, label="class centre $S_y$")
        right, share = (f.argmax(1) == label).double().mean().item(), f[:, corners].sum(1).mean().item()
        axes.set_title(f"{name}: {100 * right:.0f} % right, the three hold {100 * share:.0f} % of the probability")
        axes.legend(loc="upper left", bbox_to_anchor=(-0.05, 0.97), handletextpad=0.2)
    figure.supxlabel("the three probabilities are scaled to sum to 1; dashed: where the decision changes", fontsize=8)
    return figure


def _to_plane(f: Tensor) -> Tensor:
    """Barycentric coordinates (N, 3), made to sum to 1, -> points (N, 2) of a triangle with its first corner on top."""
    corners = torch.tensor([[0.5, math.sqrt(0.75)], [0.0, 0.0], [1.0, 0.0]], dtype=f.dtype)
    return f / f.sum(1, keepdim=True).clamp_min(1e-12) @ corners


def _triangle(axes: Axes, names: Sequence[str]) -> None:
    """An empty simplex: its outline, the borders between the three decisions, and the corners' names."""
    top, left, right = corners = _to_plane(torch.eye(3)).tolist()
    centre = _to_plane(torch.ones(1, 3))[0].tolist()
    axes.plot(*zip(*corners, top), color=INK, linewidth=1, zorder=1)
    for a, b in ((top, left), (left, right), (right, top)):
        middle = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2]
        axes.plot(*zip(centre, middle), color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
    axes.text(top[0], top[1] + 0.03, names[0], ha="center", va="bottom", weight="bold")
    axes.text(left[0], left[1] - 0.03, names[1], ha="center", va="top")
    axes.text(right[0], right[1] - 0.03, names[2], ha="center", va="top")
    axes.set(aspect="equal", xlim=(-0.15, 1.15), ylim=(-0.08, 0.96))
    axes.set_axis_off()
