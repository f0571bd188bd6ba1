"""How the arms of a table differ: students' accuracies, paired by seed, and teachers' CMI."""

import math
from dataclasses import dataclass
from typing import Any

from djip_ext.experiments.axes import axes_of, split
from djip_ext.experiments.published import Published, published_gains, read_published
from djip_ext.experiments.records import Cells, Results, Seeds
from djip_ext.experiments.runs import Pair
from djip_ext.experiments.statistics import KEYS, Summary, compare, summarise

Row = dict[str, Any]
"""A row of ``table.csv``."""


def table_rows(results: Results, baseline: str) -> list[Row]:
    """A row per pair, distiller and arm: statistics over seeds, CMI, published number.

    Accuracies in %, differences to ``baseline`` in points and paired by seed, CMI in nats; "" where
    there is no number.
    """
    published = read_published()
    gained = published_gains(published)
    axes = axes_of(row for cells in results.values() for row in cells)
    plain = _plain_arm(results, baseline)
    rows = []
    for pair, cells in results.items():
        for name, arms in cells.items():
            distiller, values = split(name)
            for arm, seeds in arms.items():
                row: Row = {**vars(pair), "distiller": distiller}
                row |= {axis: values.get(axis, "") for axis in axes} | {"arm": arm}
                row |= _statistics(arms, arm, baseline)
                before, after = cmi_change(seeds) or ("", "")
                row |= {"cmi_before": before, "cmi_after": after}
                row |= _published(pair, distiller, arm, plain, published, gained)
                rows.append({key: _or_empty(value) for key, value in row.items()})
    return rows


def _or_empty(value: Any) -> Any:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _statistics(arms: dict[str, Seeds], arm: str, baseline: str) -> Row:
    """Mean, spread and paired difference of one arm; without common seeds the latter is nan."""
    seeds, base = arms[arm], arms.get(baseline, {})
    if base.keys() & seeds.keys():
        return compare({baseline: base, arm: seeds})[-1]
    row: Row = {"n": len(seeds)}
    for key in KEYS:
        whole = summarise([result[key] for result in seeds.values()])
        row |= {key: whole.mean, f"{key}_sd": whole.spread}
    row |= {f"{key}_{what}": math.nan for key in KEYS for what in ("diff", "ci95")}
    return row | {"pairs": 0}


def _published(
    pair: Pair,
    distiller: str,
    arm: str,
    plain: str,
    published: Published,
    gained: dict[tuple[str, str], list[float]],
) -> Row:
    """The published number of a cell, or for the lens the mean gain published for other pairs.

    Of the arms of a published table ``plain`` is the plain teacher and the one called lens its
    DJIP; it lacks all others.
    """
    known = {plain: "plain", "lens": "lens"}.get(arm, "")
    number, source = published.get((pair, distiller, known), ("", ""))
    others: list[float] = []
    if known == "lens" and number == "":
        others = gained.get((pair.dataset, distiller), [])
    return {
        "published": number,
        "published_source": source,
        "published_gain_elsewhere": sum(others) / len(others) if others else "",
        "published_pairs": len(others),
    }


def _plain_arm(results: Results, baseline: str) -> str:
    """The arm of the plain teacher: the baseline, or the only one that stands behind no lens.

    "" where several do and the baseline does not: one may have a teacher of its own.
    """
    lenses: dict[str, set[str]] = {}
    for rows in results.values():
        for arms in rows.values():
            for arm, seeds in arms.items():
                lenses.setdefault(arm, set()).update(one["lens"] for one in seeds.values())
    without = [arm for arm, own in lenses.items() if own <= {"identity", "none"}]
    if baseline in without:
        return baseline
    return without[0] if len(without) == 1 else ""


def cmi_change(seeds: Seeds) -> tuple[float, float] | None:
    """The teacher's CMI without and with the lens of a cell; None if unknown.

    In nats, on the training images, as the fit of the lens measured it.
    """
    for result in seeds.values():
        about = result.get("about_lens") or {}
        if "before" in about and "after" in about:
            return about["before"]["cmi"], about["after"]["cmi"]
    return None


def cmi_difference(seeds: Seeds, base: Seeds) -> float | None:
    """The teacher's CMI in one cell minus that in another, in nats; None if it is unknown.

    It is known of lenses that were measured, and of the plain teacher next to one of these, unless
    that is another teacher, as of an arm with a teacher of its own.
    """
    own, other = cmi_change(seeds), cmi_change(base)
    if own and other:
        return own[1] - other[1]
    if not _may_share_a_teacher(seeds, base):
        return None
    if own and _is_plain(base):
        return own[1] - own[0]
    if other and _is_plain(seeds):
        return other[0] - other[1]
    return None


def _may_share_a_teacher(seeds: Seeds, base: Seeds) -> bool:
    """Whether the weights of both teachers are the same, or unknown, as in older records."""
    own, other = (
        {result["teacher_hash"] for result in cell.values() if result.get("teacher_hash")}
        for cell in (seeds, base)
    )
    return not own or not other or own == other


def _is_plain(seeds: Seeds) -> bool:
    return all(result["lens"] == "identity" for result in seeds.values())


@dataclass(frozen=True)
class Gain:
    """What an arm of a pair brings against the baseline.

    Attributes:
        cmi: difference of the teacher's CMI, nats.
        mean: paired difference of the last epoch in points, over all distillers or that of the only
            one, with its interval.
        each: of every distiller alone, in points.
    """

    pair: Pair
    arm: str
    cmi: float
    mean: Summary
    each: dict[str, float]


def gains(results: Results, baseline: str) -> list[Gain]:
    """Every arm of every pair for which both gains are known."""
    found = []
    for pair, cells in results.items():
        for arm in dict.fromkeys(arm for arms in cells.values() for arm in arms if arm != baseline):
            gain = _gain(pair, cells, arm, baseline)
            if gain is not None:
                found.append(gain)
    return found


def _gain(pair: Pair, cells: Cells, arm: str, baseline: str) -> Gain | None:
    both = {row: arms for row, arms in cells.items() if {baseline, arm} <= arms.keys()}
    paired = {row: _paired(arms[arm], arms[baseline]) for row, arms in both.items()}
    each = {row: summarise(values) for row, values in paired.items() if values}
    differences = (cmi_difference(arms[arm], arms[baseline]) for arms in both.values())
    cmi = next((difference for difference in differences if difference is not None), None)
    mean: Summary | None
    if len(each) == 1:
        mean = next(iter(each.values()))
    else:
        mean = mean_difference(cells, arm, baseline, "last_acc")
    if cmi is None or mean is None:
        return None
    return Gain(pair, arm, cmi, mean, {row: summary.mean for row, summary in each.items()})


def _paired(seeds: Seeds, base: Seeds, key: str = "last_acc") -> list[float]:
    """The differences of the seeds that both have."""
    shared = sorted(base.keys() & seeds.keys())
    return [seeds[seed][key] - base[seed][key] for seed in shared]


def mean_difference(cells: Cells, arm: str, baseline: str, key: str) -> Summary | None:
    """Over seeds, of the difference to the baseline averaged over all rows that have both arms.

    Only seeds that every row has count, so that all seeds average the same rows; None when there is
    none, or only one row.
    """
    both = [
        (arms[baseline], arms[arm]) for arms in cells.values() if baseline in arms and arm in arms
    ]
    shared = set.intersection(*(set(base) & set(seeds) for base, seeds in both)) if both else set()
    if not shared or len(both) < 2:
        return None

    def average(seed: int) -> float:
        return float(sum(seeds[seed][key] - base[seed][key] for base, seeds in both) / len(both))

    return summarise([average(seed) for seed in sorted(shared)])
