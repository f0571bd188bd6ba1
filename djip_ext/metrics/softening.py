r"""How soft a lens makes a network's predictions, and the temperature that does as much.

A lens that raises CMI also raises the mean entropy of softmax(z / T).  So does dividing the logits
by a K > 1, which needs no lens; the K of equal entropy is the control that a lens must beat.  With
KD at T = 1 none has (results/README.md, "What orders the gains").
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.metrics.cmi import ClassStatistics
from djip_ext.metrics.predictions import predictions

FACTORS = tuple(2 ** (i / 4) for i in range(-8, 17))
"""The K that are tried, 1/4 to 16, four per octave; between them log K is interpolated."""


@dataclass(frozen=True)
class Softening:
    """What a network says at T, plain and through a lens.

    Attributes:
        cmi, entropy: plain and through the lens, nats.
        factor: K for which the plain softmax(z / (K T)) has the entropy of the lens, to a percent;
            None outside of :data:`FACTORS`.
    """

    cmi: tuple[float, float]
    entropy: tuple[float, float]
    factor: float | None


@torch.no_grad()
def measure_softening(
    network: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    transform: Callable[[Tensor], Tensor],
    temperature: float = 1.0,
    precision: str = "float32",
) -> Softening:
    """Measure ``network`` (in the mode it is in) as it is and through a lens, in one pass.

    In a process group all processes call this together, each with its share of the data.

    Args:
        loader: batches that begin with normalised images (B, 3, H, W) and labels (B,).
        num_classes: C.
        transform: the lens, for normalised images.
        temperature: T > 0.
        precision: of the network, "float32" or "bfloat16".

    Raises:
        DJIPError: an empty loader, NaN logits, labels or logits that do not fit ``num_classes``.
    """
    plain = {factor: ClassStatistics(num_classes, factor * temperature) for factor in FACTORS}
    lensed = ClassStatistics(num_classes, temperature)
    both = predictions(network, loader, num_classes, (None, transform), precision)
    for (logits, through), label, _ in both:
        for statistics in plain.values():
            statistics.update(logits, label)
        lensed.update(through, label)
    for statistics in (*plain.values(), lensed):
        statistics.gather()
    entropies = {factor: statistics.entropy() for factor, statistics in plain.items()}
    return Softening(
        (plain[1.0].result().total, lensed.result().total),
        (entropies[1.0], lensed.entropy()),
        _factor_of(lensed.entropy(), entropies),
    )


def _factor_of(entropy: float, entropies: dict[float, float]) -> float | None:
    """K at which ``entropies`` (ascending with K) pass ``entropy``."""
    points = list(entropies.items())
    for (low, below), (high, above) in zip(points, points[1:], strict=False):
        if below <= entropy <= above and below < above:
            share = (entropy - below) / (above - below)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return None
