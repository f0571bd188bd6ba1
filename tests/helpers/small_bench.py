"""Runs of the embedded benchmark that take a second: forty images and untrained teachers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import build_model, train
from djip_ext.bench.engine.trainer import BaseTrainer


def small_options(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Options of a run: three epochs on forty images of twenty classes, random weights to load."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    weights = folder / "teacher.safetensors"
    save_file(build_model("resnet8", 20).state_dict(), weights)
    return [
        *("DATASET.TYPE", "synthetic", "BENCH.DEVICE", "cpu", "LOG.PREFIX", str(folder)),
        *("SOLVER.EPOCHS", 3, "SOLVER.BATCH_SIZE", 20, "SOLVER.LR", 0.01),
        *("DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8"),
        *("BENCH.TEACHER_CHECKPOINT", str(weights)),
    ]


def run(options: list[Any], name: str, resume: bool = False) -> dict[str, Any]:
    """The result of a run in the folder ``name``."""
    return train(load_cfg(None, [*options, "EXPERIMENT.NAME", name]), resume)


def state_of(result: dict[str, Any]) -> dict[str, Any]:
    """All that the run of ``result`` would resume from."""
    path = Path(result["folder"]) / "latest.pth"
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def assert_resumes_bit_for_bit(options: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare a run with one that breaks off in its last epoch and is taken up again."""
    whole = run(options, "whole")
    real = BaseTrainer.train_epoch

    def broken_off(self: BaseTrainer, epoch: int) -> dict[str, float]:
        if epoch == 3:
            raise KeyboardInterrupt
        return real(self, epoch)

    with monkeypatch.context() as broken:
        broken.setattr(BaseTrainer, "train_epoch", broken_off)
        with pytest.raises(KeyboardInterrupt):
            run(options, "resumed")
    resumed = run(options, "resumed", resume=True)
    first = flat(state_of(whole)["model"])
    second = flat(state_of(resumed)["model"])
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if torch.is_tensor(value) else value == second[name]
        assert same, name
    timed = {"folder", "seconds", "config"}
    assert {key: value for key, value in whole.items() if key not in timed} == {
        key: value for key, value in resumed.items() if key not in timed
    }


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries and lists by their path."""
    if isinstance(tree, dict):
        parts = tree.items()
    elif isinstance(tree, list | tuple):
        parts = enumerate(tree)
    else:
        return {prefix: tree}
    return {
        name: leaf for key, value in parts for name, leaf in flat(value, f"{prefix}/{key}").items()
    }
