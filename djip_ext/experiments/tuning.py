"""What to put before a teacher, chosen by short paired students on held-out training images.

A candidate is an arm of a table (nothing, a lens, JPEG, a temperature of the answers) at one value
of the distiller's temperature.  Every round trains one student per candidate that is left, all from
the same seed, and compares each with the plain teacher at the configured temperature.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from djip_ext.experiments.statistics import Summary, summarise, widened

DECISIVE_PAIRS = 3  # two pairs have one degree of freedom: their interval decides next to nothing


@dataclass(frozen=True, order=True)
class Candidate:
    """``arm`` of the table at ``temperature``; None where the distiller has no temperature."""

    arm: str
    temperature: float | None = None

    def __str__(self) -> str:
        at = "" if self.temperature is None else f" at T = {self.temperature:g}"
        return f"{self.arm}{at}"


Scores = Mapping[Candidate, Mapping[int, float]]
"""Candidate -> seed -> accuracy of its student on the held-out images, in percent."""


@dataclass(frozen=True)
class Choice:
    """The outcome.

    Attributes:
        candidate: what to put before the teacher; the baseline when nothing beats it.
        gain: its paired difference to the baseline in points; ``half_width`` is that of an
            interval that holds for all candidates at once (95 %, Bonferroni), though not for all
            the rounds after which one looks (:func:`choose`).
        differences: the same for every candidate, the dropped ones with the seeds that they had.
    """

    candidate: Candidate
    gain: Summary | None
    differences: dict[Candidate, Summary]


def differences(scores: Scores, baseline: Candidate) -> dict[Candidate, Summary]:
    """Paired difference of every candidate to ``baseline`` in points, for all of them at once.

    The half-widths are Bonferroni's: with m candidates each interval has a confidence of
    1 - 0.05 / m, so that all of them hold together with 95 %.
    """
    rivals = [candidate for candidate in scores if candidate != baseline]
    found = {}
    for candidate in rivals:
        seeds = sorted(scores[candidate].keys() & scores[baseline].keys())
        if seeds:
            paired = [scores[candidate][seed] - scores[baseline][seed] for seed in seeds]
            found[candidate] = widened(summarise(paired), len(rivals))
    return found


def still_open(scores: Scores, baseline: Candidate) -> list[Candidate]:
    """The candidates that can still be chosen: neither decided to be worse than the baseline, nor
    than the one that leads.

    The baseline itself always stays.  Who has fewer seeds than it was dropped earlier and does not
    come back.
    """
    gains = differences(scores, baseline)
    left = [
        candidate
        for candidate, gain in gains.items()
        if gain.n == len(scores[baseline])
        and (gain.n < DECISIVE_PAIRS or gain.mean + gain.half_width >= 0)
    ]
    if left:
        leader = max(left, key=lambda candidate: gains[candidate].mean)
        behind = differences({candidate: scores[candidate] for candidate in left}, leader)
        left = [
            candidate
            for candidate in left
            if candidate == leader
            or behind[candidate].n < DECISIVE_PAIRS
            or behind[candidate].mean + behind[candidate].half_width >= 0
        ]
    return [baseline, *left]


def choose(scores: Scores, baseline: Candidate) -> Choice:
    """The candidate of the largest mean among those left whose interval lies above the baseline.

    The intervals hold for all candidates at once, but at one look, and ``djip tune`` looks after
    every round from the third on and stops when it is :func:`decided`.  Simulated with normal
    differences, where no candidate is better it chooses one all the same in 6 % of the choices with
    6 seeds and in 9 % with 12 where there is a single rival; in 3 and 4 % with two, in 2 % with
    four.  The gain of the choice is too large on average, since a lucky round ends it.
    """
    gains = differences(scores, baseline)
    better = {
        candidate: gains[candidate]
        for candidate in still_open(scores, baseline)
        if candidate != baseline
        and gains[candidate].n >= DECISIVE_PAIRS
        and gains[candidate].mean - gains[candidate].half_width > 0
    }
    if not better:
        return Choice(baseline, None, gains)
    best = max(better, key=lambda candidate: better[candidate].mean)
    return Choice(best, better[best], gains)


def decided(scores: Scores, baseline: Candidate) -> bool:
    """Whether more seeds cannot matter: only the baseline is left, or one that beats it."""
    left = still_open(scores, baseline)
    return len(left) == 1 or (len(left) == 2 and choose(scores, baseline).candidate == left[1])


def candidates(arms: Iterable[str], temperatures: Sequence[float | None]) -> list[Candidate]:
    """Every arm at every temperature."""
    return [Candidate(arm, t) for arm, t in itertools.product(arms, temperatures)]


def epochs_within(budget: float, price: Callable[[int], float], most: int) -> int:
    """How many epochs each short student can have, at most ``most``; 0 when not even one fits.

    Args:
        budget: seconds that the whole choice may take.
        price: epochs of each student -> seconds of the whole choice; it never falls.
    """
    return bisect.bisect_right(range(1, most + 1), budget, key=price)
