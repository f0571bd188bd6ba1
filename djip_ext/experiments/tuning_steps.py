"""The commands of a choice (``djip tune``) and their price.

Students, fits of lenses and the training of an arm's own teacher all read the same part of the
training images, without those that are held out (``BENCH.HOLDOUT``): no candidate has seen the
images on which it is compared.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from djip_ext.bench.models.closed import is_closed
from djip_ext.errors import DJIPError
from djip_ext.experiments.arms import Arm
from djip_ext.experiments.cost import Estimate
from djip_ext.experiments.plan import IMAGES, Step, make_plan
from djip_ext.experiments.table import Table
from djip_ext.experiments.tuning import Candidate

MACHINE = ("BENCH.DEVICE", "BENCH.PRECISION", "BENCH.DOWNLOAD")
LENGTH = ("SOLVER.EPOCHS", "SOLVER.LR_DECAY_STAGES", "BENCH.WARMUP")
HOLDOUT = "BENCH.HOLDOUT"


@dataclass(frozen=True)
class Price:
    """Seconds of one worker, by kind of command, and queries of a closed teacher."""

    teachers: float
    lenses: float
    students: float
    queries: int = 0

    @property
    def total(self) -> float:
        """Their sum."""
        return self.teachers + self.lenses + self.students

    def __str__(self) -> str:
        parts = {"teachers": self.teachers, "lenses": self.lenses, "students": self.students}
        words = [f"{name} {value:.0f} s" for name, value in parts.items() if value]
        if self.queries:
            words.append(f"at most {self.queries:,} queries of the closed teacher")
        return ", ".join(words)


@dataclass(frozen=True)
class TuningSteps:
    """The candidates of one choice as commands.

    Attributes:
        config: path of the student's configuration, and the only pair of the table.
        pair: what the runs are called after.
        options: KEY -> VALUE of the user, for students and fits.
        cfg: ``config`` with ``options``.
        arms: name -> arm.
        pool: the candidates.
        key: of the distiller's temperature; None where it has none.
        holdout: part of the training images of each class on which students are compared.
        out: folder of everything.
        data_root: of ``--data-root``; "" leaves the configuration's.
    """

    config: str
    pair: str
    options: Mapping[str, Any]
    cfg: CfgNode
    arms: dict[str, Arm]
    pool: Sequence[Candidate]
    key: str | None
    holdout: float
    out: str
    data_root: str

    def table(self, seeds: int, epochs: int | None) -> Table:
        """Every arm at every temperature of the pool.

        Args:
            epochs: of short students, compared on held-out images; None: the full student's own,
                on all training images.
        """
        checkpoint = self.cfg.BENCH.TEACHER_CHECKPOINT
        theirs = dict(self.options)
        theirs.pop("BENCH.TEACHER_CHECKPOINT", None)
        held: dict[str, Any] = {}
        short: dict[str, Any] = {}
        if epochs is not None:
            held = {HOLDOUT: self.holdout}
            short = self.shortened(epochs)
        temperatures = dict.fromkeys(candidate.temperature for candidate in self.pool)
        return Table(
            name="tune",
            configs=self.config.replace("{", "{{").replace("}", "}}"),
            pairs=(self.pair,),
            distillers=(self.cfg.DISTILLER.TYPE,),
            arms=self.arms,
            teachers={self.cfg.DISTILLER.TEACHER: checkpoint} if checkpoint else {},
            seeds=seeds,
            options={
                "teacher": self.shared() | held,
                "lens": theirs | held,
                "student": theirs | held | short,
            },
            vary={self.key: list(temperatures)} if self.key else {},
        )

    def shared(self) -> dict[str, Any]:
        """What an arm's own teacher takes over from the students: their images, the machine.

        Their epochs, schedule and views are not for it; those are in its own configuration.
        """
        found = {}
        for path in (*IMAGES, *MACHINE):
            node, key = path.split(".")
            found[path] = self.cfg[node][key]
        return found

    def shortened(self, epochs: int) -> dict[str, Any]:
        """The options of a student of so many epochs; stages and warm-up shrink in proportion."""
        solver, bench = self.cfg.SOLVER, self.cfg.BENCH
        stages = [max(1, round(stage * epochs / solver.EPOCHS)) for stage in solver.LR_DECAY_STAGES]
        return {
            "SOLVER.EPOCHS": epochs,
            "SOLVER.LR_DECAY_STAGES": stages,
            "BENCH.WARMUP": bench.WARMUP * epochs // solver.EPOCHS,
            "BENCH.EVAL_EVERY": epochs,
            "BENCH.VIEWS": min(bench.VIEWS, epochs),
        }

    def students(self, seeds: int, epochs: int | None = None) -> dict[Candidate, list[Step]]:
        """The students of every candidate with the seeds 0 to ``seeds`` - 1, in their order.

        Raises:
            DJIPError: as :func:`~djip_ext.experiments.plan.make_plan`.
        """
        plan = make_plan(self.table(seeds, epochs), self.out, self.data_root)
        temperatures = dict.fromkeys(candidate.temperature for candidate in self.pool)
        cells = [Candidate(arm, t) for t in temperatures for arm in self.arms]  # as the plan's
        found: dict[Candidate, list[Step]] = {candidate: [] for candidate in self.pool}
        trained = [step for step in plan if step.kind == "student"]
        for step, candidate in zip(trained, itertools.cycle(cells), strict=False):
            if candidate in found:
                found[candidate].append(step)
        return found

    def price(self, estimate: Estimate, start: float, seeds: int, epochs: int) -> Price:
        """What all candidates cost with so many seeds and epochs.

        Args:
            start: seconds until a command begins its work.
        """
        by_candidate = self.students(seeds, epochs)
        steps = with_needs(itertools.chain.from_iterable(by_candidate.values()))
        sums = {"teacher": 0.0, "lens": 0.0, "student": 0.0}
        queries = 0
        closed = is_closed(self.cfg.DISTILLER.TEACHER)
        for step, cost in zip(steps, estimate(steps), strict=True):
            if cost.seconds:  # nothing where it is finished already
                sums[step.kind] += start + cost.seconds
            # an arm may have a teacher of its own
            if closed and cost.teacher and is_closed(step.settings().DISTILLER.TEACHER):
                queries += cost.teacher
        return Price(sums["teacher"], sums["lens"], sums["student"], queries)


def with_needs(steps: Iterable[Step]) -> list[Step]:
    """``steps`` and all that they need, each once and after what it needs."""
    found: dict[Step, None] = {}
    for step in steps:
        found |= dict.fromkeys([*with_needs(step.needs), step])
    return list(found)


def check_options(options: Mapping[str, Any], arms: Mapping[str, Arm]) -> None:
    """Refuse options that say which run it is, how long it is, or what it reads.

    Raises:
        DJIPError: the user's ``options``, or those of an arm, have one.
    """
    for key in options:
        if key in (HOLDOUT, "BENCH.SEED") or key.startswith(("EXPERIMENT.", "LOG.")):
            raise DJIPError(
                f"{key} is set by djip tune itself; leave it out (--holdout, --seeds and --out "
                "are its flags)"
            )
    for name, arm in arms.items():
        for key in arm.options:
            if key in (*IMAGES, *LENGTH, HOLDOUT):
                raise DJIPError(
                    f"arm {name} sets {key}; the candidates of djip tune share their images and "
                    "epochs, so leave it out"
                )
