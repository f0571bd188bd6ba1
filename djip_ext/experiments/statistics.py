"""Statistics over seeds: means with their spread, and differences between arms paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from djip_ext.errors import DJIPError

KEYS = ("last_acc", "best_acc")  # of a result: accuracies on the test set in %

CONFIDENCE = 0.95  # of intervals that hold together

# Student's t, two-sided 95 %, by degrees of freedom 1..30; beyond that 1.96 is within 4 %
# fmt: off
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


@dataclass(frozen=True)
class Summary:
    """Of a sample.

    Attributes:
        n: its size.
        mean: its mean.
        spread: its standard deviation (n - 1); nan for n = 1.
        half_width: of the 95 % t-interval of the mean; nan for n = 1.
    """

    n: int
    mean: float
    spread: float
    half_width: float


def summarise(values: Sequence[float]) -> Summary:
    """The :class:`Summary` of one or more numbers; raises DJIPError for none."""
    n = len(values)
    if n == 0:
        raise DJIPError("nothing to summarise: no finished run was found")
    if n == 1:
        return Summary(1, values[0], math.nan, math.nan)
    spread = statistics.stdev(values)
    t = T_95[n - 2] if n - 1 <= len(T_95) else 1.96
    return Summary(n, statistics.fmean(values), spread, t * spread / math.sqrt(n))


def widened(summary: Summary, comparisons: int) -> Summary:
    """``summary`` with the half-width that holds for ``comparisons`` intervals at once."""
    if summary.n < 2:
        return summary
    t = t_quantile(1 - (1 - CONFIDENCE) / comparisons, summary.n - 1)
    half_width = t * summary.spread / math.sqrt(summary.n)
    return Summary(summary.n, summary.mean, summary.spread, half_width)


@lru_cache
def t_quantile(confidence: float, freedom: int) -> float:
    """t with P(|X| < t) = ``confidence`` for Student's t with ``freedom`` degrees of freedom."""
    low, high = 0.0, 1.0
    while _t_inside(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, freedom) < confidence else (low, middle)
    return high


def _t_inside(t: float, freedom: int) -> float:
    """P(|X| < t), by the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    if freedom == 1:
        return 2 * angle / math.pi
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def compare(arms: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per arm: mean and spread of last and best epoch, and their paired difference.

    Args:
        arms: name -> seed -> result (:func:`~djip_ext.experiments.runs.read_arm`); the first is the
            baseline.  A difference uses the seeds that its arm shares with it.

    Raises:
        DJIPError: an arm without finished runs, or without a seed in common with the baseline.
    """
    base_name, base = next(iter(arms.items()))
    rows = []
    for name, arm in arms.items():
        row: dict[str, Any] = {"arm": name, "n": len(arm)}
        shared = sorted(arm.keys() & base.keys())
        if not shared:
            raise DJIPError(
                f"{name} and {base_name} have no seed in common; "
                "paired differences need the same seeds"
            )
        for key in KEYS:
            whole = summarise([result[key] for result in arm.values()])
            paired = summarise([arm[seed][key] - base[seed][key] for seed in shared])
            row |= {
                key: whole.mean,
                f"{key}_sd": whole.spread,
                f"{key}_diff": paired.mean,
                f"{key}_ci95": paired.half_width,
            }
        rows.append(row | {"pairs": len(shared)})
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of :func:`compare` as a Markdown table; accuracies and differences in points."""
    lines = [
        "| arm | n | last epoch | best epoch | paired difference, last | paired difference, best |",
        "|---|---|---|---|---|---|",
    ]
    for index, row in enumerate(rows):
        cells = [row["arm"], row["n"]]
        cells += [_plus_minus(row[key], row[f"{key}_sd"]) for key in KEYS]
        if index == 0:
            cells += ["" for _ in KEYS]
        else:
            cells += [_plus_minus(row[f"{key}_diff"], row[f"{key}_ci95"], "+") for key in KEYS]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _plus_minus(value: float, spread: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}" + ("" if math.isnan(spread) else f" ± {spread:.2f}")
