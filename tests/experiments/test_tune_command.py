"""``djip tune`` as real processes: what it says, leaves, refuses, and ends with after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import small_service

from djip_ext.cli.main import main

ROOT = Path(__file__).parents[2]
SMALL = Path(__file__).with_name("small_djip.py")
CONFIG = ROOT / "configs" / "cifar100" / "fewshot" / "kd_wrn_16_2_resnet8.yaml"
TEACHER = "teachers/resnet8/seed-0/student_last.pth"
OPTIONS = ["DATASET.TYPE", "synthetic", "BENCH.DEVICE", "cpu", "DISTILLER.TEACHER", "resnet8"]
OPTIONS += ["SOLVER.BATCH_SIZE", "20", "SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[1]"]
FLAGS = ["--cfg", str(CONFIG), "--out", "choice", "--holdout", "0.5", "--seeds", "3"]
FLAGS += ["--arm", "jpeg=jpeg:60", "--arms", "../arms.yaml"]
ARMS = "{plain: identity, soft: temperature:2, mcmi: {teacher: ../mcmi.yaml}}"
MCMI = """
DISTILLER: {TYPE: MCMI, TEACHER: resnet8, STUDENT: resnet8}
SOLVER: {EPOCHS: 3, BATCH_SIZE: 20, LR: 0.01}
"""


def djip(folder: Path, *words: str, on: str = "") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PER_CLASS": "4"}
    environment |= {"ON": on, "HOW": "kill"} if on else {}
    return subprocess.run(
        [sys.executable, str(SMALL), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        start_new_session=True,
    )


def tune(folder: Path, *words: str, on: str = "") -> "subprocess.CompletedProcess[str]":
    options = [*OPTIONS, "BENCH.TEACHER_CHECKPOINT", str(folder.parent / "teacher" / TEACHER)]
    return djip(folder, "tune", *FLAGS, *words, *options, on=on)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder beside a teacher."""
    home = tmp_path_factory.mktemp("tune")
    (home / "teacher").mkdir()
    names = ["EXPERIMENT.PROJECT", "teachers", "EXPERIMENT.NAME", "resnet8", "LOG.PREFIX", "."]
    config = str(ROOT / "configs" / "cifar100" / "vanilla" / "resnet8.yaml")
    done = djip(home / "teacher", "train", "--cfg", config, "--seed", "0", *OPTIONS, *names)
    assert (home / "teacher" / TEACHER).exists(), done.stderr
    (home / "arms.yaml").write_text(ARMS)
    (home / "mcmi.yaml").write_text(MCMI)
    return home


@pytest.fixture(scope="module")
def whole(home: Path) -> "subprocess.CompletedProcess[str]":
    (home / "whole").mkdir()
    return tune(home / "whole", "--budget", "1000")


def choice(folder: Path) -> dict:
    return json.loads((folder / "choice" / "choice.json").read_text())


def test_it_says_what_it_will_cost_and_leaves_choice_table_and_picture(
    whole: "subprocess.CompletedProcess[str]", home: Path
) -> None:
    assert whole.returncode == 0, whole.stderr
    first = whole.stdout.index("% of one full student")
    assert "4 candidates, students of 2 epochs" in whole.stdout
    assert "(teachers " in whole.stdout and "lenses" in whole.stdout
    assert first < whole.stdout.index("seed 0")
    found = choice(home / "whole")
    assert set(found["differences"]) == {f"{arm} at T = 4" for arm in ("jpeg", "soft", "mcmi")}
    assert found["arm"] in ("plain", "jpeg", "soft", "mcmi") and found["temperature"] == 4.0
    text = (home / "whole" / "choice" / "choice.md").read_text()
    assert "| soft at T = 4 | 3 |" in text and "held" not in text
    assert (home / "whole" / "choice" / "choice.png").stat().st_size > 1000


def test_the_teacher_of_an_arm_was_trained_without_the_held_out_images(
    whole: "subprocess.CompletedProcess[str]", home: Path
) -> None:
    (teacher,) = (home / "whole" / "choice" / "teachers").rglob("result.json")
    students = [path for path in (home / "whole").rglob("result.json") if path != teacher]
    assert len(students) == 4 * 3
    made = json.loads(teacher.read_text())
    assert made["epochs"] == 3
    for path in students:
        assert json.loads(path.read_text())["data"] == made["data"]


def test_killed_on_the_way_it_ends_with_the_same_choice(
    whole: "subprocess.CompletedProcess[str]", home: Path
) -> None:
    (home / "killed").mkdir()
    killed = tune(home / "killed", "--budget", "1000", on="jpeg/*/latest.pth")
    assert killed.returncode < 0
    again = tune(home / "killed", "--budget", "1000")
    assert again.returncode == 0, again.stderr
    assert "going on with the choice" in again.stdout
    assert choice(home / "killed") == choice(home / "whole")


def test_other_flags_do_not_go_on_with_a_choice(
    whole: "subprocess.CompletedProcess[str]", home: Path
) -> None:
    other = tune(home / "whole", "--budget", "999")
    assert other.returncode == 2 and "asked for otherwise (budget)" in other.stderr


def test_a_budget_that_is_too_small_names_one_that_is_not(home: Path) -> None:
    (home / "poor").mkdir()
    poor = tune(home / "poor", "--budget", "0.001")
    assert poor.returncode == 2 and "give --budget" in poor.stderr
    assert not (home / "poor" / "choice" / "tune.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arm", "plain=identity"], "none called plain"),
        (["--arm", "lens"], "NAME=SOURCE"),
        (["--arm", "lens=fit --rond 3"], "unrecognized arguments: --rond"),
        (["--arm", "lens=fit --out x.safetensors"], "cannot have --out"),
        (["--seeds", "2"], "at least 3"),
        (["--temperatures", "1,x"], "'1,x' is no list of positive numbers"),
        (["BENCH.HOLDOUT", "0.1"], "BENCH.HOLDOUT is set by djip tune itself"),
        (["BENCH.TEACHER_CHECKPOINT", "none.pth"], "none.pth, which does not exist"),
        (["--temperatures", "1", "DISTILLER.TYPE", "AT"], "AT has no temperature"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    (tmp_path / "arms.yaml").write_text(ARMS)
    (tmp_path / "refused").mkdir()
    monkeypatch.chdir(tmp_path / "refused")
    with pytest.raises(SystemExit) as stop:
        main(["tune", *FLAGS, *words, *OPTIONS])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_closed_teacher_is_asked_as_often_as_was_said(tmp_path: Path) -> None:
    small_service.write_service(tmp_path, 20)
    options = [*OPTIONS, "DISTILLER.TEACHER", small_service.TEACHER]
    words = ["tune", *FLAGS[:-4], "--budget", "1000", *options]
    for more, reason in (
        ([], "give BENCH.VIEWS K"),
        (
            ["BENCH.VIEWS", "2", "--arm", "lens=fit"],
            f"arm lens: {small_service.TEACHER}",
        ),
    ):
        refused = djip(tmp_path, *words, *more)
        assert refused.returncode == 2 and reason in refused.stderr
    assert small_service.images_asked(tmp_path) == 0
    done = djip(tmp_path, *words, "BENCH.VIEWS", "2")
    assert done.returncode == 0, done.stderr
    asked = small_service.images_asked(tmp_path)
    assert f"at most {asked:,} queries of the closed teacher" in done.stdout.partition("seed 0")[0]
    assert set(choice(tmp_path)["differences"]) == {"jpeg at T = 4", "softer at T = 4"}
