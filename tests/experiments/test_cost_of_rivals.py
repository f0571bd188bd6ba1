"""What a dry run says that the rivals cost, before their starts exist."""

from typing import Any

import pytest
import torch

from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.experiments import cost
from djip_ext.experiments.cost import time_fit, time_training


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
    assert time_fit(load_cfg(None, small), data) > 0


def test_the_quickest_of_several_timings_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps on a busy machine took thirty times what they take on a free one."""
    seconds = iter([5.0, 1.0, 3.0])
    monkeypatch.setattr(cost, "_seconds", lambda work: next(seconds))
    assert cost._quickest(lambda: None) == 1.0
