r"""CMI over the temperature spectrum: CMI of softmax(logits / T) as a function of T.

A student of any temperature sees one point of this curve.  Towards T = 0 the answers become the
network's decisions, whose CMI is the confusion within the classes; for large T the curve falls as
1 / T^2, since softmax(z / T) is then nearly uniform: with v_y the variance of a centred logit about
its mean over class y, averaged over the C logits, CMI ~ sum_y P(y) v_y / (2 T^2).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.metrics.cmi import ClassStatistics
from djip_ext.metrics.predictions import predictions

TEMPERATURES = tuple(2 ** (i / 2) for i in range(-4, 9))
"""Thirteen temperatures from 1/4 to 16, two per octave."""


class Spectrum:
    """The sums of CMI at several temperatures at once.

    Args:
        num_classes: C.
        temperatures: those of the curve, all positive.

    Raises:
        DJIPError: no temperature, or one that is not positive.
    """

    def __init__(self, num_classes: int, temperatures: Sequence[float] = TEMPERATURES) -> None:
        if not temperatures:
            raise DJIPError("a CMI spectrum of no temperatures; give at least one")
        self.statistics = {t: ClassStatistics(num_classes, t) for t in temperatures}

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (B, C), labels (B,); raises as :meth:`ClassStatistics.update`."""
        for statistics in self.statistics.values():
            statistics.update(logits, labels)

    def result(self) -> dict[float, float]:
        """Temperature -> CMI in nats, over all batches and all processes so far; called once."""
        return {t: s.gather().result().total for t, s in self.statistics.items()}


def cmi_spectrum(
    logits: Tensor,
    labels: Tensor,
    num_classes: int,
    temperatures: Sequence[float] = TEMPERATURES,
) -> dict[float, float]:
    """Temperature -> CMI in nats of a whole set of logits (N, C) with labels (N,).

    Example:
        >>> cmi_spectrum(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), 2, [1.0, 4.0])
        {1.0: 0.0, 4.0: 0.0}
    """
    spectrum = Spectrum(num_classes, temperatures)
    spectrum.update(logits, labels)
    return spectrum.result()


@torch.no_grad()
def measure_spectrum(
    network: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    transform: Callable[[Tensor], Tensor] | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
    precision: str = "float32",
) -> dict[float, float]:
    """Temperature -> CMI in nats of ``network`` (in the mode it is in), in one pass.

    In a process group all processes call this together, each with its share of the data.

    Args:
        loader: batches that begin with normalised images (B, 3, H, W) and labels (B,).
        num_classes: C.
        transform: maps the images to what the network sees, for example by a lens; ``None``: the
            images as they are.
        temperatures: those of the curve.
        precision: of the network, "float32" or "bfloat16".

    Raises:
        DJIPError: an empty loader, NaN logits, labels or logits that do not fit ``num_classes``.
    """
    spectrum = Spectrum(num_classes, temperatures)
    for (logits,), label, _ in predictions(network, loader, num_classes, (transform,), precision):
        spectrum.update(logits, label)
    return spectrum.result()
