"""Optimisers and schedules: AdamW and the cosine beside mdistiller's SGD in steps."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import train
from djip_ext.bench.engine.solver import learning_rate, make_optimizer
from djip_ext.bench.engine.trainer import BaseTrainer
from djip_ext.errors import DJIPError

ADAMW = [
    "SOLVER.TYPE",
    "AdamW",
    "SOLVER.LR",
    0.01,
    "SOLVER.WEIGHT_DECAY",
    0.5,
    "BENCH.SCHEDULE",
    "cosine",
    "BENCH.WARMUP",
    1,
]


def test_the_cosine_rises_evenly_and_falls_towards_zero() -> None:
    cfg = load_cfg(
        None, ["SOLVER.LR", 2.0, "SOLVER.EPOCHS", 8, "BENCH.SCHEDULE", "cosine", "BENCH.WARMUP", 3]
    )
    rates = [learning_rate(cfg, epoch) for epoch in range(1, 9)]
    falling = [1 + math.cos(math.pi * k / 5) for k in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, *falling])


def test_steps_are_mdistillers() -> None:
    cfg = load_cfg(None, ["SOLVER.LR", 1.0, "SOLVER.EPOCHS", 5, "SOLVER.LR_DECAY_STAGES", [2, 4]])
    assert [learning_rate(cfg, epoch) for epoch in range(1, 6)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


def test_adamw_decays_matrices_and_spares_biases_and_norms() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    for p in network.parameters():
        nn.init.ones_(p)
    optimizer = make_optimizer(list(network.parameters()), load_cfg(None, ADAMW))
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(network[0].weight, torch.full((4, 3), 1 - 0.01 * 0.5))
    assert all(bool((p == 1).all()) for p in (network[0].bias, *network[1].parameters()))


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    small = [
        "DATASET.TYPE",
        "synthetic",
        "BENCH.DEVICE",
        "cpu",
        "SOLVER.EPOCHS",
        3,
        "SOLVER.BATCH_SIZE",
        20,
    ]
    return [*small, "DISTILLER.STUDENT", "resnet8", "LOG.PREFIX", str(tmp_path), *ADAMW]


def test_adamw_resumes_to_the_same_student(
    options: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(name: str) -> dict[str, torch.Tensor]:
        return torch.load(
            tmp_path / "distill" / name / "seed-0" / "student_last.pth", weights_only=True
        )["model"]

    train(load_cfg(None, [*options, "EXPERIMENT.NAME", "whole"]))
    whole = BaseTrainer.train_epoch

    def dies(self: BaseTrainer, epoch: int) -> dict[str, float]:
        if epoch == 3:
            raise KeyboardInterrupt
        return whole(self, epoch)

    cfg = load_cfg(None, [*options, "EXPERIMENT.NAME", "halved"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BaseTrainer, "train_epoch", dies)
        train(cfg)
    train(cfg, resume=True)
    first, second = weights("whole"), weights("halved")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "change, names",
    [
        (["SOLVER.TYPE", "Lion"], "SOLVER.TYPE is 'Lion'; choose SGD or AdamW"),
        (["BENCH.SCHEDULE", "linear"], "BENCH.SCHEDULE is 'linear'"),
        (["BENCH.WARMUP", 3], "below SOLVER.EPOCHS, 3"),
    ],
)
def test_what_it_does_not_know_is_refused_before_anything_is_trained(
    change: list, names: str, options: list, tmp_path: Path
) -> None:
    with pytest.raises(DJIPError, match=names):
        train(load_cfg(None, [*options, *change]))
    assert not list(tmp_path.rglob("log.csv"))
