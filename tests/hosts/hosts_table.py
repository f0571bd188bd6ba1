"""The rows that run_hosts.py writes, and the Markdown made of them."""

import csv
from dataclasses import asdict, dataclass, fields
from pathlib import Path

WORKS = "works"
FIT = (
    "djip fit --host"  # a row of its own: whether teacher and images can be read from the checkout
)
INTRODUCTION = """# Every distiller of every checkout

Made by `tests/hosts/run_hosts.py`, whose docstring says what a run is; the rows are in the CSV
file of the same name. A run with a lens works when it ends well and its student differs from that
of the identity lens. Of the distillers that run without a lens: how many do with one, through the
launcher (identity and lens) and through the one added line, and for how many the student of the
identity lens is bit for bit the plain one; the others disturb a bare teacher
([hosts.md](hosts.md)). "added", and a + after a name: distillers that djip_ext brings.
"""


@dataclass(frozen=True)
class Row:
    """One distiller of one checkout.

    ``plain``, ``identity``, ``lens`` and ``one_line`` are "works" or the reason why not; empty
    where there was nothing to run.
    ``identity_is_plain`` is "yes", "no" or empty.
    """

    checkout: str
    commit: str
    distiller: str
    plain: str = ""
    identity: str = ""
    lens: str = ""
    one_line: str = ""
    identity_is_plain: str = ""

    @property
    def added(self) -> bool:
        """Whether djip_ext brings the distiller.

        Such a one has no plain run, since without a lens nothing is added.
        """
        return self.distiller.endswith("+")


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; none when it is not there."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [Row(**record) for record in csv.DictReader(file)]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write the CSV file and, beside it with the ending .md, what people read."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    failures = ("## What does not work, and why", "", *exceptions(rows))
    parts = (INTRODUCTION, *summary(rows), "", *failures, "", "## Every row", "", *everything(rows))
    path.with_suffix(".md").write_text("\n".join(parts) + "\n")


def summary(rows: list[Row]) -> list[str]:
    """A row per checkout: of the distillers that run without a lens, how many run with one."""
    counts = (
        "distillers | run without a lens | with a lens, launcher | with a lens, one line "
        "| identity = plain | added"
    )
    lines = [
        f"| checkout | at | {counts} | `djip fit --host` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for checkout in dict.fromkeys(row.checkout for row in rows):
        own = [
            row
            for row in rows
            if row.checkout == checkout and not row.added and row.distiller != FIT
        ]
        added = [row for row in rows if row.checkout == checkout and row.added]
        able = [row for row in own if row.plain == WORKS]
        launcher = sum(row.identity == row.lens == WORKS for row in able)
        one_line = sum(row.one_line == WORKS for row in able)
        equal = sum(row.identity_is_plain == "yes" for row in able)
        brought = sum(row.identity == row.lens == row.one_line == WORKS for row in added)
        cells = [
            len(own),
            len(able),
            f"{launcher} of {len(able)}",
            f"{one_line} of {len(able)}",
            f"{equal} of {len(able)}",
        ]
        commit = next(row.commit for row in rows if row.checkout == checkout)
        fits = ", ".join(
            "yes" if row.lens == WORKS else "no"
            for row in rows
            if row.checkout == checkout and row.distiller == FIT
        )
        lines.append(
            f"| {checkout} | {commit} | {' | '.join(map(str, cells))} "
            f"| {brought} of {len(added)} | {fits} |"
        )
    return lines


def exceptions(rows: list[Row]) -> list[str]:
    """Every run that did not work, with its reason.

    What several distillers or arms have in common is one line.
    """
    reasons: dict[
        tuple[str, str], dict[str, list[str]]
    ] = {}  # (checkout, reason) -> distiller -> arms
    for row in rows:
        for arm in ("plain", "identity", "lens", "one_line"):
            reason = getattr(row, arm).replace(
                f"'{row.distiller.rstrip('+').lower()}'", "'...'"
            )  # a host that misses the name itself
            if reason not in ("", WORKS):
                reasons.setdefault((row.checkout, reason), {}).setdefault(row.distiller, []).append(
                    arm.replace("_", " ")
                )
    lines = ["| checkout | distillers | runs | reason |", "|---|---|---|---|"]
    for (checkout, reason), found in reasons.items():
        for arms in dict.fromkeys(tuple(arms) for arms in found.values()):
            distillers = [distiller for distiller, failed in found.items() if tuple(failed) == arms]
            lines.append(f"| {checkout} | {', '.join(distillers)} | {', '.join(arms)} | {reason} |")
    return lines if reasons else ["Every run worked."]


def everything(rows: list[Row]) -> list[str]:
    """All rows; of a reason that is told above there is a "no" here."""
    lines = [
        "| checkout | distiller | plain | identity | lens | one line | identity = plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in (row for row in rows if row.distiller != FIT):
        arms = [
            arm if arm in ("", WORKS) else "no"
            for arm in (row.plain, row.identity, row.lens, row.one_line)
        ]
        lines.append(
            f"| {row.checkout} | {row.distiller} | {' | '.join(arms)} | {row.identity_is_plain} |"
        )
    return lines
