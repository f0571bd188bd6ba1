"""The audit on hand-made records: bar, simultaneous intervals, verdicts, and what it writes."""

import csv
import json
import math
from pathlib import Path

import pytest
import yaml
from test_report import PAIR, record

from djip_ext.cli.main import main
from djip_ext.errors import DJIPError
from djip_ext.experiments import runs
from djip_ext.experiments.audit import Attack, Bar, Victim, attack, audit_of, verdict
from djip_ext.experiments.runs import Pair, collect, read_runs
from djip_ext.experiments.statistics import Summary

# t with P(|X| < t) = 1 - .05 / m for df = 2, from the closed form t = 2 p / sqrt(2 (1 - p^2)) ...
T_2 = {m: math.sqrt(2) * (p := 1 - 0.05 / m) / math.sqrt(1 - p * p) for m in (1, 2, 9)}


def audited(folder: Path, key: str = "last_acc") -> dict[Pair, tuple[Bar, list[Victim]]]:
    return audit_of(read_runs(folder), folder, key)


ONE_SEED = "undecided at n = 1: an interval needs two seeds"


def gains(mean: float, half: float, n: int = 3, name: str = "KD") -> Attack:
    return Attack(name, Summary(n, 20 + mean, 1.0, 1.0), Summary(n, mean, 1.0, half))


@pytest.mark.parametrize(
    ("attacks", "said"),
    [
        ([gains(3, 2), gains(-1, 9, name="AT")], "distillable: KD gains 3.00 ± 2.00 points"),
        ([gains(3, 2), gains(5, 1, name="DKD")], "distillable: DKD gains 5.00 ± 1.00 points"),
        ([gains(-3, 2), gains(-1, 1, name="AT")], "undistillable by these 2 attacks"),
        ([gains(-3, 2), gains(-1, 1.1, name="AT")], "undecided at n = 3"),
        ([gains(1, 1.1)], "undecided at n = 3"),
        ([gains(9, math.nan, n=1), gains(1, 2)], ONE_SEED),
        ([gains(9, math.nan, n=1)], ONE_SEED),
        (
            [gains(-9, math.nan, n=1), gains(-3, 1)],
            ONE_SEED,
        ),
        (
            [gains(9, math.nan, n=1), gains(3, 1, name="AT")],
            "distillable: AT gains 3.00 ± 1.00 points",
        ),
    ],
)
def test_a_verdict_is_no_stronger_than_the_intervals(attacks: list[Attack], said: str) -> None:
    assert verdict(attacks) == said


def test_a_margin_counts_as_nothing() -> None:
    assert verdict([gains(3, 2)], margin=1.0) == "undecided at n = 3"
    assert verdict([gains(-1, 1.5)], margin=0.5) == "undistillable by these 1 attacks"


@pytest.mark.parametrize("attacks", [1, 2, 9])
def test_intervals_widen_with_the_number_of_attacks(attacks: int) -> None:
    bar = Bar("LS", {0: 20.0, 1: 21.0, 2: 22.0, 3: 50.0}, 1)
    found = attack("KD", {0: 22.0, 1: 24.0, 2: 26.0, 7: 0.0}, bar, attacks)
    assert found.gain.n == 3 and found.gain.mean == pytest.approx(3.0)
    assert found.gain.half_width == pytest.approx(T_2[attacks] * 1.0 / math.sqrt(3))
    assert found.accuracy.n == 4


def test_without_a_seed_in_common_nothing_is_compared() -> None:
    with pytest.raises(DJIPError, match="no seed in common"):
        attack("KD", {5: 1.0}, Bar("LS", {0: 1.0}, 1), 1)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two victims, two attacks, two smoothings of which the second is better, three seeds."""
    tree = tmp_path / "runs"
    for seed in range(3):
        record(tree, "KD", "ce", seed, 30 + seed / 10)
        record(tree, "DKD", "ce", seed, 20 + seed)
        record(tree, "KD", "safe", seed, 10 + seed / 10)
        record(tree, "DKD", "safe", seed, 11 + seed / 10)
        for epsilon, accuracy in ((0.1, 18.0), (0.4, 19.0)):
            label(tree, epsilon, seed, accuracy + seed / 10)
    return tree


def label(tree: Path, epsilon: float, seed: int, accuracy: float, pair: Pair = PAIR) -> None:
    """A student from labels alone, as the plan of a table has it."""
    record(tree, "LS", f"labels{epsilon}", seed, accuracy, pair=pair, lens="none")
    folder = next(path for path in tree.rglob(f"seed-{seed}") if f"labels{epsilon}" in str(path))
    result = json.loads((folder / "result.json").read_text())
    config = result["config"].replace(f"labels{epsilon}/djip-none", "labels")
    name = f"NAME: ls_pair,LS.EPSILON={epsilon}"
    lines = [f"  {name}" if "NAME:" in line else line for line in config.splitlines()]
    if not any("NAME:" in line for line in lines):
        lines.insert(lines.index("EXPERIMENT:") + 1, f"  {name}")
    result["config"] = "\n".join(lines)
    (folder / "result.json").write_text(json.dumps(result))


def test_the_bar_is_the_best_smoothing_and_every_attack_is_paired_with_it(tree: Path) -> None:
    ((pair, (bar, victims)),) = audited(tree).items()
    assert (bar.name, bar.tried) == ("LS,LS.EPSILON=0.4", 2)
    assert bar.accuracies == pytest.approx({0: 19.0, 1: 19.1, 2: 19.2})
    ce, safe = victims
    assert [a.name for a in ce.attacks] == ["KD", "DKD"]
    assert ce.attacks[0].gain.mean == pytest.approx(11.0)
    assert ce.verdict.startswith("distillable: KD gains 11.00 ± 0.00")
    assert safe.verdict == "undistillable by these 2 attacks"
    assert safe.accuracy is None and pair.teacher != "none"


def test_the_bar_is_of_the_same_student_and_data_and_of_all_seeds(tree: Path) -> None:
    label(tree, 0.7, 0, 99.0)
    for epsilon, other in (
        (0.8, Pair(PAIR.dataset, PAIR.teacher, "vgg8")),
        (0.9, Pair("imagefolder", PAIR.teacher, PAIR.student)),
    ):
        for seed in range(3):
            label(tree, epsilon, seed, 90.0, other)
    ((_, (bar, _)),) = audited(tree).items()
    assert (bar.name, bar.tried) == ("LS,LS.EPSILON=0.4", 2)


def test_without_a_bar_the_cure_is_named(tmp_path: Path) -> None:
    record(tmp_path, "KD", "ce", 0, 30)
    with pytest.raises(DJIPError, match=r"bar: \{LS.EPSILON"):
        audited(tmp_path)


def test_two_students_of_labels_of_one_row_and_seed_are_refused(tree: Path) -> None:
    label(tree / "other", 0.4, 1, 65.0)
    both = r"labels0\.4\S+seed-1 and \S+other\S+seed-1 are both LS,LS\.EPSILON=0\.4, seed 1"
    with pytest.raises(DJIPError, match=both):
        audited(tree)


def test_a_teacher_that_learned_from_smoothed_labels_is_no_part_of_the_bar(tree: Path) -> None:
    for seed in range(3):
        record(tree, "LS", "teachers", seed, 99.0, lens="none")
    ((_, (bar, _)),) = audited(tree).items()
    assert (bar.name, bar.tried) == ("LS,LS.EPSILON=0.4", 2)


@pytest.mark.parametrize("kept", [False, True])
def test_the_command_writes_what_it_says(
    tree: Path, tmp_path: Path, kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tree
    if kept:
        folder = tmp_path / "kept"
        collect(tree, folder)
    main(["audit", str(folder), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "safe: undistillable by these 2 attacks" in said
    text = (tmp_path / "out/audit.md").read_text()
    assert "**ce** (CMI 0.4000 nats at the T of the lens's fit): distillable: KD gains 11" in text
    assert "best epoch" in text and "the best of 2 smoothings" in text
    with open(tmp_path / "out/audit.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["attack"] for row in rows] == ["KD", "DKD", "DKD", "KD"]
    assert len(list((tmp_path / "out").glob("audit-*.png"))) == 1


@pytest.mark.parametrize("command", ["audit", "report"])
def test_a_command_reads_the_records_once(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    read = []
    real = runs._read_tree

    def counted(root: Path) -> list[runs.Run]:
        read.append(root)
        return real(root)

    monkeypatch.setattr(runs, "_read_tree", counted)
    main([command, str(tree), "--out", str(tmp_path / "out")])
    assert read == [tree]


def test_a_teacher_that_had_a_teacher_is_no_victim(tree: Path) -> None:
    pair = Pair(PAIR.dataset, PAIR.teacher, PAIR.teacher)
    record(tree, "NASTY", "teachers", 0, 77.0, pair=pair)
    assert [*audited(tree)] == [PAIR]


def test_a_bar_of_another_training_is_refused(tree: Path) -> None:
    path = next((tree / "ce").rglob("result.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"epochs": 30}))
    with pytest.raises(DJIPError, match=r"had 30 epochs of 50 images \(feed\), but .* 240 epochs"):
        audited(tree)


def test_a_table_names_attacks_and_victims_in_its_order(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree.parent)
    table = {"configs": "x", "pairs": ["p"], "distillers": ["KD"], "bar": {"LS.EPSILON": [0.1]}}
    table["arms"] = {"safe": "identity", "ce": "identity"}
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    main(["audit", "t.yaml", "--runs", str(tree), "--out", "out"])
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.endswith("safe: undistillable by these 1 attacks")
    assert "ce: distillable: KD gains" in second
    text = Path("out/audit.md").read_text()
    assert "DKD" not in text and "![audit-resnet32x4-resnet8x4.png]" in text
    # the better bar, of 0.4, is not the table's any more
    assert "The bar: LS,LS.EPSILON=0.1, 18.10" in text and "the best of 1 smoothings" in text


def test_a_table_that_names_no_bar_has_none(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tree.parent)
    table = {"configs": "x", "pairs": ["p"], "distillers": ["KD"], "arms": {"ce": "identity"}}
    Path("t.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(SystemExit):
        main(["audit", "t.yaml", "--runs", str(tree), "--out", "out"])
    assert "give the table bar: {LS.EPSILON" in capsys.readouterr().err


def fields(tree: Path, arm: str, **more: object) -> None:
    for path in (tree / arm).rglob("result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_a_victim_has_the_numbers_of_a_lens_of_the_same_network(tree: Path) -> None:
    about = {
        "before": {"cmi": 0.1, "accuracy": 99.0},
        "after": {"cmi": 0.4, "accuracy": 95.0},
        "test_before": {"cmi": 1.0, "accuracy": 51.0},
        "test_after": {"cmi": 1.1, "accuracy": 49.0},
    }
    for seed in range(3):
        record(tree, "KD", "plain", seed, 20.0)
        record(tree, "KD", "other", seed, 20.0, lens="identity")
        record(tree, "KD", "softer", seed, 20.0, lens="temperature-2")
    fields(tree, "ce", about_lens=about, teacher_hash="aa")
    fields(tree, "plain", teacher_hash="aa")
    fields(tree, "other", teacher_hash="bb")
    fields(tree, "softer", teacher_hash="aa", about_lens={})
    ((_, victims),) = audited(tree).values()
    known = {victim.name: (victim.accuracy, victim.cmi) for victim in victims}
    assert known["ce"] == (49.0, 0.4) and known["plain"] == (51.0, 0.1)
    assert known["other"] == known["softer"] == (None, None)


@pytest.mark.parametrize(
    ("kind", "lens", "accuracy"),
    [
        ("CMIM", "identity", 66.0),
        ("CMIM", "0123abcd", None),  # behind a lens nobody measured it
        ("JPEGDL", "0123abcd", 66.0),  # its training measures it behind its lens
        ("JPEGDL", "identity", None),
    ],
)
def test_a_victim_that_the_table_trained_has_the_accuracy_of_that_run(
    tree: Path, kind: str, lens: str, accuracy: float | None
) -> None:
    pair = Pair(PAIR.dataset, PAIR.teacher, PAIR.teacher)
    record(tree, kind, "teachers", 0, 66.0, pair=pair, lens="none")
    folder = next((tree / "teachers").rglob("seed-0"))
    checkpoint = f"output/{folder.relative_to(tree)}/student_last.pth"
    for seed in range(3):
        record(tree, "KD", "own", seed, 20.0, lens=lens)
    for path in (tree / "own").rglob("result.json"):
        result = json.loads(path.read_text()) | {"about_lens": {}}
        config = yaml.safe_load(result["config"])
        config["BENCH"]["TEACHER_CHECKPOINT"] = checkpoint
        path.write_text(json.dumps(result | {"config": yaml.safe_dump(config)}))
    for key in ("last_acc", "best_acc"):  # every attack asks the weights of the last epoch
        ((_, victims),) = audited(tree, key).values()
        assert next(v.accuracy for v in victims if v.name == "own") == accuracy
