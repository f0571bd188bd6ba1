r"""What a teacher lets out: probabilities, softened, rounded, cut off or perturbed.

A knockoff sees a black box's probabilities and nothing else.  It takes their logarithm for logits,
which is softmax's inverse but for a constant of each image.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from djip_ext.bench.distillers import attacks, methods
from djip_ext.bench.distillers._largest import of_largest
from djip_ext.errors import DJIPError

CHOICES = "probabilities, temperature:K, round:D, top:K or reverse-sigmoid:BETA,GAMMA"
FLOOR = 1e-12  # of a probability, inside the logarithm
NEED_FEATURES = ("AT", "RKD", "FITNET", "CRD", "SP", "CC", "FT", "ITRD")

_softmax = partial(torch.softmax, dim=1)


class Rule(NamedTuple):
    """How logits (B, C) become the probabilities (B, C) that are let out."""

    probabilities: Callable[[Tensor], Tensor]
    floor: float
    """What a knockoff takes a smaller probability for, before the logarithm."""


def rounded(p: Tensor, decimals: int) -> Tensor:
    """``p`` (B, C) rounded to that many decimals and renormalised.

    A row that rounds to zero altogether becomes uniform.
    """
    kept = torch.round(p * 10**decimals)
    total = kept.sum(1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(1), 1 / p.shape[1])


def largest(p: Tensor, count: int) -> Tensor:
    """The ``count`` largest of each row of ``p`` (B, C), renormalised; 0 elsewhere."""
    return of_largest(p, count, lambda kept: kept / kept.sum(1, keepdim=True))


def reverse_sigmoid(p: Tensor, beta: float, gamma: float) -> Tensor:
    """(p - r(p)) renormalised, r(p) = beta (s(gamma s^-1(p)) - 1/2), s the logistic function.

    Lee et al., *Defending Against Machine Learning Model Stealing Attacks Using Deceptive
    Perturbations* (arXiv 1806.00054).  Not monotonic: several p give the same answer.

    Shape: p and output (B, C).
    """
    inverse = torch.logit(p, eps=FLOOR if p.dtype == torch.float64 else 1e-7)
    perturbed = p - beta * (torch.sigmoid(gamma * inverse) - 0.5)
    return perturbed / perturbed.sum(1, keepdim=True)


def parse_answers(text: str) -> Rule:
    """The rule that ``BENCH.ANSWERS`` names.

    Raises:
        DJIPError: it names none.
    """
    name, _, rest = text.partition(":")
    try:
        values = [float(word) for word in rest.split(",")] if rest else []
    except ValueError:
        _refuse(text)
    if not all(math.isfinite(value) for value in values):
        _refuse(text)
    if name == "probabilities" and not values:
        return Rule(_softmax, FLOOR)
    if name == "temperature" and len(values) == 1 and values[0] > 0:
        return Rule(lambda z: _softmax(z / values[0]), FLOOR)
    if name == "round" and len(values) == 1 and values[0] in range(1, 13):
        decimals = int(values[0])
        # a zero may have been anything below half of the last decimal
        return Rule(lambda z: rounded(_softmax(z), decimals), 0.5 * 10**-decimals)
    if name == "top" and len(values) == 1 and values[0] >= 1 and values[0].is_integer():
        count = int(values[0])
        return Rule(lambda z: largest(_softmax(z), count), FLOOR)
    if name == "reverse-sigmoid" and len(values) == 2:
        beta, gamma = values
        if 0 <= beta <= 1 and gamma > 0:  # a beta above 1 gives negative probabilities
            return Rule(lambda z: reverse_sigmoid(_softmax(z), beta, gamma), FLOOR)
    _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise DJIPError(
        f"BENCH.ANSWERS is '{text}'; choose {CHOICES} (K > 0, of top at least 1; D in 1 .. 12; "
        "BETA in [0, 1]; GAMMA > 0)"
    )


class BlackBox(nn.Module):
    """A teacher as a knockoff sees it; stands outermost, in front of a lens too.

    ``forward`` returns the logarithm of the probabilities that ``answers`` lets out, floored (see
    :class:`Rule`), and features that raise DJIPError when asked for.

    Args:
        teacher: returns ``(logits, features)``.
        answers: ``BENCH.ANSWERS``.

    Raises:
        DJIPError: an unknown rule.
    """

    def __init__(self, teacher: nn.Module, answers: str) -> None:
        super().__init__()
        self.teacher = teacher
        self.answers = answers
        self.rule = parse_answers(answers)

    @property
    def djip_id(self) -> str:
        """The id of the lens in front of the teacher, or "none"."""
        djip_id: str = getattr(self.teacher, "djip_id", "none")
        return djip_id

    @property
    def djip_lens(self) -> nn.Module | None:
        """The lens in front of the teacher, if any."""
        return getattr(self.teacher, "djip_lens", None)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        logits = self.teacher(image)[0]
        with torch.autocast(logits.device.type, enabled=False):
            p = self.rule.probabilities(logits.float())
            return p.clamp_min(self.rule.floor).log(), _NoFeatures()


class _NoFeatures(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        without = [name for name in (*methods, *attacks.methods) if name not in NEED_FEATURES]
        raise DJIPError(
            f"this method needs the teacher's {key}, but BENCH.ANSWERS lets out probabilities "
            f"only; leave it empty or take one of {', '.join(without)}"
        )
