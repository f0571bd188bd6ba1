"""A table from the records of its runs alone: which runs there are, their statistics, and the published numbers beside them."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import DJIPError
from .axes import axes_of, of_name, order, split
from .compare import Summary, compare, summarise
from .distillers import distiller_dict

PUBLISHED = Path(__file__).with_name("published.csv")
KEYS = ("last_acc", "best_acc")


@dataclass(frozen=True)
class Pair:
    """A row group of a table."""

    dataset: str
    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} - {self.student}"


Results = dict[Pair, dict[str, dict[str, dict[int, dict[str, Any]]]]]
"""pair -> row -> arm -> seed -> what ``result.json`` holds; a row is a distiller, with the values of a table's axes (``axes.py``)."""


def read_results(folder: str | Path) -> Results:
    """Every finished student below ``folder``, wherever it lies.

    An arm is called as the first part of its project folder is, or after its lens where runs with several lenses share one.
    Identity arms come first; distillers are in the order of ``distiller_dict``.

    Raises:
        DJIPError: no finished student, a damaged record, or two runs of one cell and seed.
    """
    found: list[tuple[Pair, str, str, str, int, dict[str, Any]]] = []
    for path in sorted(Path(folder).rglob("result.json")):
        try:
            result = json.loads(path.read_text())
            cfg = yaml.safe_load(result["config"])
            distiller = cfg["DISTILLER"]
            if distiller["TYPE"] == "NONE":
                continue
            pair = Pair(cfg["DATASET"]["TYPE"], distiller["TEACHER"], distiller["STUDENT"])
            project = cfg["EXPERIMENT"]["PROJECT"].rpartition("/djip-")[0] or cfg["EXPERIMENT"]["PROJECT"]
            kind = distiller["TYPE"] + of_name(cfg["EXPERIMENT"].get("NAME", ""))
            found.append((pair, kind, project, result["lens"], cfg["BENCH"]["SEED"], result | {"where": str(path.parent), "project": project}))
        except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise DJIPError(f"{path} is not the record of a run ({error!r}); delete its folder and run it again") from error
    if not found:
        raise DJIPError(f"{folder} holds no finished student (result.json); djip reproduce TABLE makes them")
    lenses: dict[tuple[str, Pair], set[str]] = {}
    for pair, _, project, lens, _, _ in found:
        lenses.setdefault((project, pair), set()).add(lens)
    rows = order({run[1] for run in found})
    known = sorted(rows, key=lambda row: [*distiller_dict, split(row)[0]].index(split(row)[0]))
    found.sort(key=lambda run: (str(run[0]), known.index(run[1]), run[3] != "identity", run[2]))
    results: Results = {}
    for pair, kind, project, lens, seed, result in found:
        arm = project if len(lenses[project, pair]) == 1 else lens
        cell = results.setdefault(pair, {}).setdefault(kind, {}).setdefault(arm, {})
        if seed in cell:
            both = f"{cell[seed]['where']} and {result['where']}"
            raise DJIPError(f"{both} are both {kind}, {arm}, seed {seed}; report on a folder that holds one of them")
        cell[seed] = result
    return results


def several_lenses(results: Results) -> dict[str, list[str]]:
    """Project folder -> the lenses of its runs, where one pair has several, so that :func:`read_results` called the arms after them."""
    found: dict[str, set[str]] = {}
    for cells in results.values():
        for arms in cells.values():
            for arm, runs in arms.items():
                for run in runs.values():
                    if arm != run["project"]:
                        found.setdefault(run["project"], set()).add(arm)
    return {project: sorted(ids) for project, ids in found.items()}


def read_published() -> dict[tuple[Pair, str, str], tuple[float, str]]:
    """(pair, distiller, arm) -> top-1 accuracy in % and its source; arms are "plain" and "lens". The first of several counts."""
    with open(PUBLISHED, newline="") as file:
        rows = [(Pair(row["dataset"], row["teacher"], row["student"]), row) for row in csv.DictReader(file)]
    return {(pair, row["distiller"], row["arm"]): (float(row["top1"]), row["source"]) for pair, row in reversed(rows)}


def published_gains(published: dict[tuple[Pair, str, str], tuple[float, str]]) -> dict[tuple[str, str], list[float]]:
    """(data set, distiller) -> published gain by DJIP in points, for every pair for which both numbers are."""
    found: dict[tuple[str, str], list[float]] = {}
    for (pair, distiller, arm), (number, _) in published.items():
        if arm == "lens" and (pair, distiller, "plain") in published:
            found.setdefault((pair.dataset, distiller), []).append(number - published[pair, distiller, "plain"][0])
    return found


def table_rows(results: Results, baseline: str) -> list[dict[str, Any]]:
    """One row a pair, distiller and arm, for CSV: statistics over seeds, differences to ``baseline`` paired by seed, CMI, published number.

    Accuracies and differences in percentage points, CMI in nats; empty where there is no number.
    """
    published = read_published()
    gained = published_gains(published)
    rows, axes = [], axes_of(row for cells in results.values() for row in cells)
    for pair, distillers in results.items():
        for name, arms in distillers.items():
            distiller, values = split(name)
            for arm, runs in arms.items():
                row: dict[str, Any] = vars(pair) | {"distiller": distiller} | {axis: values.get(axis, "") for axis in axes} | {"arm": arm}
                base = arms.get(baseline, {})
                if base.keys() & runs.keys():
                    row |= compare({baseline: base, arm: runs})[-1]
                else:
                    whole = {key: summarise([run[key] for run in runs.values()]) for key in KEYS}
                    row |= {"n": len(runs)} | {name: v for key, s in whole.items() for name, v in ((key, s.mean), (f"{key}_sd", s.spread))}
                    row |= {f"{key}_{what}": math.nan for key in KEYS for what in ("diff", "ci95")} | {"pairs": 0}
                change = cmi_change(runs)
                row |= {"cmi_before": change[0], "cmi_after": change[1]} if change else {"cmi_before": "", "cmi_after": ""}
                called = _published_arm(arm, baseline, runs)
                number, source = published.get((pair, distiller, called), ("", ""))
                others = gained.get((pair.dataset, distiller), []) if called == "lens" and number == "" else []
                row |= {"published": number, "published_source": source}
                rows.append(row | {"published_gain_elsewhere": sum(others) / len(others) if others else "", "published_pairs": len(others)})
    return [{key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()} for row in rows]


def _published_arm(arm: str, baseline: str, runs: dict[int, dict[str, Any]]) -> str:
    """What the published table calls it: the baseline is its plain teacher, an arm called lens its DJIP; others it lacks."""
    return "plain" if arm == baseline else "lens" if arm == "lens" else ""


def cmi_change(runs: dict[int, dict[str, Any]]) -> tuple[float, float] | None:
    """The teacher's CMI in nats on the training images without and with the arm's lens, as its fit measured it; None if unknown."""
    for run in runs.values():
        about = run.get("about_lens") or {}
        if "before" in about and "after" in about:
            return about["before"]["cmi"], about["after"]["cmi"]
    return None


def cmi_difference(runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> float | None:
    """The teacher's CMI in nats in one arm of a pair minus that in another, for whose lenses it was measured; None if unknown."""
    (own, plain), (other, base_plain) = ((cmi_change(part), all(run["lens"] == "identity" for run in part.values())) for part in (runs, base))
    if own and other:
        return own[1] - other[1]
    if own and base_plain:
        return own[1] - own[0]
    return other[0] - other[1] if other and plain else None


@dataclass(frozen=True)
class Gain:
    """What an arm of a pair brings against the baseline.

    Attributes:
        cmi: difference of the teacher's CMI, nats.
        mean: paired difference of the last epoch in points, over all distillers or that of the only one, with its interval.
        each: of every distiller alone, in points.
    """

    pair: Pair
    arm: str
    cmi: float
    mean: Summary
    each: dict[str, float]


def gains(results: Results, baseline: str, key: str = "last_acc") -> list[Gain]:
    """Every arm of every pair for which both gains are known."""
    found = []
    for pair, cells in results.items():
        for arm in dict.fromkeys(arm for arms in cells.values() for arm in arms if arm != baseline):
            both = {name: (arms[baseline], arms[arm]) for name, arms in cells.items() if {baseline, arm} <= arms.keys()}
            paired = {
                name: [runs[seed][key] - base[seed][key] for seed in sorted(base.keys() & runs.keys())]
                for name, (base, runs) in both.items()
            }
            each = {name: summarise(values) for name, values in paired.items() if values}
            cmi = next((cmi for base, runs in both.values() if (cmi := cmi_difference(runs, base)) is not None), None)
            mean = next(iter(each.values())) if len(each) == 1 else mean_difference(cells, arm, baseline, key)
            if cmi is not None and mean is not None:
                found.append(Gain(pair, arm, cmi, mean, {name: summary.mean for name, summary in each.items()}))
    return found


def mean_difference(distillers: dict[str, dict[str, dict[int, dict[str, Any]]]], arm: str, baseline: str, key: str) -> Summary | None:
    """Over seeds, of the difference to the baseline averaged over all distillers that have both arms.

    Only seeds that every distiller has count, so that all seeds average the same distillers; None when there is none, or one distiller.
    """
    cells = [(arms[baseline], arms[arm]) for arms in distillers.values() if baseline in arms and arm in arms]
    shared = set.intersection(*(set(base) & set(runs) for base, runs in cells)) if cells else set()
    if not shared or len(cells) < 2:
        return None
    return summarise([sum(runs[seed][key] - base[seed][key] for base, runs in cells) / len(cells) for seed in sorted(shared)])


def arms_of(results: Results) -> list[str]:
    """Every arm, in the order in which they are met."""
    return list(dict.fromkeys(arm for distillers in results.values() for arms in distillers.values() for arm in arms))


def in_order(results: Results, distillers: Sequence[str], arms: Sequence[str]) -> Results:
    """``results`` restricted to those distillers and arms, in their order."""
    kept: Results = {}
    for pair, cells in results.items():
        chosen = {row: {a: cells[row][a] for a in arms if a in cells[row]} for d in distillers for row in cells if split(row)[0] == d}
        if any(chosen.values()):
            kept[pair] = {distiller: cell for distiller, cell in chosen.items() if cell}
    return kept


def all_runs(results: Results) -> Iterable[dict[str, Any]]:
    """Every run's result."""
    return (run for cells in results.values() for arms in cells.values() for runs in arms.values() for run in runs.values())
