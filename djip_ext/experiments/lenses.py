"""The lenses of a table of results: what each does to its teacher, and their part of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from djip_ext.experiments.records import Results
from djip_ext.experiments.report import markdown_table
from djip_ext.fit.record import LensRecord


@dataclass(frozen=True, eq=False)
class TableLens:
    """A lens in front of a teacher.

    Attributes:
        teacher: the network.
        arm: of the table.
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
            return {
                "everything": "there is no record of it in lenses/; djip reproduce keeps it there"
            }
        reasons = {}
        has_rounds = self.record.goal is not None and len(self.record.history) > 1
        if _rounds(self.record.about) != 0 and not has_rounds:
            reasons["the fit"] = "its record holds no rounds"
        if self.record.one_class is None:
            reasons["one class"] = "its record holds no answers for one, as those of older fits"
        return reasons


def lenses_of(results: Results, records: Sequence[LensRecord]) -> list[TableLens]:
    """Every lens of the table, once for each arm and teacher, with its record among ``records``."""
    found: dict[tuple[str, str, str], TableLens] = {}
    for pair, cells in results.items():
        for arms in cells.values():
            for arm, seeds in arms.items():
                for result in seeds.values():
                    key = pair.teacher, arm, result["lens"]
                    if key not in found and _is_lens(result["lens"]):
                        about = result.get("about_lens") or {}
                        record = _record(result["lens"], about, records)
                        found[key] = TableLens(*key, about, record)
    return list(found.values())


def _is_lens(name: str) -> bool:
    return name not in ("identity", "none") and not name.startswith("temperature-")


def _record(name: str, about: dict[str, Any], records: Sequence[LensRecord]) -> LensRecord | None:
    """The record of the lens ``name``, if it was measured on the same teacher as ``about``.

    Lenses with equal quantization tables (JPEG, say) have one id.
    """
    weights = about.get("teacher_hash")
    same = [
        record
        for record in records
        if record.id == name and weights in (None, record.about.get("teacher_hash"))
    ]
    return same[0] if same else None


def _rounds(about: dict[str, Any]) -> int | None:
    return (about.get("fit") or {}).get("rounds")


def lens_section(lenses: Sequence[TableLens], pictures: Mapping[TableLens, Sequence[str]]) -> str:
    """Markdown: a line per lens, the pictures of each, and which are missing and why.

    "" without lenses.

    Args:
        pictures: file names beside the report.
    """
    if not lenses:
        return ""
    header = [
        "teacher",
        "arm",
        "lens",
        "CMI (nats)",
        "cross entropy (nats)",
        "accuracy, training (%)",
        "accuracy, test (%)",
        "rounds",
    ]
    parts = ["## The lenses", markdown_table([header, *map(_line, lenses)])]
    parts.append(
        "Of each teacher, without → behind the lens; "
        "all on the training images but the last accuracy."
    )
    for lens in lenses:
        if pictures.get(lens):
            parts += [f"### {lens}", "\n".join(f"![{name}]({name})" for name in pictures[lens])]
    missing = _missing(lenses)
    if missing:
        parts.append(f"Not drawn: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def _missing(lenses: Sequence[TableLens]) -> list[str]:
    """For each missing picture and reason, the lenses that lack it."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for lens in lenses:
        for picture, why in lens.missing().items():
            reasons.setdefault((picture, why), []).append(str(lens))
    return [
        f"{picture} for {', '.join(names)} ({why})" for (picture, why), names in reasons.items()
    ]


def _line(lens: TableLens) -> list[str]:
    about = lens.record.about if lens.record else lens.about

    def change(key: str, digits: int, of: str = "") -> str:
        values = [(about.get(of + when) or {}).get(key) for when in ("before", "after")]
        return "" if None in values else " → ".join(f"{value:.{digits}f}" for value in values)

    return [
        lens.teacher,
        lens.arm,
        lens.id,
        change("cmi", 4),
        change("ce", 4),
        change("accuracy", 2),
        change("accuracy", 2, "test_"),
        _rounds_text(about),
    ]


def _rounds_text(about: dict[str, Any]) -> str:
    rounds = _rounds(about)
    if rounds is None:
        return ""
    if rounds == 0:
        return "0: not fitted"
    fit = about["fit"]
    text = f"{rounds}, tables of round {fit.get('chosen')}"
    return text if fit.get("in_band", True) else f"{text}, outside its band"
