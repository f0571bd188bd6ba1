"""``djip fit --black-box`` and students of a closed teacher, with its answers paid for once."""

from pathlib import Path

import pytest
import torch
from helpers.small_service import TEACHER, images_asked, write_service

from djip_ext import load_lens
from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.cli.main import main, run_command
from djip_ext.lens.initial_tables import standard_jpeg

IMAGES = 40
TINY = ["DATASET.TYPE", "synthetic", "SOLVER.EPOCHS", "2", "SOLVER.BATCH_SIZE", "20"]
TINY += ["DISTILLER.STUDENT", "resnet8"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    monkeypatch.chdir(tmp_path)
    classes = make_synthetic(2, 0).num_classes
    write_service(tmp_path, classes)


def asked() -> int:
    return images_asked(Path())


def refused(capsys: pytest.CaptureFixture, *command: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


FIT = ["fit", "--out", "lens.safetensors", *TINY, "DISTILLER.TEACHER", TEACHER]


def test_a_closed_teacher_is_fitted_within_its_budget_and_distilled(
    capsys: pytest.CaptureFixture,
) -> None:
    run_command([*FIT, "--black-box", "--queries", str(6 * IMAGES + 5), "--hard"])
    text = capsys.readouterr().out
    lens = load_lens("lens.safetensors")
    assert asked() == lens.metadata["queries"] <= 6 * IMAGES
    assert lens.hard and lens.metadata["fit"]["gradients"] is False
    assert f"{asked()} queries" in text and "test set" not in text
    Path("asked.txt").unlink()
    train = ["train", "--djip-lens", "lens.safetensors", *TINY, "DISTILLER.TYPE", "KD"]
    train += ["DISTILLER.TEACHER", TEACHER, "BENCH.VIEWS", "2"]
    run_command(train)
    assert f"2 views of {IMAGES} images, {2 * IMAGES} queries" in capsys.readouterr().out
    assert asked() == 2 * IMAGES
    run_command([*train, "BENCH.SEED", "1"])  # another student, the same answers
    assert asked() == 2 * IMAGES


def test_tables_are_measured_on_the_images_of_a_fit_alone(capsys: pytest.CaptureFixture) -> None:
    run_command([*FIT, "--start", "jpeg:60", "--rounds", "0"])
    lens = load_lens("lens.safetensors")
    assert asked() == 2 * IMAGES and torch.equal(lens.q, standard_jpeg(60))
    assert "test set" not in capsys.readouterr().out


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture) -> None:
    assert "has no gradient" in refused(capsys, *FIT)
    assert "add it" in refused(capsys, *FIT, "--queries", "100")
    assert asked() == 0
    assert "the budget is 50" in refused(capsys, *FIT, "--black-box", "--queries", "50")
    command = [*FIT, "--black-box", "DISTILLER.TEACHER"]
    assert "names no file" in refused(capsys, *command, "closed:missing.py:x")
    assert "has no attribute 'x'" in refused(capsys, *command, "closed:service.py:x")
    assert "is function" in refused(capsys, *command, "closed:service.py:ask")
    Path("service.py").write_text("raise RuntimeError('no network')")
    assert "no network" in refused(capsys, *command, TEACHER)
    assert torch.is_grad_enabled()
