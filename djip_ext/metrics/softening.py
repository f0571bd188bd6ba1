r"""How soft a lens makes a network's predictions, and the temperature that does as much.

A lens that raises CMI also raises the mean entropy of softmax(z / T).  So does dividing the logits
by a K > 1, which needs no lens; the K of equal entropy is the control that a lens must beat.  With
KD at T = 1 none has (results/when_it_helps.md, "What orders the gains").  A temperature softens
what a network says of the other classes, too (what DKD calls non-target), which a lens leaves
nearly as it was: the entropy without the label's share tells.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.metrics.cmi import ClassStatistics
from djip_ext.metrics.predictions import predictions
from djip_ext.utils.distributed import sum_all

FACTORS = tuple(2 ** (i / 4) for i in range(-8, 17))
"""The K that are tried, 1/4 to 16, four per octave; between them log K is interpolated."""


@dataclass(frozen=True)
class Softening:
    """What a network says at T, plain and through a lens.

    Attributes:
        cmi, entropy: plain and through the lens, nats.
        others: the mean of :func:`entropy_among_others`, likewise.
        factor: K for which the plain softmax(z / (K T)) has the entropy of the lens, to a percent;
            None outside of :data:`FACTORS`.
    """

    cmi: tuple[float, float]
    entropy: tuple[float, float]
    others: tuple[float, float]
    factor: float | None


def entropy_among_others(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of softmax(z / T) without the label's class, the rest scaled to one.

    Shape:
        logits: ``(B, C)``; labels: int ``(B,)`` in [0, C); output: float64 ``(B,)``, nats.
    """
    others = (logits.double() / temperature).scatter(1, labels.long()[:, None], -torch.inf)
    entropy: Tensor = torch.special.entr(others.softmax(dim=1)).sum(dim=1)
    return entropy


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
    plain, lensed = (ClassStatistics(num_classes, temperature) for _ in range(2))
    entropy = torch.zeros(len(FACTORS), dtype=torch.float64)
    others = torch.zeros(2, dtype=torch.float64)
    both = predictions(network, loader, num_classes, (None, transform), precision)
    for (logits, through), label, _ in both:
        plain.update(logits, label)
        lensed.update(through, label)
        entropy = entropy.to(logits.device) + _entropies(logits, temperature)
        known = label.clamp(0, num_classes - 1)  # others end in an error, when they are next read
        sums = [entropy_among_others(z, known, temperature).sum() for z in (logits, through)]
        others = others.to(logits.device) + torch.stack(sums)
    cmi = plain.gather().result().total, lensed.gather().result().total
    whole = sum_all(torch.cat([others, entropy])).cpu()
    before, after, *entropies = (whole / lensed.counts.sum().cpu()).tolist()
    return Softening(
        cmi,
        (plain.entropy(), lensed.entropy()),
        (before, after),
        _factor_of(lensed.entropy(), dict(zip(FACTORS, entropies, strict=True))),
    )


def _entropies(logits: Tensor, temperature: float) -> Tensor:
    """The entropy of softmax(z / (K T)) for each K of :data:`FACTORS`, summed over (B, C) logits.

    One K after the other, since B x C probabilities for all of them at once may be large.
    """
    sums = []
    for factor in FACTORS:
        ln_f = torch.log_softmax(logits.double() / (factor * temperature), dim=1)
        sums.append(-(ln_f.exp() * ln_f).sum())
    return torch.stack(sums)


def _factor_of(entropy: float, entropies: dict[float, float]) -> float | None:
    """K at which ``entropies`` (ascending with K) pass ``entropy``."""
    points = list(entropies.items())
    for (low, below), (high, above) in zip(points, points[1:], strict=False):
        if below <= entropy <= above and below < above:
            share = (entropy - below) / (above - below)
            return math.exp((1 - share) * math.log(low) + share * math.log(high))
    return None
