"""What a dry run says that commands cost: rivals whose starts do not exist, fits, kept answers."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import run_folder
from djip_ext.cli import train_lens
from djip_ext.experiments import cost
from djip_ext.experiments.cost import (
    Cost,
    Estimate,
    Times,
    data_key,
    fit_passes,
    time_fit,
    time_training,
)
from djip_ext.experiments.plan import Step
from djip_ext.fit.batch import batch_of

SMALL = "DATASET.TYPE synthetic BENCH.DEVICE cpu DISTILLER.TEACHER resnet8"
SMALL += " DISTILLER.STUDENT resnet8 SOLVER.EPOCHS 3"
IMAGES = 40  # of either set


@pytest.mark.parametrize(
    "options, passes",
    [
        (["DISTILLER.TYPE", "MCMI", "BENCH.STUDENT_CHECKPOINT", "not made yet"], 0.0),
        (["DISTILLER.TYPE", "JPEGDL"], 0.0),
        (["DISTILLER.TYPE", "KD", "BENCH.VIEWS", 1], 0.0),
        (["DISTILLER.TYPE", "KD", "BENCH.ADVERSARIAL", "TALD"], 10 * 13 / 16),
        (["DISTILLER.TYPE", "KD", "BENCH.ADVERSARIAL", "TALD", "BENCH.VIEWS", 1], 10 * 13 / 16),
    ],
)
def test_a_run_is_timed_and_its_additional_passes_are_counted(
    options: list[Any], passes: float
) -> None:
    data = make_synthetic(3, 0)
    small = ["DATASET.TYPE", "synthetic", "BENCH.DEVICE", "cpu", "SOLVER.BATCH_SIZE", 16]
    networks = ["DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8"]
    times = time_training(load_cfg(None, [*small, *networks, *options]), data, data)
    assert times.training > 0 and times.adversarial == pytest.approx(passes)


def test_a_fit_on_few_images_of_many_classes_is_timed() -> None:
    """The few images that are timed hold several of a class, whatever the order of the set."""
    labels = torch.arange(200).repeat_interleave(3)[torch.randperm(600)]
    images = torch.randint(256, (600, 32, 32, 3), dtype=torch.uint8)
    data = ImageSet(images, labels, 200, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    small = ["DATASET.TYPE", "synthetic", "BENCH.DEVICE", "cpu", "DISTILLER.TEACHER", "resnet8"]
    assert time_fit(load_cfg(None, small), data, 64) > 0


def test_the_quickest_of_several_timings_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps on a busy machine took thirty times what they take on a free one."""
    seconds = iter([5.0, 1.0, 3.0])
    monkeypatch.setattr(cost, "_seconds", lambda work: next(seconds))
    assert cost._quickest(lambda: None) == 1.0


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Few images, and timings that take no time; what is timed is listed."""
    calls: list[Any] = []

    def training(cfg: Any, train: Any, test: Any) -> Times:
        calls.append("training")
        return Times(1.0, 1.0, 1.0, 0.0)

    def fit(cfg: Any, train: Any, batch: int) -> float:
        calls.append(("fit", batch))
        return 1.0

    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    monkeypatch.setattr(cost, "time_training", training)
    monkeypatch.setattr(cost, "time_fit", fit)
    monkeypatch.setattr(cost, "time_teacher", lambda cfg, train: 1.0)
    return calls


def student(tmp_path: Path, options: str, seed: int = 0) -> Step:
    config = tmp_path / "student.yaml"
    config.touch()
    words = (*f"LOG.PREFIX {tmp_path} EXPERIMENT.NAME x {SMALL}".split(), *options.split())
    return Step("student", "x", str(config), (), words, seed=seed, lens="identity")


def passes(steps: Sequence[Step]) -> list[int]:
    """The passes through the teacher, of each step."""
    return [found.teacher for found in Estimate()(steps)]


VIEWS = "DISTILLER.TYPE KD BENCH.VIEWS 4"
ASKED = 4 * IMAGES


@pytest.mark.parametrize(
    "other, asked",
    [
        ("", 0),
        ("KD.TEMPERATURE 2", 0),
        ("DISTILLER.TEACHER resnet14", ASKED),  # published, too: neither has a checkpoint
        ("BENCH.PRECISION bfloat16", ASKED),
        ("BENCH.ANSWERS top:1", ASKED),
    ],
)
def test_students_share_answers_of_one_teacher_in_one_precision(
    tmp_path: Path, timed: list[Any], other: str, asked: int
) -> None:
    steps = [student(tmp_path, VIEWS), student(tmp_path, f"{VIEWS} {other}", seed=1)]
    assert passes(steps) == [ASKED, asked]


@pytest.mark.parametrize("there", ["begun", "finished"])
def test_answers_that_another_student_has_asked_for_cost_nothing(
    tmp_path: Path, timed: list[Any], monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    steps = [student(tmp_path, VIEWS, seed) for seed in range(3)]
    if there == "begun":
        folder = run_folder(steps[1].cfg())
        folder.mkdir(parents=True)
        (folder / "log.csv").write_text("epoch\n1\n")
        (folder / "latest.pth").touch()
    else:
        monkeypatch.setattr(Step, "result", lambda self: {} if self.seed == 1 else None)
    assert passes(steps) == [0, 0, 0]
    trained = [found.student for found in Estimate()(steps)]
    assert trained == [3 * IMAGES, 2 * IMAGES if there == "begun" else 0, 3 * IMAGES]


def fit(tmp_path: Path, flags: str, options: str = "DISTILLER.TYPE KD") -> Step:
    config = tmp_path / "fit.yaml"
    config.touch()
    makes = str(tmp_path / "lens.safetensors")
    words = ("--out", makes, *shlex.split(flags))
    return Step("lens", "x", str(config), words, (*SMALL.split(), *options.split()), makes=makes)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--images 20 --rounds=30", fit_passes(20, 30) + 2 * (IMAGES + IMAGES + 20)),
        ("--images=20 --cmi-gain 0.1 0.2", fit_passes(20, 10) + 2 * (IMAGES + IMAGES + 20)),
        ("--images 0", fit_passes(IMAGES, 10) + 2 * (IMAGES + IMAGES)),  # the whole set once
        ("", fit_passes(IMAGES, 10) + 2 * (IMAGES + IMAGES)),
        ("--black-box --queries 2000", 2000),
        ("--black-box --images 20 --hard", 30 * 20),
    ],
)
def test_a_fit_costs_what_it_asks_of_the_teacher(
    tmp_path: Path, timed: list[Any], flags: str, expected: int
) -> None:
    assert Estimate()([fit(tmp_path, flags)]) == [Cost(expected, 0, float(expected))]


def test_images_of_a_folder_are_not_measured_as_a_whole() -> None:
    cfg = load_cfg(None, ["DISTILLER.TYPE", "AT"])
    files: Any = SimpleNamespace(labels=torch.zeros(1000))
    assert cost._passes_after_fit(cfg, 100, files, files) == 2 * 1000


@pytest.mark.parametrize("flags, batch", [("", 8), ("--batch-size 3", 3)])
def test_a_fit_is_timed_with_batches_of_its_own_size(
    tmp_path: Path, timed: list[Any], flags: str, batch: int
) -> None:
    Estimate()([fit(tmp_path, flags)])
    assert timed == [("fit", batch)]


def test_the_timed_fit_has_batches_of_that_size(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(cost, "fit_lens", lambda _, loader, *a, **k: seen.append(loader.batch_size))
    time_fit(load_cfg(None, SMALL.split()), make_synthetic(2, 0), 5)
    assert set(seen) == {5}


@pytest.mark.parametrize("images", [5, 320, 321, 500, 2496, 2497, 50_000])
def test_a_price_knows_the_batch_size_of_djip_fit(images: int) -> None:
    flags = argparse.Namespace(batch_size=None, black_box=False)
    assert batch_of(images) == train_lens.batch_size(flags, images)


@pytest.mark.parametrize(
    "first, second, times",
    [
        ("DISTILLER.TYPE KD KD.TEMPERATURE 1", "DISTILLER.TYPE KD KD.TEMPERATURE 4", 1),
        ("DISTILLER.TYPE KD", "DISTILLER.TYPE KD SOLVER.BATCH_SIZE 8", 2),
        ("DISTILLER.TYPE CRD CRD.NCE.K 16", "DISTILLER.TYPE CRD CRD.NCE.K 4096", 2),
        ("DISTILLER.TYPE KD BENCH.ADVERSARIAL TALD", "DISTILLER.TYPE KD", 2),
        (
            "DISTILLER.TYPE KD BENCH.ADVERSARIAL TALD",
            "DISTILLER.TYPE KD BENCH.ADVERSARIAL TALD TALD.IMAGES 2",
            2,
        ),
    ],
)
def test_steps_are_timed_once_for_all_that_take_as_long(
    tmp_path: Path, timed: list[Any], first: str, second: str, times: int
) -> None:
    Estimate()([student(tmp_path, first), student(tmp_path, second, seed=1)])
    assert timed == ["training"] * times


def test_larger_images_are_timed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def read(cfg: Any) -> Any:
        side = cfg.BENCH.INPUT_SIZE
        images = torch.zeros(4, side, side, 3, dtype=torch.uint8)
        data = ImageSet(images, torch.arange(4) % 2, 2, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        return data, data

    def training(cfg: Any, train: Any, test: Any) -> Times:
        sizes.append(train.size)
        return Times(1.0, 1.0, 1.0, 0.0)

    monkeypatch.setattr(cost, "load_run_sets", read)
    monkeypatch.setattr(cost, "time_training", training)
    Estimate()([student(tmp_path, f"BENCH.INPUT_SIZE {side}", side) for side in (16, 24)])
    assert sizes == [(16, 16), (24, 24)]


@pytest.mark.parametrize(
    "other",
    [
        "BENCH.INPUT_SIZE 224",
        "BENCH.MEAN [0.5,0.5,0.5]",
        "BENCH.STD [0.2,0.2,0.2]",
        "BENCH.FRACTION 0.5",
        "BENCH.HOLDOUT 0.2",
    ],
)
def test_other_images_are_other_data(other: str) -> None:
    keys = {data_key(load_cfg(None, words.split())) for words in (SMALL, f"{SMALL} {other}")}
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("flags", "queries"), [("--rounds 0", 2 * 20), ("--black-box --queries 100", 100)]
)
def test_the_queries_of_a_closed_teacher_are_counted(
    flags: str, queries: int, tmp_path: Path
) -> None:
    closed = "DISTILLER.TYPE KD DISTILLER.TEACHER closed:service.py:teacher"
    (priced,) = Estimate()([fit(tmp_path, f"--images 20 {flags}", closed)])
    assert priced.teacher == queries
