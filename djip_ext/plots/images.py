"""Images beside what the teacher sees of them."""

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from djip_ext.plots.style import STYLE

COLUMNS = 8
FACTORS = (2, 4, 8, 16, 32)  # of the difference


@matplotlib.rc_context(STYLE)
def images_figure(originals: Tensor, lensed: Tensor, names: Sequence[str]) -> Figure:
    """Images, what the teacher sees of them, and the amplified difference; eight to a row.

    Shape: ``originals`` and ``lensed`` (N, 3, H, W) in [0, 255], uint8 or float; N names.
    """
    originals = originals.detach().cpu().float()
    lensed = lensed.detach().cpu().float()
    change = lensed - originals
    factor = _amplification(change)
    labels = ("original", "through the lens", f"difference × {factor}\n(grey: none)")
    count = len(originals)
    columns = min(COLUMNS, count)
    groups = math.ceil(count / COLUMNS)
    figure = Figure(
        figsize=(max(2.4, 1.35 * columns + 0.5), 4.75 * groups),
        layout=ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, hspace=0.01, wspace=0.01),
    )
    figure.suptitle("What the teacher sees")
    grid = figure.subplots(3 * groups, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, name in enumerate(names):
        group, column = divmod(i, COLUMNS)
        shown = (originals[i], lensed[i], 128 + factor * change[i])
        titles = (name, _quality_text(change[i]), "")
        for axes, image, title in zip(grid[3 * group :, column], shown, titles, strict=False):
            pixels = image.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(title, fontsize=8, pad=3)
        if column == 0:
            for axes, label in zip(grid[3 * group :, 0], labels, strict=False):
                _label_row(axes, label)
    return figure


def _amplification(change: Tensor) -> int:
    """The largest factor at which 99 % of all differences stay within the grey levels."""
    rank = max(1, math.ceil(0.99 * change.numel()))
    typical = change.abs().flatten().kthvalue(rank).values.item()
    return max((factor for factor in FACTORS if factor * typical <= 127), default=1)


def _quality_text(change: Tensor) -> str:
    error = change.square().mean().sqrt().item()  # grey levels
    decibels = 20 * math.log10(255 / max(1e-9, error))
    return f"PSNR {decibels:.1f} dB" if decibels < 99 else "unchanged"


def _label_row(axes: Axes, label: str) -> None:
    text = axes.text(-0.06, 0.5, label, rotation=90, ha="right", va="center", ma="center")
    text.set_transform(axes.transAxes)
