"""The lenses of a table: which there are, what each does to its teacher, and their part of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..lens_record import LensRecord
from .records import Results
from .report import markdown_table


@dataclass(frozen=True, eq=False)
class TableLens:
    """A lens in front of a teacher.

    Attributes:
        id: of the lens.
        about: what its students' records repeat of its metadata.
        record: its own; ``None`` when it was not kept.
    """

    teacher: str
    arm: str
    id: str
    about: dict[str, Any]
    record: LensRecord | None

    def __str__(self) -> str:
        return f"{self.arm} of {self.teacher}"

    def missing(self) -> dict[str, str]:
        """Picture -> why it cannot be drawn."""
        if self.record is None:
            return {"everything": "there is no record of it in lenses/; djip reproduce keeps it there"}
        reasons = {}
        if _rounds(self.record.about) != 0 and (self.record.goal is None or len(self.record.history) < 2):
            reasons["the fit"] = "its record holds no rounds"
        if self.record.one_class is None:
            reasons["one class"] = "its record holds no answers for one, as those of older fits"
        return reasons


def lenses_of(results: Results, records: Sequence[LensRecord]) -> list[TableLens]:
    """Every lens that a student's teacher had, once an arm and teacher, with its record among ``records``."""
    found: dict[tuple[str, str, str], TableLens] = {}
    for pair, cells in results.items():
        for arms in cells.values():
            for arm, runs in arms.items():
                for run in runs.values():
                    key = pair.teacher, arm, run["lens"]
                    if run["lens"] not in ("identity", "none") and not run["lens"].startswith("temperature-") and key not in found:
                        about = run.get("about_lens") or {}
                        found[key] = TableLens(*key, about, _record(run["lens"], about, records))
    return list(found.values())


def _record(name: str, about: dict[str, Any], records: Sequence[LensRecord]) -> LensRecord | None:
    """Equal tables (JPEG, say) have one id; a record is that of this lens when it was also measured on this teacher."""
    weights = about.get("teacher_hash")
    same = [record for record in records if record.id == name and weights in (None, record.about.get("teacher_hash"))]
    return same[0] if same else None


def _rounds(about: dict[str, Any]) -> int | None:
    return (about.get("fit") or {}).get("rounds")


def lens_section(lenses: Sequence[TableLens], pictures: Mapping[TableLens, Sequence[str]]) -> str:
    """Markdown: a line a lens, the pictures of each, and which pictures are missing and why; "" without lenses.

    Args:
        pictures: file names beside the report.
    """
    if not lenses:
        return ""
    header = ["teacher", "arm", "lens", "CMI (nats)", "cross entropy (nats)", "accuracy, training (%)", "accuracy, test (%)", "rounds"]
    parts = ["## The lenses", markdown_table([header, *map(_line, lenses)])]
    parts.append("Of each teacher, without → behind the lens; all on the training images but the last accuracy.")
    for lens in lenses:
        if pictures.get(lens):
            parts += [f"### {lens}", "\n".join(f"![{name}]({name})" for name in pictures[lens])]
    reasons: dict[tuple[str, str], list[str]] = {}
    for lens in lenses:
        for picture, why in lens.missing().items():
            reasons.setdefault((picture, why), []).append(str(lens))
    if reasons:
        lines = (f"{picture} for {', '.join(names)} ({why})" for (picture, why), names in reasons.items())
        parts.append(f"Not drawn: {'; '.join(lines)}.")
    return "\n\n".join(parts)


def _line(lens: TableLens) -> list[str]:
    about = lens.record.about if lens.record else lens.about

    def change(key: str, digits: int, of: str = "") -> str:
        values = [(about.get(of + when) or {}).get(key) for when in ("before", "after")]
        return "" if None in values else " → ".join(f"{value:.{digits}f}" for value in values)

    rounds, fit = _rounds(about), about.get("fit") or {}
    how = "" if rounds is None else f"{rounds}, tables of round {fit.get('chosen')}" if rounds else "0: not fitted"
    how += ", outside its band" if rounds and not fit.get("in_band", True) else ""
    return [lens.teacher, lens.arm, lens.id, change("cmi", 4), change("ce", 4), change("accuracy", 2), change("accuracy", 2, "test_"), how]
