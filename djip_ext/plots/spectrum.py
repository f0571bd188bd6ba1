"""CMI against temperature, a line for each network or set of images."""

from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure

from djip_ext.plots.style import ARMS, FAINT, STYLE


@matplotlib.rc_context(STYLE)
def spectrum_figure(spectra: Mapping[str, Mapping[float, float]]) -> Figure:
    """Name -> (temperature -> CMI in nats) as lines, the temperature on a logarithmic axis."""
    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    for i, (name, spectrum) in enumerate(spectra.items()):
        temperatures = sorted(spectrum)
        values = [spectrum[t] for t in temperatures]
        style = "-" if i < len(ARMS) else "--"
        axes.plot(temperatures, values, style, color=ARMS[i % len(ARMS)], marker=".", label=name)
    every = sorted({t for spectrum in spectra.values() for t in spectrum})
    octaves = [t for t in (2.0**i for i in range(-10, 11)) if every[0] <= t <= every[-1]]
    axes.set_xscale("log", base=2)
    axes.set_xticks(octaves, [f"{t:g}" for t in octaves])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(
        title="CMI over the temperature spectrum", xlabel="temperature T of softmax(logits / T)"
    )
    axes.set_ylabel("I(X; Ŷ | Y)  [nats]")
    axes.grid(axis="y", color=FAINT, linewidth=0.5, alpha=0.6)
    axes.legend()
    return figure
