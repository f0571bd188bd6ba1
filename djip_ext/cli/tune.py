"""``djip tune``: choose what goes before a teacher by short paired students, not by test images."""

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import load_run_sets
from djip_ext.bench.engine.run import used_config
from djip_ext.bench.engine.temperature import TEMPERATURE_KEYS, distiller_temperature
from djip_ext.bench.models.closed import is_closed
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.cli.options import add_benchmark_arguments, add_scheduler_arguments, benchmark_cfg
from djip_ext.cli.report import write_report
from djip_ext.cli.reproduce import check_data, check_fit_flags, parameters
from djip_ext.errors import DJIPError
from djip_ext.experiments.arms import Arm, read_arm_of_a_table
from djip_ext.experiments.axes import words_of
from djip_ext.experiments.cost import Estimate
from djip_ext.experiments.plan import Step, other_settings
from djip_ext.experiments.scheduler import (
    Job,
    call,
    cluster_start,
    local_start,
    log_file,
    run_plan,
    threads_of,
)
from djip_ext.experiments.statistics import Summary
from djip_ext.experiments.table import load_arms
from djip_ext.experiments.tuning import (
    DECISIVE_PAIRS,
    Candidate,
    Choice,
    candidates,
    choose,
    decided,
    epochs_within,
    still_open,
)
from djip_ext.experiments.tuning_steps import TuningSteps, check_options, with_needs
from djip_ext.lens.io import softening
from djip_ext.utils.files import atomic_write, claimed, write_json

PLAIN = "plain"
SEEDS, MOST_SEEDS = 6, 12  # planned when none are named
SOFT = 4.0  # T at which the plain teacher is tried, too (results/when_it_helps.md)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip tune``."""
    add_benchmark_arguments(parser)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where everything goes (default: output/tune/DISTILLER_NAME_OF_CFG)",
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=SOURCE",
        help="what may go before the teacher, as in a table: a lens file, 'fit FLAGS', "
        "jpeg:QUALITY, temperature:K; may be repeated, and replaces the default ones",
    )
    parser.add_argument(
        "--arms",
        metavar="FILE",
        help="YAML file of arms as in a table, which may have teachers of their own, or a whole "
        "table; replaces the default ones, too",
    )
    parser.add_argument(
        "--temperatures",
        type=read_temperatures,
        metavar="T,T,...",
        help="temperatures of the distiller at which every candidate is tried beside its own, e.g. "
        f"2,4,8 (default: none, but the plain teacher is tried at {SOFT:g} where its own is lower)",
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
        default=0.75,
        metavar="PART",
        help="part of the training images on which students are compared (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"paired students that the budget is planned for (default: {SEEDS}, and up to "
        f"{MOST_SEEDS} where full students cost less); dropped candidates leave over more",
    )
    add_scheduler_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Run the candidates and print the choice; raises DJIPError for anything the user can fix."""
    tuning = Tuning(args)
    data = check_data(tuning.steps.students(1)[tuning.baseline])
    settings = tuning.settings(list(data.values()))
    out = str(tuning.out)
    workers = args.workers or (len(tuning.pool) if args.cluster else 1)
    start: Callable[[Step], Job] = (
        cluster_start(args.cluster, out, parameters(args.job))
        if args.cluster
        else local_start(out, workers)
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends what was begun
    scores = compete(tuning, settings, start, workers)
    report(tuning, choose(scores, tuning.baseline), settings)


def default_arms(closed: bool = False) -> dict[str, Arm]:
    """A fitted lens, JPEG, and a softer teacher without a lens.

    Before a ``closed`` teacher there is no lens: a fit would spend queries that nobody has named.

    At T = 1 JPEG of this quality gained 1.55 points and halved logits 2.7
    (results/when_it_helps.md, "A less sure teacher"); a fit costs as much as a few short students,
    so that there is one.
    """
    lens = {} if closed else {"lens": Arm("fit")}
    return lens | {"jpeg": Arm("jpeg:87"), "softer": Arm("temperature:2")}


def read_temperatures(text: str) -> list[float]:
    """``1,2,8`` as numbers; a list with commas, since KEY VALUE pairs may follow."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = [0.0]
    if not all(value > 0 for value in found):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of positive numbers such as 2,4,8")
    return found


def read_arms(
    words: Iterable[str], path: str | None, key: str | None, closed: bool = False
) -> dict[str, Arm]:
    """The arms of ``--arm`` and ``--arms``, the default ones without either; plain goes first.

    An arm of the file that is the plain teacher and nothing else is left out: it is the baseline,
    from which its students could never differ.

    Args:
        key: of the temperature, which no arm may set.
        closed: whether the teacher is, as :func:`default_arms` asks.

    Raises:
        DJIPError: words or a file that are no arms, a name twice, or words that name the plain
            teacher.
    """
    arms = {PLAIN: Arm()}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or not source or name in arms:
            raise DJIPError(
                f"--arm is '{word}'; give NAME=SOURCE, each name once and none called {PLAIN}"
            )
        arms[name] = read_arm_of_a_table(name, source)
        if _is_plain(arms[name]):
            raise DJIPError(
                f"--arm is '{word}', the plain teacher, to which all others are compared anyway; "
                "leave it out"
            )
    if path is not None:
        for name, arm in load_arms(path, {key: ()} if key else None).items():
            if _is_plain(arm):
                continue
            if name in arms:
                raise DJIPError(
                    f"{path}: the name {name} is taken, by --arm or by the plain teacher; rename it"
                )
            arms[name] = arm
    if not words and path is None:
        arms |= default_arms(closed)
    for name, arm in arms.items():
        check_fit_flags(name, arm.before)
    return arms


def _is_plain(arm: Arm) -> bool:
    """Whether the students of ``arm`` are those of the plain teacher."""
    return softening(arm.before) == 1 and arm == Arm(arm.before)


class Tuning:
    """What was asked for: the candidates of one choice and how they are compared.

    Raises:
        DJIPError: anything in ``args`` that cannot be.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        if not args.cfg:
            raise DJIPError("djip tune needs --cfg: a student's configuration, see configs/")
        cfg = benchmark_cfg(args)
        _check_numbers(args, cfg)
        self.args = args
        self.cfg = cfg
        self.out = Path(args.out or default_folder(args.cfg, cfg))
        self.key = TEMPERATURE_KEYS.get(cfg.DISTILLER.TYPE)
        own = distiller_temperature(cfg) if self.key else None
        if args.temperatures and self.key is None:
            raise DJIPError(
                f"--temperatures: {cfg.DISTILLER.TYPE} has no temperature to try; it goes with "
                f"{', '.join(TEMPERATURE_KEYS)}"
            )
        self.arms = read_arms(args.arm, args.arms, self.key, is_closed(cfg.DISTILLER.TEACHER))
        self.options = dict(zip(args.options[::2], args.options[1::2], strict=True))
        check_options(self.options, self.arms)
        self.baseline = Candidate(PLAIN, own)
        temperatures = list(dict.fromkeys([own, *(args.temperatures or ())]))
        wanted = candidates(self.arms, temperatures)
        if args.temperatures is None and own is not None and own < SOFT:
            wanted.append(Candidate(PLAIN, SOFT))
        others = [candidate for candidate in wanted if candidate != self.baseline]
        self.pool = [self.baseline, *others]
        self.steps = TuningSteps(
            config=args.cfg,
            pair=Path(args.cfg).stem,
            options=self.options,
            cfg=cfg,
            arms=self.arms,
            pool=self.pool,
            key=self.key,
            holdout=args.holdout,
            out=str(self.out),
            data_root=args.data_root or "",
        )

    def settings(self, data: list[Any]) -> dict[str, Any]:
        """How long the students are and what that costs.

        It is kept, so that a choice that is started again goes on as it was begun.

        Args:
            data: fingerprints of the images.

        Raises:
            Busy: another process is about to decide that.
            DJIPError: the folder holds a choice of other candidates, or the budget is too small.
        """
        with claimed(self.out / ".tune.lock", str(self.out)):
            return self._kept_settings(data)

    def _kept_settings(self, data: list[Any]) -> dict[str, Any]:
        path = self.out / "tune.json"
        asked = {
            "arms": {name: _as_json(arm) for name, arm in self.arms.items()},
            "candidates": [str(candidate) for candidate in self.pool],
            "budget": self.args.budget,
            "holdout": self.args.holdout,
            "seeds": seeds_asked(self.args),
            "options": list(self.args.options),
            "pair": self.steps.pair,
            "config": used_config(self.cfg),
            "data": data,
        }
        asked = json.loads(json.dumps(asked))
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text())
            differing = self._asked_otherwise(asked, kept["asked"])
            if differing:
                raise DJIPError(
                    f"{self.out} holds a choice that was asked for otherwise "
                    f"({', '.join(differing)}); take the same flags, or another --out"
                )
            print(f"going on with the choice in {self.out}: {self.planned(kept)}")
            return kept
        found = {"asked": asked} | self.affordable()
        print(f"{self.planned(found)} ({found['parts']})", flush=True)
        write_json(path, found)
        return found

    def _asked_otherwise(self, asked: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
        """What of ``asked`` was ``kept`` otherwise: flags, and settings of the configuration.

        What an older version did not keep counts as equal.
        """
        names = [name for name in asked if name in kept and kept[name] != asked[name]]
        if "config" in names:
            names.remove("config")  # other text may be the same run elsewhere
            names += other_settings(self.cfg, kept["config"])
        return names

    def seeds(self, settings: Mapping[str, Any]) -> int:
        """Paired students of each candidate that are planned; before 2026-11-26 those asked for."""
        planned: int = settings.get("seeds", seeds_asked(self.args))
        return planned

    def planned(self, settings: Mapping[str, Any]) -> str:
        """The price in words."""
        planned, full = settings["planned"], settings["full"]
        return (
            f"{len(self.pool)} candidates, students of {settings['epochs']} epochs, planned for "
            f"{self.seeds(settings)} seeds: {planned:.0f} s of one worker, "
            f"{100 * planned / full:.0f} % of one full student ({full:.0f} s)"
        )

    def affordable(self) -> dict[str, Any]:
        """The longest students that the budget allows for all candidates and planned seeds.

        Where these are full students and no seeds are named, as many seeds as it allows.

        Raises:
            DJIPError: it allows none; the message names budgets that do.
        """
        if (threads := threads_of(self.args.workers or 1)) and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(threads)  # as each worker will
        start = seconds_to_start(self.cfg)
        estimate = Estimate()
        whole = self.steps.students(1)[self.baseline]
        full = start + sum(cost.seconds for cost in estimate(whole))
        most = self.cfg.SOLVER.EPOCHS
        seeds = seeds_asked(self.args)
        prices = {epochs: self.steps.price(estimate, start, seeds, epochs) for epochs in (1, most)}

        def price(epochs: int) -> float:
            if epochs not in prices:
                prices[epochs] = self.steps.price(estimate, start, seeds, epochs)
            return prices[epochs].total

        allowed = self.args.budget * full
        epochs = epochs_within(allowed, price, most)
        if epochs == 0:
            tenth = max(1, most // 10)
            raise DJIPError(
                f"{len(self.pool)} candidates with {seeds} seeds cost at least "
                f"{price(1) / full:.2f} full students of {full:.0f} s ({prices[1]}); give --budget "
                f"{_above(price(1) / full)} for students of one epoch, "
                f"{_above(price(tenth) / full)} for a tenth of the full ones', or fewer candidates"
            )
        price(epochs)  # so that it is among the prices
        found = prices[epochs]
        few = self.args.seeds is None and epochs == most  # longer than full they do not get
        while few and seeds < MOST_SEEDS:
            more = self.steps.price(estimate, start, seeds + 1, epochs)
            if more.total > allowed:
                break
            seeds, found = seeds + 1, more
        return {
            "epochs": epochs,
            "seeds": seeds,
            "full": full,
            "planned": found.total,
            "allowed": allowed,
            "parts": str(found),
        }


def default_folder(path: str, cfg: CfgNode) -> Path:
    """Where a choice for ``cfg``, the file ``path``, goes: the files of methods share names."""
    kind, stem = cfg.DISTILLER.TYPE.lower(), Path(path).stem
    named = kind in stem.lower().split("_")
    return Path("output", "tune", stem if named else f"{kind}_{stem}")


def seeds_asked(args: argparse.Namespace) -> int:
    """``--seeds``, or how many there are without it."""
    return SEEDS if args.seeds is None else int(args.seeds)


def _check_numbers(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Raise DJIPError for flags outside their range, or without a teacher."""
    if not needs_teacher(cfg.DISTILLER.TYPE):
        raise DJIPError(
            "djip tune chooses what goes before a teacher, but DISTILLER.TYPE is "
            f"{cfg.DISTILLER.TYPE}; name a distiller, or a file that does with --cfg"
        )
    seeds = seeds_asked(args)
    if not args.budget > 0 or seeds < DECISIVE_PAIRS or not 0 < args.holdout < 1:
        raise DJIPError(
            f"--budget {args.budget} must be positive, --seeds {seeds} at least "
            f"{DECISIVE_PAIRS} and --holdout {args.holdout} within (0, 1)"
        )
    if is_closed(cfg.DISTILLER.TEACHER) and not cfg.BENCH.VIEWS:
        raise DJIPError(
            f"{cfg.DISTILLER.TEACHER} would be asked anew in every epoch of every student; give "
            "BENCH.VIEWS K, which asks K times for each image and keeps the answers"
        )
    checkpoint = cfg.BENCH.TEACHER_CHECKPOINT
    if checkpoint and not Path(checkpoint).is_file():
        raise DJIPError(
            f"BENCH.TEACHER_CHECKPOINT is {checkpoint}, which does not exist; name the teacher's "
            "weights"
        )


def _above(budget: float) -> str:
    """A value of ``--budget`` that is enough, though timing scatters."""
    return f"{1.1 * budget + 0.005:.2f}"


def _as_json(arm: Arm) -> Any:
    """An arm as it is kept: a string where that says all."""
    return arm.before if arm == Arm(arm.before) else dataclasses.asdict(arm)


def seconds_to_start(cfg: CfgNode) -> float:
    """Seconds until a command begins its work: Python, its imports, the images."""
    began = time.perf_counter()
    call(["train", "--help"], os.devnull, 0)
    load_run_sets(cfg)
    return time.perf_counter() - began


def compete(
    tuning: Tuning, settings: dict[str, Any], start: Callable[[Step], Job], workers: int
) -> dict[Candidate, dict[int, float]]:
    """Train round after round until the pairs decide or the budget is spent.

    Raises:
        DJIPError: a command failed; the message names its log.
    """
    scores: dict[Candidate, dict[int, float]] = {candidate: {} for candidate in tuning.pool}
    left = list(tuning.pool)
    planned_students = len(tuning.pool) * tuning.seeds(settings)
    trained = seed = 0
    while trained + len(left) <= planned_students and not (
        seed >= DECISIVE_PAIRS and decided(scores, tuning.baseline)
    ):
        by_candidate = tuning.steps.students(seed + 1, settings["epochs"])
        wanted = {candidate: by_candidate[candidate][seed] for candidate in left}
        steps = with_needs(wanted.values())
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
        for candidate in wanted:
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
    write_report(out, None, out / "report", PLAIN)
    chosen = tuning.steps.students(1, settings["epochs"])[choice.candidate][0]
    text = choice_text(tuning, choice, settings, chosen)
    atomic_write(out / "choice.md", lambda path: path.write_text(text))
    save_figure(choice_figure(choice, tuning.baseline), out / "choice.png")
    write_json(
        out / "choice.json",
        {
            "arm": choice.candidate.arm,
            "source": tuning.arms[choice.candidate.arm].before,
            "temperature": choice.candidate.temperature,
            "lens": chosen.lens,
            "teacher": checkpoint_of(chosen),
            "options": tuning.arms[choice.candidate.arm].options,
            "differences": {str(c): dataclasses.asdict(s) for c, s in choice.differences.items()},
        },
    )
    print(f"\n{text}")


def checkpoint_of(student: Step) -> str:
    """The teacher's checkpoint of ``student``; "" where mdistiller keeps it."""
    found: str = student.settings().BENCH.TEACHER_CHECKPOINT
    return found


def command(tuning: Tuning, candidate: Candidate, chosen: Step) -> str:
    """The command of a full student of ``candidate``, as ``chosen`` is a short one."""
    words = ["djip", "train", "--cfg", tuning.args.cfg, "--djip-lens", chosen.lens]
    if tuning.args.data_root:
        words += ["--data-root", tuning.args.data_root]
    options: dict[str, Any] = dict(tuning.options)
    if checkpoint := checkpoint_of(chosen):
        options["BENCH.TEACHER_CHECKPOINT"] = checkpoint
    options |= tuning.arms[candidate.arm].options
    if tuning.key and candidate.temperature != tuning.baseline.temperature:
        options[tuning.key] = f"{candidate.temperature:g}"
    return shlex.join([*words, *words_of(options)])


def choice_text(tuning: Tuning, choice: Choice, settings: Mapping[str, Any], chosen: Step) -> str:
    """The choice in words and as a Markdown table; ``chosen`` is one of its short students."""
    if choice.gain is None:
        head = "**Choice: nothing. Keep the teacher plain**: no candidate is better beyond noise."
    else:
        head = (
            f"**Choice: {choice.candidate}**, {interval(choice.gain)} points over the plain "
            f"teacher.\n\n    {command(tuning, choice.candidate, chosen)}"
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
