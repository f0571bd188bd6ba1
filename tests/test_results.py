"""Every mean and paired difference of README.md, results/ and docs/tuning.md is in the records."""

import itertools
import re
from pathlib import Path

import pytest

from djip_ext.experiments.records import read_results
from djip_ext.experiments.runs import RUNS, TEACHERS
from djip_ext.experiments.statistics import KEYS, compare

ROOT = Path(__file__).parents[1]
TABLES = ROOT / "results" / "cifar100" / "tables"
PAGES = [ROOT / "README.md", ROOT / "docs/tuning.md", *sorted((ROOT / "results").glob("*.md"))]
NUMBER = re.compile(r"[+-]?\d+\.\d+ ± \d+\.\d+")  # with a sign: a difference
NO_TABLES = (TEACHERS, "fewshot", "frontier")  # folders without arms

PLAIN = "plain"
AGAINST = ("temperature",)  # arms to which the pages compare the plain teacher, too

ELSEWHERE = {
    "+0.77 ± 0.83",  # some of the seeds: python results/cifar100/beyond.py --differences
    "+0.13 ± 1.11",  # mean of two distillers: djip report tables/controls --baseline jpeg
}


def text(difference: float, half_width: float) -> str:
    return f"{difference:+.2f} ± {half_width:.2f}"


@pytest.fixture(scope="module")
def known() -> set[str]:
    """What the reports say, and the differences of any two arms of a table.

    Lenses and controls are compared either way round, with the plain teacher as the baseline.
    """
    found = set(ELSEWHERE)
    for report in TABLES.glob("*/report/**/*.md"):
        found |= set(NUMBER.findall(report.read_text().replace("*", "")))
    for table in sorted(TABLES.iterdir()):
        if table.name in NO_TABLES or not (table / RUNS).exists():
            continue
        for cells in read_results(table).values():
            for arms in cells.values():
                for base, arm in itertools.permutations(arms, 2):
                    if arm == PLAIN and base not in AGAINST:
                        continue
                    if arms[base].keys() & arms[arm].keys():
                        row = compare({base: arms[base], arm: arms[arm]})[-1]
                        found |= {text(row[f"{key}_diff"], row[f"{key}_ci95"]) for key in KEYS}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_records_give_every_number(page: Path, known: set[str]) -> None:
    prose = " ".join(page.read_text().replace("*", "").split())
    # prose may give a difference its sign in words
    forms = {number: {number, f"+{number}", f"-{number}"} for number in NUMBER.findall(prose)}
    assert [number for number, may_be in forms.items() if known.isdisjoint(may_be)] == []


def test_the_pages_name_some(known: set[str]) -> None:
    assert sum(len(NUMBER.findall(page.read_text())) for page in PAGES) > 200
    assert text(0.0, 0.0) not in known and len(known) > 500
