"""What an arm of a table of results costs beside its students, from records of finished runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from djip_ext.bench.teacherless import needs_teacher
from djip_ext.experiments.axes import split
from djip_ext.experiments.lenses import TableLens
from djip_ext.experiments.runs import TEACHERS, Run
from djip_ext.experiments.statistics import summarise


@dataclass(frozen=True)
class ArmCost:
    """Beside the students of an arm; ``None`` is not known, or nothing of the kind.

    Attributes:
        training: seconds that the arm's own teacher took, where a run of the same folder made it;
            of several teachers the mean, like the other numbers.
        fit: seconds of the fit of its lens.
        passes: of the teacher, forward or backward, for what its students add (the choice of CKD,
            the adversarial images of TALD and BSS), per student, on average.
        student: seconds of a student, on average.
    """

    training: float | None
    fit: float | None
    passes: int | None
    student: float


def arm_costs(runs: Sequence[Run], lenses: Sequence[TableLens]) -> dict[str, ArmCost]:
    """Arm -> its cost.

    Args:
        runs: all of a folder, those that trained teachers among them.
        lenses: of the same folder.
    """
    by_arm: dict[str, list[Run]] = {}
    for run in runs:
        if needs_teacher(split(run.row)[0]) and run.project != TEACHERS:
            by_arm.setdefault(run.project, []).append(run)
    return {
        arm: ArmCost(
            _training(students, runs),
            _fit([lens for lens in lenses if lens.arm == arm]),
            _passes(students),
            summarise([run.result["seconds"] for run in students]).mean,
        )
        for arm, students in by_arm.items()
    }


def trained_here(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run among ``runs`` that trained the teacher of ``run``, if there is one."""
    checkpoint = Path(run.config["BENCH"].get("TEACHER_CHECKPOINT", ""))
    for made in runs:
        if str(checkpoint.parent).endswith(f"/{made.folder}"):
            return made
    return None


def _training(students: Sequence[Run], runs: Sequence[Run]) -> float | None:
    made = {teacher.folder: teacher for run in students if (teacher := trained_here(run, runs))}
    return _mean([float(teacher.result["seconds"]) for teacher in made.values()])


def _fit(lenses: Sequence[TableLens]) -> float | None:
    about = [lens.about if lens.record is None else lens.record.about for lens in lenses]
    return _mean([float(one["seconds"]) for one in about if "seconds" in one])


def _mean(numbers: Sequence[float]) -> float | None:
    return summarise(numbers).mean if numbers else None


def _passes(students: Sequence[Run]) -> int | None:
    known = [passes for run in students if (passes := _passes_of(run.result)) is not None]
    return round(summarise(known).mean) if known else None


def _passes_of(result: Mapping[str, Any]) -> int | None:
    passes = result.get("adversarial_teacher_passes")
    return (result.get("ckd") or {}).get("teacher_passes") if passes is None else passes


def cost_lines(costs: Mapping[str, ArmCost], arms: Sequence[str]) -> list[list[str]]:
    """A header and a line per arm, as text; none when no arm costs anything beside its students."""
    known = [costs[arm] for arm in arms if arm in costs]
    if all(cost.training is cost.fit is cost.passes is None for cost in known):
        return []
    lines = [
        ["arm", "its teacher (s)", "its lens (s)", "teacher passes per student", "student (s)"]
    ]
    for arm in arms:
        if arm in costs:
            cost = costs[arm]
            passes = "" if cost.passes is None else f"{cost.passes:,}"
            lines.append(
                [arm, _seconds(cost.training), _seconds(cost.fit), passes, _seconds(cost.student)]
            )
    return lines


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
