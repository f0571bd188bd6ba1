"""fit, train and inspect on an ImageFolder, with networks of several libraries."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.folders import hf_folder, make_folders
from helpers.together import run_together

from djip_ext import load_lens
from djip_ext.bench.engine.run import build_model
from djip_ext.bench.engine.trainer import BaseTrainer
from djip_ext.cli import train_lens
from djip_ext.cli.main import run_command

SOLVER = ["SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "8", "SOLVER.LR", "0.01"]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    make_folders(Path("data"), classes=5)
    return [
        "DATASET.TYPE",
        "imagefolder",
        "DATASET.NUM_WORKERS",
        "1",
        "BENCH.DATA_ROOT",
        "data",
        "BENCH.DEVICE",
        "cpu",
    ]


def test_the_benchmarks_own_networks_go_through_every_command(
    data: list[str], capsys: pytest.CaptureFixture
) -> None:
    small = [*data, "BENCH.INPUT_SIZE", "32", *SOLVER]
    run_command(["train", *small, "DISTILLER.STUDENT", "ResNet18", "EXPERIMENT.NAME", "teacher"])
    pair = ["DISTILLER.TEACHER", "ResNet18", "DISTILLER.STUDENT", "MobileNetV1"]
    pair += ["BENCH.TEACHER_CHECKPOINT", "output/distill/teacher/seed-0/student_last.pth"]
    run_command(
        ["fit", "--out", "a.safetensors", "--rounds", "1", "--batch-size", "8", *small, *pair]
    )
    about = load_lens("a.safetensors").metadata
    assert (about["teacher"], about["dataset"], about["input_size"], about["images"]) == (
        "ResNet18",
        "imagefolder",
        [32, 32],
        20,
    )
    assert about["before"] == about["fit_before"]
    run_command(
        [
            "train",
            *small,
            *pair,
            "DISTILLER.TYPE",
            "AT",
            "--djip-lens",
            "a.safetensors",
            "EXPERIMENT.NAME",
            "s",
            "BENCH.FRACTION",
            "0.5",
        ]
    )
    assert "djip: lens" in capsys.readouterr().out
    run_command(["inspect", "a.safetensors", "--images", "2", *small, *pair])
    assert "n000" in capsys.readouterr().out
    assert {"tables.png", "images.png", "cmi.png", "simplex.png", "summary.json"} <= {
        path.name for path in Path("a-inspect").iterdir()
    }


def test_a_hugging_face_teacher_with_its_own_weights_distils_a_timm_student(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("timm")
    teacher = hf_folder(tmp_path, image_mean=[0.4, 0.5, 0.6])
    pair = [*data, *SOLVER, "DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", "timm:test_resnet"]
    run_command(
        [
            "fit",
            "--out",
            "a.safetensors",
            "--rounds",
            "1",
            "--images",
            "10",
            *pair,
            "BENCH.PRECISION",
            "bfloat16",
        ]
    )
    about = load_lens("a.safetensors").metadata
    assert (about["teacher"], about["input_size"], about["mean"], about["images"]) == (
        teacher,
        [32, 32],
        [0.4, 0.5, 0.6],
        10,
    )
    run_command(
        [
            "train",
            *pair,
            "DISTILLER.TYPE",
            "KD",
            "--djip-lens",
            "a.safetensors",
            "EXPERIMENT.NAME",
            "s",
        ]
    )
    assert "mean (0.4, 0.5, 0.6)" in capsys.readouterr().out
    result = json.loads(next(Path("output").rglob("result.json")).read_text())
    assert result["lens"] != "none" and 0 <= result["last_acc"] <= 100


def test_an_interrupted_student_on_a_folder_resumes_to_the_same_numbers(data: list[str]) -> None:
    class Stop(Exception):
        pass

    def save_one(trainer: BaseTrainer, row: dict) -> None:
        if row["epoch"] == 2:
            raise Stop
        save(trainer, row)

    small = [
        *data,
        "BENCH.INPUT_SIZE",
        "16",
        "DISTILLER.STUDENT",
        "resnet8",
        *SOLVER,
        "SOLVER.EPOCHS",
        "3",
    ]
    run_command(["train", *small, "EXPERIMENT.NAME", "whole"])
    save = BaseTrainer._save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(BaseTrainer, "_save", save_one)
        run_command(["train", *small, "EXPERIMENT.NAME", "broken"])
    run_command(["train", *small, "EXPERIMENT.NAME", "broken", "--resume"])
    whole, resumed = (
        torch.load(f"output/distill/{name}/seed-0/student_last.pth", weights_only=True)["model"]
        for name in ("whole", "broken")
    )
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_finished_fit_is_not_resumed(
    data: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.save({"model": build_model("resnet8", 5).state_dict()}, "teacher.pth")
    command = ["fit", "--out", "a.safetensors", "--rounds", "0", *data, "BENCH.INPUT_SIZE", "16"]
    command += ["DISTILLER.TEACHER", "resnet8", "BENCH.TEACHER_CHECKPOINT", "teacher.pth"]
    run_command(command)
    monkeypatch.setattr(train_lens, "fit_lens", None)
    run_command([*command, "--resume"])
    assert "a.safetensors is finished" in capsys.readouterr().out


def test_two_processes_fit_the_lens_of_one_and_only_the_first_writes_and_prints(
    data: list[str], tmp_path: Path
) -> None:
    torch.save({"model": build_model("resnet8", 5).state_dict()}, "teacher.pth")
    command = [
        "fit",
        "--rounds",
        "1",
        "--batch-size",
        "8",
        "--lr",
        "0.05",
        "--lam",
        "1",
        "--start",
        "magnitude",
        *data,
        "BENCH.INPUT_SIZE",
        "16",
    ]
    command += ["DISTILLER.TEACHER", "resnet8", "BENCH.TEACHER_CHECKPOINT", "teacher.pth"]
    run_command([*command, "--out", "one.safetensors"])
    python = [sys.executable, "-m", "djip_ext", *command, "--out", "two.safetensors"]
    ended = run_together(python, 2)
    assert [process.returncode for process in ended] == [0, 0], ended
    assert "lens" in ended[0].stdout and "fitting the lens" in ended[0].stderr
    assert (ended[1].stdout, ended[1].stderr) == ("", "")
    one, two = load_lens("one.safetensors"), load_lens("two.safetensors")
    alone, shared = (json.loads(Path(f"{n}.json").read_text())["history"] for n in ("one", "two"))
    assert alone[1]["q_high"] != alone[0]["q_high"]  # row 1 is behind tables that were fitted
    for key in ("cmi", "ce", "q_low", "q_high"):
        assert [row[key] for row in shared] == pytest.approx([r[key] for r in alone], rel=1e-3)
    torch.testing.assert_close(two.q, one.q, rtol=1e-3, atol=0)
    assert (two.metadata["processes"], two.metadata["images"], one.metadata["images"]) == (
        2,
        20,
        20,
    )
    for when in ("before", "after", "test_before", "test_after"):
        assert two.metadata[when] == pytest.approx(one.metadata[when], rel=1e-3), when
