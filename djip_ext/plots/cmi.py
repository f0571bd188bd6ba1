"""CMI class by class, without and with a lens."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from djip_ext.metrics.cmi import CMI
from djip_ext.plots.style import FAINT, LENS, PLAIN, STYLE


@matplotlib.rc_context(STYLE)
def cmi_figure(before: CMI, after: CMI, class_names: Sequence[str] | None = None) -> Figure:
    """CMI of every class as paired dots, classes in the order of CMI with the lens."""
    present = (after.counts > 0).nonzero().flatten()
    order = present[after.per_class[present].argsort()].tolist()
    names = [class_names[y] if class_names else str(y) for y in order]
    x = range(len(order))
    plain = before.per_class[order].tolist()
    lens = after.per_class[order].tolist()
    figure = Figure(figsize=(min(15.0, 4.0 + 0.13 * len(order)), 4.6), layout="constrained")
    axes = figure.subplots()
    axes.vlines(x, plain, lens, color=FAINT, linewidth=1.2, zorder=1)
    axes.scatter(x, plain, s=18, color=PLAIN, label="plain teacher", clip_on=False, zorder=2)
    axes.scatter(
        x, lens, s=18, color=LENS, marker="D", label="with the lens", clip_on=False, zorder=3
    )
    total = f"{before.total:.4f} → {after.total:.4f} nats"
    axes.set_title(f"CMI class by class; over all {len(order)}: {total}")
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
