"""``djip tune``: choose what goes before a teacher by short paired students, not by test images."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from djip_ext.bench.engine.temperature import TEMPERATURE_KEYS, distiller_temperature
from djip_ext.cli.options import (
    add_benchmark_arguments,
    add_scheduler_arguments,
    benchmark_cfg,
)
from djip_ext.cli.report import write_report
from djip_ext.cli.reproduce import check_data, parameters
from djip_ext.errors import DJIPError
from djip_ext.experiments.arms import Arm
from djip_ext.experiments.cost import Cost, Estimate
from djip_ext.experiments.plan import Step, make_plan
from djip_ext.experiments.scheduler import (
    Job,
    cluster_start,
    local_start,
    log_file,
    run_plan,
)
from djip_ext.experiments.statistics import Summary
from djip_ext.experiments.table import Table
from djip_ext.experiments.tuning import (
    Candidate,
    Choice,
    candidates,
    choose,
    decided,
    epochs_within,
    still_open,
)
from djip_ext.utils.files import atomic_write, write_json

PLAIN = "plain"
PAGE = "docs/tuning.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip tune``."""
    add_benchmark_arguments(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where everything goes (default: output/tune/NAME_OF_CFG)",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="what may go before the teacher, as in a table: a lens file, 'fit FLAGS', "
        "jpeg:QUALITY, temperature:K; given at least once it replaces the default ones",
    )
    parser.add_argument(
        "--temperatures",
        type=read_temperatures,
        default=[],
        metavar="T,T,...",
        help="temperatures of the distiller to try as well, e.g. 1,2,8; default: its own alone",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=0.1,
        metavar="PART",
        help="what the choice may cost, in full student runs (default: %(default)s)",
    )
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.2,
        metavar="PART",
        help="part of the training images on which students are compared (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=4,
        metavar="N",
        help="paired students that the budget is planned for (default: %(default)s); what dropped "
        "candidates leave over buys more",
    )
    add_scheduler_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the candidates and print the choice; raises DJIPError for anything the user can fix."""
    if not args.cfg:
        raise DJIPError("djip tune needs --cfg: a student's configuration, see configs/")
    cfg = benchmark_cfg(args)
    out = Path(args.out or Path("output", "tune", Path(args.cfg).stem))
    arms = read_arms(args.arm) or default_arms()
    tuning = Tuning(args, cfg, arms, out)
    check_data(tuning.steps(tuning.pool[0], 1))
    settings = tuning.settings()
    workers = args.workers or (len(tuning.pool) if args.cluster else 1)
    start: Callable[[Step], Job] = (
        cluster_start(args.cluster, str(out), parameters(args.job))
        if args.cluster
        else local_start(str(out), workers)
    )
    scores = compete(tuning, settings, start, workers)
    report(tuning, choose(scores, tuning.baseline), settings)


def default_arms() -> dict[str, str]:
    """A mild and a stronger lens, JPEG, and a softer teacher without a lens."""
    return {
        "mild": "fit --cmi-gain 0.05 0.15",
        "strong": "fit --cmi-gain 0.2 0.4",
        "jpeg": "jpeg:75",
        "softer": "temperature:2",
    }


def read_temperatures(text: str) -> list[float]:
    """``1,2,8`` as numbers; a list with commas, since KEY VALUE pairs may follow."""
    found = [float(word) for word in text.split(",")]
    if not all(value > 0 for value in found):
        raise ValueError(f"{text}: a temperature is positive")
    return found


def read_arms(words: Iterable[str]) -> dict[str, str]:
    """``NAME=SOURCE`` words; the table checks the sources.  Raises DJIPError for other words."""
    arms: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or not source or name in (PLAIN, *arms):
            raise DJIPError(
                f"--arm is '{word}'; give NAME=SOURCE, each name once and none called {PLAIN}"
            )
        arms[name] = source
    return arms


class Tuning:
    """The candidates of one choice and the commands that each of them takes."""

    def __init__(
        self, args: argparse.Namespace, cfg: CfgNode, arms: dict[str, str], out: Path
    ) -> None:
        self.args, self.cfg, self.out = args, cfg, out
        self.arms = {PLAIN: "identity"} | arms
        self.key = TEMPERATURE_KEYS.get(cfg.DISTILLER.TYPE)
        own = distiller_temperature(cfg) if self.key else None
        if args.temperatures and self.key is None:
            raise DJIPError(
                f"--temperatures: {cfg.DISTILLER.TYPE} has no temperature to try; it goes with "
                f"{', '.join(TEMPERATURE_KEYS)}"
            )
        if not args.budget > 0 or args.seeds < 3 or not 0 < args.holdout < 1:
            raise DJIPError(
                f"--budget {args.budget} must be positive, --seeds {args.seeds} at least 3 and "
                f"--holdout {args.holdout} within (0, 1)"
            )
        self.baseline = Candidate(PLAIN, own)
        self.pool = [self.baseline] + [
            candidate
            for candidate in candidates(self.arms, list(dict.fromkeys([own, *args.temperatures])))
            if candidate != self.baseline
        ]

    def table(self, candidate: Candidate, epochs: int | None, seeds: int, held: bool) -> Table:
        """The table of that candidate's students alone."""
        cfg, args = self.cfg, self.args
        options = dict(zip(args.options[::2], args.options[1::2], strict=True))
        options.pop("BENCH.TEACHER_CHECKPOINT", None)
        short: dict[str, Any] = {}
        if epochs is not None:
            short = {"BENCH.EVAL_EVERY": epochs, "BENCH.VIEWS": min(cfg.BENCH.VIEWS, epochs)}
        checkpoint = cfg.BENCH.TEACHER_CHECKPOINT
        return Table(
            name="tune",
            configs=args.cfg.replace("{", "{{").replace("}", "}}"),
            pairs=(Path(args.cfg).stem,),
            distillers=(cfg.DISTILLER.TYPE,),
            arms={candidate.arm: Arm(self.arms[candidate.arm])},
            teachers={cfg.DISTILLER.TEACHER: checkpoint} if checkpoint else {},
            seeds=seeds,
            epochs=epochs,
            options={
                "all": options | ({"BENCH.HOLDOUT": args.holdout} if held else {}),
                "student": short,
            },
            vary={self.key: [candidate.temperature]} if self.key else {},
        )

    def steps(self, candidate: Candidate, seeds: int, epochs: int | None = None) -> list[Step]:
        """Its lens and its students with the seeds 0 to ``seeds`` - 1, in their order."""
        held = epochs is not None
        table = self.table(candidate, epochs, seeds, held)
        return make_plan(table, str(self.out), self.args.data_root or "")

    def settings(self) -> dict[str, Any]:
        """How long the students are and what that costs; kept, so that a choice that is started
        again goes on as it was begun.

        Raises:
            DJIPError: the folder holds a choice of other candidates, or the budget is too small.
        """
        path = self.out / "tune.json"
        asked = {
            "arms": self.arms,
            "candidates": [str(candidate) for candidate in self.pool],
            "budget": self.args.budget,
            "holdout": self.args.holdout,
            "seeds": self.args.seeds,
            "options": list(self.args.options),
        }
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text())
            if kept["asked"] != asked:
                raise DJIPError(f"{self.out} holds a choice that was asked for otherwise; take "
                                "the same flags, or another --out")  # fmt: skip
            print(f"going on with the choice in {self.out}")
            return kept
        found = {"asked": asked} | self.affordable()
        print(
            f"{len(self.pool)} candidates, students of {found['epochs']} epochs, planned for "
            f"{self.args.seeds} seeds: {found['planned']:.0f} s of one worker, "
            f"{100 * found['planned'] / found['full']:.0f} % of one full student "
            f"({found['full']:.0f} s)"
        )
        write_json(path, found)
        return found

    def affordable(self) -> dict[str, Any]:
        """The longest students that the budget allows for all candidates and planned seeds."""
        estimate = Estimate()
        full = seconds(estimate(students(self.steps(self.baseline, 1))))
        one, two = (
            seconds(estimate(unique(self.steps(c, self.args.seeds, epochs) for c in self.pool)))
            for epochs in (1, 2)
        )
        per_epoch = max(two - one, 1e-9)
        fixed = max(0.0, one - per_epoch)
        allowed = self.args.budget * full
        epochs = epochs_within(allowed, fixed, per_epoch, self.cfg.SOLVER.EPOCHS)
        if epochs == 0:
            raise DJIPError(
                f"{len(self.pool)} candidates with {self.args.seeds} seeds cost at least "
                f"{one / full:.2f} full students; give --budget {1.05 * one / full:.2f} or more, "
                "or fewer candidates"
            )
        planned = fixed + epochs * per_epoch
        return {"epochs": epochs, "full": full, "planned": planned, "allowed": allowed}


def unique(plans: Iterable[list[Step]]) -> list[Step]:
    """The steps of several plans, each once, in their order."""
    return list(dict.fromkeys(step for plan in plans for step in plan))


def students(steps: Iterable[Step]) -> list[Step]:
    """Those steps that train a student."""
    return [step for step in steps if step.kind == "student"]


def seconds(costs: Iterable[Cost]) -> float:
    """The sum over steps."""
    return sum((cost.seconds for cost in costs), 0.0)


def compete(
    tuning: Tuning, settings: dict[str, Any], start: Callable[[Step], Job], workers: int
) -> dict[Candidate, dict[int, float]]:
    """Train round after round until the pairs decide or the budget is spent.

    Raises:
        DJIPError: a command failed; the message names its log.
    """
    scores: dict[Candidate, dict[int, float]] = {candidate: {} for candidate in tuning.pool}
    left = list(tuning.pool)
    planned_students = len(tuning.pool) * tuning.args.seeds
    trained = seed = 0
    while trained + len(left) <= planned_students and not (
        seed >= 3 and decided(scores, tuning.baseline)
    ):
        rows = {
            candidate: tuning.steps(candidate, seed + 1, settings["epochs"]) for candidate in left
        }
        wanted = {
            candidate: next(step for step in students(steps) if step.seed == seed)
            for candidate, steps in rows.items()
        }
        lenses = [step for steps in rows.values() for step in steps if step.kind != "student"]
        steps = list(dict.fromkeys([*lenses, *wanted.values()]))
        outcome = run_plan(steps, start, workers, lambda line: print(line, flush=True))
        if outcome.failed:
            first = outcome.failed[0]
            raise DJIPError(
                f"{first.name} failed, see {log_file(first, str(tuning.out))}; "
                "put that right and start the same command again"
            )
        for candidate, step in wanted.items():
            result = step.result()
            assert result is not None  # the plan has brought it to its end
            scores[candidate][seed] = result["last_acc"]
        trained += len(left)
        seed += 1
        left = still_open(scores, tuning.baseline)
        for candidate in rows:
            if candidate not in left:
                print(f"dropped after {seed} seeds: {candidate}")
    return scores


def report(tuning: Tuning, choice: Choice, settings: dict[str, Any]) -> None:
    """Print the choice and leave it as ``choice.json``, ``choice.md`` and ``choice.png``.

    The report that every table has lies beside them.
    """
    from djip_ext.plots.choice import choice_figure
    from djip_ext.plots.style import save_figure

    out = tuning.out
    write_report(out, None, out / "report")
    text = choice_text(tuning, choice, settings)
    atomic_write(out / "choice.md", lambda path: path.write_text(text))
    save_figure(choice_figure(choice, tuning.baseline), out / "choice.png")
    write_json(
        out / "choice.json",
        {
            "arm": choice.candidate.arm,
            "source": tuning.arms[choice.candidate.arm],
            "temperature": choice.candidate.temperature,
            "lens": lens_of(tuning, choice.candidate, settings["epochs"]),
            "differences": {str(c): dataclasses.asdict(s) for c, s in choice.differences.items()},
        },
    )
    print(f"\n{text}")


def lens_of(tuning: Tuning, candidate: Candidate, epochs: int) -> str:
    """What ``--djip-lens`` takes for it: a file, ``temperature:K`` or ``identity``."""
    return students(tuning.steps(candidate, 1, epochs))[0].lens


def choice_text(tuning: Tuning, choice: Choice, settings: dict[str, Any]) -> str:
    """The choice in words and as a Markdown table."""
    if choice.gain is None:
        head = "**Choice: nothing. Keep the teacher plain**: no candidate is better beyond noise."
    else:
        flag = lens_of(tuning, choice.candidate, settings["epochs"])
        setting = ""
        if tuning.key and choice.candidate.temperature != tuning.baseline.temperature:
            setting = f" {tuning.key} {choice.candidate.temperature:g}"
        head = (
            f"**Choice: {choice.candidate}**, {interval(choice.gain)} points over the plain "
            "teacher.\n\n"
            f"    djip train --cfg {tuning.args.cfg} --djip-lens {flag}{setting} ..."
        )
    lines = ["| candidate | n | difference to plain |", "|---|---|---|"]
    for candidate, gain in choice.differences.items():
        lines.append(f"| {candidate} | {gain.n} | {interval(gain)} |")
    foot = (
        f"Students of {settings['epochs']} epochs, on {100 * tuning.args.holdout:g} % of the "
        f"training images that they did not see; differences to {tuning.baseline} in points, "
        "paired by seed, ± half of an interval that holds for all candidates at once (95 %)."
    )
    return f"{head}\n\n" + "\n".join(lines) + f"\n\n{foot}\n"


def interval(gain: Summary) -> str:
    """``+1.20 ± 0.80``; the mean alone for a single pair."""
    return f"{gain.mean:+.2f}" + (f" ± {gain.half_width:.2f}" if gain.n > 1 else "")
