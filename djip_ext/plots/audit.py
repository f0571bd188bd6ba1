"""The picture of ``djip audit``: what every attack gains over the bar, victim by victim."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from djip_ext.experiments.audit import Bar, Victim
from djip_ext.plots.style import ARMS, FAINT, INK, STYLE


@matplotlib.rc_context(STYLE)
def audit_figure(bar: Bar, victims: Sequence[Victim]) -> Figure:
    """A column per victim, a line per attack with its interval; 0 is the bar."""
    names = [attack.name for attack in victims[0].attacks][::-1]
    names += sorted({a.name for victim in victims for a in victim.attacks} - set(names))
    size = (2.2 + 2.6 * len(victims), 1.8 + 0.28 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    columns = figure.subplots(1, len(victims), sharey=True, sharex=True, squeeze=False)[0]
    for column, victim, colour in zip(columns, victims, _colours(len(victims)), strict=True):
        column.axvline(0, color=INK, linewidth=0.8)
        for attack in victim.attacks:
            place = names.index(attack.name)
            if attack.gain.n > 1:
                column.hlines(place, attack.low, attack.high, color=colour, linewidth=2)
            column.plot(attack.gain.mean, place, "o", color=colour)
        own = "" if victim.accuracy is None else f", {victim.accuracy:.1f} %"
        column.set_title(f"{victim.name}{own}\n{victim.verdict.partition(':')[0]}")
        column.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.6)
    columns[0].set_yticks(range(len(names)), names)
    figure.supxlabel(f"points over {bar.name}; intervals of a victim hold together", fontsize=9)
    return figure


def _colours(count: int) -> list[str]:
    return [ARMS[i % len(ARMS)] for i in range(count)]
