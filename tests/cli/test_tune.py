"""What ``djip tune`` tries by default, and the command that it ends with; nothing is trained."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest

from djip_ext.cli import tune
from djip_ext.cli.main import command_parser
from djip_ext.cli.tune import SOFT, Tuning, choice_text
from djip_ext.errors import Busy, DJIPError
from djip_ext.experiments.arms import Arm
from djip_ext.experiments.cost import Cost
from djip_ext.experiments.plan import Step
from djip_ext.experiments.statistics import Summary
from djip_ext.experiments.tuning import Candidate, Choice
from djip_ext.utils.files import claimed

STUDENT = """
DATASET: {TYPE: synthetic}
DISTILLER: {TYPE: KD, TEACHER: resnet8, STUDENT: resnet8}
SOLVER: {EPOCHS: 50}
"""
MCMI = "DISTILLER: {TYPE: MCMI, TEACHER: resnet8, STUDENT: resnet8}"
ARMS = "both: {teacher: mcmi.yaml, before: 'temperature:2', options: {BENCH.ANSWERS: 'top:3'}}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student's configuration, the file of an arm, and weights that nobody reads."""
    for name, text in (("kd", STUDENT), ("mcmi", MCMI), ("arms", ARMS)):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "teacher.pth").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tuning(*words: str) -> Tuning:
    parser, _ = command_parser("tune")
    teacher = ["BENCH.TEACHER_CHECKPOINT", "teacher.pth"]
    return Tuning(parser.parse_args(["tune", "--cfg", "kd.yaml", *words, *teacher]))


def test_by_default_the_plain_teacher_is_tried_at_a_higher_temperature() -> None:
    pool = tuning("KD.TEMPERATURE", "1").pool
    assert pool[0] == Candidate("plain", 1.0) and pool[-1] == Candidate("plain", SOFT)
    assert [str(candidate) for candidate in pool[1:-1]] == [
        f"{arm} at T = 1" for arm in ("lens", "jpeg", "softer")
    ]


def test_who_names_temperatures_gets_these() -> None:
    assert Candidate("plain", SOFT) not in tuning("--temperatures", "1", "KD.TEMPERATURE", "1").pool
    assert len(tuning("--temperatures", "2,4,8").pool) == 4 * 3  # its own, 4, counts once


def test_a_distiller_that_is_soft_already_is_left_as_it_is() -> None:
    assert {candidate.temperature for candidate in tuning().pool} == {4.0}


def test_a_file_of_arms_replaces_the_default_ones() -> None:
    found = tuning("--arms", "arms.yaml")
    options = {"BENCH.ANSWERS": "top:3"}
    assert found.arms == {
        "plain": Arm(),
        "both": Arm("temperature:2", "mcmi.yaml", "teacher", options),
    }


@pytest.mark.parametrize("source", ["identity", "temperature:1"])
def test_the_plain_teacher_is_no_candidate_beside_itself(folder: Path, source: str) -> None:
    with pytest.raises(DJIPError, match=f"--arm is 'same={source}', the plain teacher"):
        tuning("--arm", f"same={source}")
    (folder / "arms.yaml").write_text(f"{{same: {source}, soft: temperature:2}}")
    assert list(tuning("--arms", "arms.yaml").arms) == ["plain", "soft"]


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that take a second to start; an epoch takes one, a fit a hundred."""

    def estimate(steps: Sequence[Step]) -> list[Cost]:
        students = [step.kind == "student" for step in steps]
        epochs = [step.settings().SOLVER.EPOCHS for step in steps]
        return [
            Cost(seconds=length if student else 100.0)
            for student, length in zip(students, epochs, strict=True)
        ]

    monkeypatch.setattr(tune, "seconds_to_start", lambda cfg: 1.0)
    monkeypatch.setattr(tune, "Estimate", lambda: estimate)


@pytest.mark.usefixtures("priced")
def test_fixed_costs_above_the_budget_name_budgets_that_would_do() -> None:
    with pytest.raises(DJIPError) as refused:
        tuning("--budget", "4").affordable()
    # 2 fits of 101 s, 24 students of 2 s (one epoch) or 6 s (five), against one of 51 s
    assert "4.90 full students of 51 s (lenses 202 s, students 48 s)" in str(refused.value)
    assert "--budget 5.40 for students of one epoch, 7.47 for a tenth" in str(refused.value)
    assert tuning("--budget", "5.40").affordable()["epochs"] >= 1
    assert tuning("--budget", "7.47").affordable()["epochs"] >= 5


@pytest.mark.usefixtures("priced")
def test_the_students_are_the_longest_that_the_budget_allows() -> None:
    found = tuning("--budget", "7").affordable()
    assert found["epochs"] == 5 and found["full"] == 51
    assert found["planned"] == 2 * 101 + 24 * 6 <= found["allowed"] < 2 * 101 + 24 * 7


@pytest.mark.usefixtures("priced")
def test_what_full_students_leave_of_the_budget_buys_more_seeds() -> None:
    found = tuning("--budget", "40").affordable()
    assert found["epochs"] == 50 and found["seeds"] == 9  # six were asked for
    assert found["planned"] == 2 * 101 + 4 * 9 * 51 <= found["allowed"] < 2 * 101 + 4 * 10 * 51
    assert tuning("--budget", "7").affordable()["seeds"] == 6
    assert tuning("--budget", "40", "--seeds", "3").affordable()["seeds"] == 3
    assert tuning("--budget", "100000").affordable()["seeds"] == tune.MOST_SEEDS


@pytest.mark.usefixtures("priced")
def test_a_choice_goes_on_for_its_own_configuration_and_images_alone(folder: Path) -> None:
    images = [[{"sha256": "a"}, {"sha256": "b"}]]
    first = tuning("--budget", "40").settings(images)
    assert tuning("--budget", "40").settings(images) == first
    with pytest.raises(DJIPError, match=r"asked for otherwise \(data\)"):
        tuning("--budget", "40").settings([])
    (folder / "kd.yaml").write_text(f"{STUDENT}\nBENCH: {{DEVICE: 'cuda:3'}}")
    assert tuning("--budget", "40").settings(images) == first
    (folder / "kd.yaml").write_text(f"{STUDENT}\nKD: {{LOSS: {{CE_WEIGHT: 0.5}}}}")
    with pytest.raises(DJIPError, match=r"asked for otherwise \(KD.LOSS.CE_WEIGHT\)"):
        tuning("--budget", "40").settings(images)


@pytest.mark.usefixtures("priced")
def test_a_choice_of_an_older_version_which_kept_less_goes_on(folder: Path) -> None:
    found = tuning("--budget", "40")
    kept = found.settings([])
    for name in ("pair", "config", "data"):
        del kept["asked"][name]
    (found.out / "tune.json").write_text(json.dumps(kept))
    assert tuning("--budget", "40").settings([]) == kept


@pytest.mark.usefixtures("priced")
def test_two_processes_do_not_decide_at_once_how_long_the_students_are() -> None:
    found = tuning("--budget", "40")
    with claimed(found.out / ".tune.lock", "the choice"), pytest.raises(Busy):
        found.settings([])


def test_choices_for_two_distillers_have_folders_of_their_own() -> None:
    assert tuning().out == Path("output/tune/kd")
    assert tuning("DISTILLER.TYPE", "DKD").out == Path("output/tune/dkd_kd")


def test_the_command_has_teacher_lens_options_and_temperature_of_the_choice() -> None:
    words = ["--arms", "arms.yaml", "--temperatures", "2", "--data-root", "my data"]
    found = tuning(*words, "BENCH.FRACTION", "0.5")
    chosen = Candidate("both", 2.0)
    gain = Summary(6, 1.5, 0.5, 0.4)
    step = found.steps.students(1, 5)[chosen][0]
    text = choice_text(found, Choice(chosen, gain, {chosen: gain}), {"epochs": 5}, step)
    (line,) = (line.strip() for line in text.splitlines() if "djip train" in line)
    said = shlex.split(line)
    assert said[:6] == ["djip", "train", "--cfg", "kd.yaml", "--djip-lens", "temperature:2"]
    assert said[6:8] == ["--data-root", "my data"]
    options = dict(zip(said[8::2], said[9::2], strict=True))
    teacher = Path(options.pop("BENCH.TEACHER_CHECKPOINT"))
    assert teacher.parts[:4] == ("output", "tune", "kd", "teachers")
    assert options == {
        "BENCH.FRACTION": "0.5",
        "BENCH.ANSWERS": "top:3",
        "KD.TEMPERATURE": "2",
    }
