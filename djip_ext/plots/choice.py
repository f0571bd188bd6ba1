"""The picture of ``djip tune``: what each candidate gains over the plain teacher."""

import matplotlib
from matplotlib.figure import Figure

from djip_ext.experiments.tuning import Candidate, Choice
from djip_ext.plots.style import FAINT, INK, LENS, PLAIN, STYLE


@matplotlib.rc_context(STYLE)
def choice_figure(choice: Choice, baseline: Candidate) -> Figure:
    """A line per candidate with its interval; what was chosen stands out."""
    rows = sorted(choice.differences.items(), key=lambda row: row[1].mean)
    figure = Figure(figsize=(6.4, 1.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color=INK, linewidth=0.8)
    for place, (candidate, gain) in enumerate(rows):
        colour = LENS if candidate == choice.candidate else PLAIN
        if gain.n > 1:
            low, high = gain.mean - gain.half_width, gain.mean + gain.half_width
            axes.hlines(place, low, high, color=colour, linewidth=2)
        axes.plot(gain.mean, place, "o", color=colour)
    axes.set_yticks(range(len(rows)), [f"{candidate} (n = {gain.n})" for candidate, gain in rows])
    chosen = "nothing" if choice.gain is None else str(choice.candidate)
    axes.set_title(f"Chosen: {chosen}")
    axes.set_xlabel(f"points over {baseline}, held-out training images; intervals hold together")
    axes.grid(axis="x", color=FAINT, linewidth=0.5, alpha=0.6)
    return figure
