"""Can a model be distilled?  Victims x attacks x seeds against the best student of labels alone.

A *victim* is an arm of a table of results, an *attack* one of its rows: a knockoff student of a
distiller, with the values of the table's axes.  The *bar* are students that learn from smoothed
labels (``DISTILLER.TYPE LS``): the epsilon with the best mean over the seeds, of those that were
trained.  Choosing it by the test accuracies that it is then compared with favours the bar, hence
the victim's defence.

An attack succeeds when the student's accuracy exceeds the bar's; differences are paired by seed.
With m attacks on a victim every interval has a confidence of 1 - 0.05 / m (Bonferroni), so that all
of them hold together with 95 %.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from djip_ext.errors import DJIPError
from djip_ext.experiments.arm_costs import trained_here
from djip_ext.experiments.axes import split
from djip_ext.experiments.records import Cells, Result, in_order, results_of
from djip_ext.experiments.report import markdown_table
from djip_ext.experiments.runs import TEACHERS, Pair, Run
from djip_ext.experiments.statistics import Summary, summarise, widened
from djip_ext.experiments.table import BAR, Table

Accuracies = Mapping[int, float]
"""Seed -> accuracy on the test images, in %."""


@dataclass(frozen=True)
class Bar:
    """The students from labels alone that every attack has to beat.

    Attributes:
        name: the row, with its epsilon.
        accuracies: of its students, by seed.
        tried: how many values of epsilon it is the best of.
    """

    name: str
    accuracies: Accuracies
    tried: int


@dataclass(frozen=True)
class Attack:
    """An attack on a victim.

    Attributes:
        name: the distiller, with the values of the table's axes.
        accuracy: of its students, in %.
        gain: the difference to the bar in points, paired by seed; ``half_width`` is that of an
            interval that holds for all attacks on the victim at once.
    """

    name: str
    accuracy: Summary
    gain: Summary

    @property
    def low(self) -> float:
        """The lower end of the interval of the gain."""
        return self.gain.mean - self.gain.half_width

    @property
    def high(self) -> float:
        """The upper end of the interval of the gain."""
        return self.gain.mean + self.gain.half_width


@dataclass(frozen=True)
class Victim:
    """A victim and its verdict.

    Attributes:
        name: the arm.
        attacks: the strongest first.
        verdict: one line, no stronger than the intervals allow.
        accuracy: of the victim itself on the test images in %, behind its lens; None where no
            record says.
        cmi: of the victim's answers before ``BENCH.ANSWERS`` perturbs them, in nats on training
            images, as the fit of its lens, or of another one of the same network, measured it: at
            the temperature of that fit; None where no record says.
    """

    name: str
    attacks: tuple[Attack, ...]
    verdict: str
    accuracy: float | None
    cmi: float | None


def from_labels(runs: Sequence[Run], pair: Pair, table: Table | None = None) -> list[Run]:
    """The students from labels alone of that data set and network among ``runs``.

    Teachers that a table trained, which may have learned from smoothed labels, are none of them.

    Args:
        table: restricts them to the values of its ``bar``.
    """
    own = Pair(pair.dataset, "none", pair.student)
    found = [run for run in runs if split(run.row)[0] == BAR and run.pair == own]
    found = [run for run in found if run.project != TEACHERS]
    return found if table is None else [run for run in found if run.row in table.bar_rows]


def best_bar(labels: Sequence[Run], pair: Pair, key: str) -> Bar:
    """The smoothing whose students are best on average.

    Args:
        labels: of :func:`from_labels`.
        key: ``last_acc`` or ``best_acc`` of a result.

    Raises:
        DJIPError: no student from labels alone was trained, or two are of one row and seed.
    """
    rows: dict[str, dict[int, Run]] = {}
    for run in labels:
        other = rows.setdefault(run.row, {}).setdefault(run.seed, run)
        if other is not run:
            raise DJIPError(
                f"{other.where} and {run.where} are both {run.row}, seed {run.seed}; "
                "audit a folder that holds one of them"
            )
    if not rows:
        raise DJIPError(
            f"there is no student of {pair.student} from labels alone, which the attacks have to "
            "beat; give the table bar: {LS.EPSILON: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]} "
            "(docs/undistillable.md)"
        )
    most = max(map(len, rows.values()))
    whole = {
        name: {seed: run.result[key] for seed, run in seeds.items()}
        for name, seeds in rows.items()
        if len(seeds) == most
    }
    best = max(whole, key=lambda name: summarise(list(whole[name].values())).mean)
    return Bar(best, whole[best], len(whole))


def attack(name: str, accuracies: Accuracies, bar: Bar, attacks: int) -> Attack:
    """Compare the students of one of so many ``attacks`` on a victim with the bar.

    Raises:
        DJIPError: they have no seed in common.
    """
    seeds = sorted(accuracies.keys() & bar.accuracies.keys())
    if not seeds:
        raise DJIPError(f"{name} and {bar.name} have no seed in common; train both with the same")
    paired = [accuracies[seed] - bar.accuracies[seed] for seed in seeds]
    whole = summarise(list(accuracies.values()))
    return Attack(name, whole, widened(summarise(paired), attacks))


def verdict(attacks: Sequence[Attack], margin: float = 0.0) -> str:
    """What the intervals allow to say of a victim.

    Args:
        margin: points above the bar that count as nothing.
    """
    n = min(attack.gain.n for attack in attacks)
    measured = [attack for attack in attacks if attack.gain.n > 1]
    beyond = max(measured, key=lambda attack: attack.low, default=None)
    if beyond is not None and beyond.low > margin:
        gain = beyond.gain
        return f"distillable: {beyond.name} gains {gain.mean:.2f} ± {gain.half_width:.2f} points"
    if n < 2:
        return f"undecided at n = {n}: an interval needs two seeds"
    if all(attack.high <= margin for attack in attacks):
        return f"undistillable by these {len(attacks)} attacks"
    return f"undecided at n = {n}"


def audit_of(
    runs: Sequence[Run],
    folder: str | Path,
    key: str = "last_acc",
    margin: float = 0.0,
    table: Table | None = None,
) -> dict[Pair, tuple[Bar, list[Victim]]]:
    """Every victim, by pair of networks, from finished ``runs``.

    Args:
        folder: where they were read, for messages.
        key: ``last_acc`` or ``best_acc`` of a result.
        margin: points above the bar that count as nothing.
        table: restricts the audit to its attacks, victims and bar, in their order.

    Raises:
        DJIPError: no finished knockoff student, no bar or one of another training, or two runs of
            one row and seed.
    """
    results = results_of(runs, folder)
    if table is not None:
        results = in_order(results, table.distillers, list(table.arms))
    found = {}
    for pair, cells in results.items():
        labels = from_labels(runs, pair, table)
        bar = best_bar(labels, pair, key)
        _check_training(cells, labels, bar)
        arms = dict.fromkeys(arm for row in cells.values() for arm in row)
        if table is not None:
            arms = {arm: None for arm in table.arms if arm in arms}
        found[pair] = bar, [_victim(arm, cells, runs, bar, key, margin) for arm in arms]
    return found


def _check_training(cells: Cells, students: Sequence[Run], bar: Bar) -> None:
    """Raise DJIPError when the students of the bar had other epochs or images than a knockoff."""
    labels = next(run.result for run in students if run.row == bar.name)
    for arms in cells.values():
        for seeds in arms.values():
            for result in seeds.values():
                if _training(result) != _training(labels):
                    raise DJIPError(
                        f"{result['where']} had {_training(result)}, but the students from labels "
                        f"alone {_training(labels)}; train both alike"
                    )


def _training(result: Mapping[str, Any]) -> str:
    """Epochs and images of a run, in words."""
    train = (result.get("data") or {}).get("train", {})
    images = f"{train.get('images', 'unknown')} images ({train.get('sha256', 'unknown')})"
    return f"{result['epochs']} epochs of {images}"


def _victim(
    arm: str, cells: Cells, runs: Sequence[Run], bar: Bar, key: str, margin: float
) -> Victim:
    rows = {row: arms[arm] for row, arms in cells.items() if arm in arms}
    attacks = [
        attack(row, {seed: result[key] for seed, result in seeds.items()}, bar, len(rows))
        for row, seeds in rows.items()
    ]
    attacks.sort(key=lambda attack: -attack.gain.mean)
    own = [result for seeds in rows.values() for result in seeds.values()]
    everyone = [result for arms in cells.values() for c in arms.values() for result in c.values()]
    accuracy, cmi = _measured(own, everyone)
    if accuracy is None:
        accuracy = _trained_accuracy(arm, runs)
    return Victim(arm, tuple(attacks), verdict(attacks, margin), accuracy, cmi)


def _measured(
    own: Sequence[Result], everyone: Sequence[Result]
) -> tuple[float | None, float | None]:
    """Test accuracy and CMI of a victim, as the fit of a lens measured them.

    Without a lens of its own they are those that any lens of the same network had before it.
    """
    lens = own[0]["lens"]
    if lens == "identity":
        known = {result.get("teacher_hash") for result in own} - {None}
        others = [r for r in everyone if r.get("teacher_hash") in known]
        when = "before"
    else:
        others = list(own)
        when = "after"
    for result in others:
        about = result.get("about_lens") or {}
        if when in about:
            return about.get(f"test_{when}", {}).get("accuracy"), about[when]["cmi"]
    return None, None


def _trained_accuracy(arm: str, runs: Sequence[Run]) -> float | None:
    """The accuracy of the victim, where one of ``runs`` trained it as it is attacked.

    That of its last epoch, whose weights every attack asks.
    """
    for run in runs:
        trained = trained_here(run, runs) if run.project == arm else None
        if trained is not None:
            plain = run.lens == "identity" or run.lens.startswith("temperature-")
            with_its_lens = trained.config["DISTILLER"]["TYPE"] == "JPEGDL"
            return float(trained.result["last_acc"]) if plain != with_its_lens else None
    return None


def audit_rows(audit: Mapping[Pair, tuple[Bar, Sequence[Victim]]]) -> list[dict[str, Any]]:
    """A row per pair, victim and attack; accuracies in %, gains in points."""
    return [
        {
            **vars(pair),
            "victim": victim.name,
            "victim_acc": "" if victim.accuracy is None else victim.accuracy,
            "victim_cmi": "" if victim.cmi is None else victim.cmi,
            "attack": attack.name,
            "n": attack.accuracy.n,
            "acc": attack.accuracy.mean,
            "acc_sd": attack.accuracy.spread,
            "bar": bar.name,
            "bar_acc": summarise(list(bar.accuracies.values())).mean,
            "gain": attack.gain.mean,
            "gain_half_width": attack.gain.half_width,
            "pairs": attack.gain.n,
            "verdict": victim.verdict,
        }
        for pair, (bar, victims) in audit.items()
        for victim in victims
        for attack in victim.attacks
    ]


def audit_text(
    audits: Mapping[str, Mapping[Pair, tuple[Bar, Sequence[Victim]]]], pictures: Sequence[str] = ()
) -> str:
    """The audit as Markdown.

    Args:
        audits: title, "last epoch" say, -> :func:`audit_of` at that epoch.
        pictures: file names beside it.
    """
    parts = ["# Can it be distilled?"]
    for title, audit in audits.items():
        for pair, (bar, victims) in audit.items():
            whole = summarise(list(bar.accuracies.values()))
            parts.append(f"## {pair}, {title}")
            parts.append(
                f"The bar: {bar.name}, {_plus_minus(whole.mean, whole.spread)} %, n = {whole.n}, "
                f"the best of {bar.tried} smoothings of the labels."
            )
            for victim in victims:
                own = _own_numbers(victim)
                lines = [["attack", "n", "accuracy (%)", "over the bar (points)"]]
                lines += [
                    [
                        attack.name,
                        str(attack.accuracy.n),
                        _plus_minus(attack.accuracy.mean, attack.accuracy.spread),
                        _plus_minus(attack.gain.mean, attack.gain.half_width, "+"),
                    ]
                    for attack in victim.attacks
                ]
                parts += [f"**{victim.name}**{own}: {victim.verdict}.", markdown_table(lines)]
    parts.append(
        "Accuracy: mean ± standard deviation over seeds. Over the bar: paired by seed, ± half of "
        "an interval that holds for all attacks on the victim together with 95 % (Bonferroni)."
    )
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _own_numbers(victim: Victim) -> str:
    numbers = []
    if victim.accuracy is not None:
        numbers.append(f"{victim.accuracy:.2f} % itself")
    if victim.cmi is not None:
        numbers.append(f"CMI {victim.cmi:.4f} nats at the T of the lens's fit")
    return f" ({', '.join(numbers)})" if numbers else ""


def _plus_minus(value: float, spread: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}" + ("" if spread != spread else f" ± {spread:.2f}")  # nan at n = 1
