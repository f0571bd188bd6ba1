"""The numbers that papers published for the pairs of ``published.csv``."""

import csv
from pathlib import Path

from djip_ext.experiments.runs import Pair

PUBLISHED = Path(__file__).with_name("published.csv")

Published = dict[tuple[Pair, str, str], tuple[float, str]]
"""(pair, distiller, arm) -> top-1 accuracy in % and its source; arms are "plain" and "lens"."""


def read_published() -> Published:
    """The published numbers; where a cell has several, the first in the file."""
    with open(PUBLISHED, newline="") as file:
        rows = list(csv.DictReader(file))
    found: Published = {}
    for row in reversed(rows):
        pair = Pair(row["dataset"], row["teacher"], row["student"])
        found[pair, row["distiller"], row["arm"]] = float(row["top1"]), row["source"]
    return found


def published_gains(published: Published) -> dict[tuple[str, str], list[float]]:
    """(data set, distiller) -> gain by DJIP in points, for every pair with both numbers."""
    found: dict[tuple[str, str], list[float]] = {}
    for (pair, distiller, arm), (number, _) in published.items():
        plain = published.get((pair, distiller, "plain"))
        if arm == "lens" and plain is not None:
            found.setdefault((pair.dataset, distiller), []).append(number - plain[0])
    return found
