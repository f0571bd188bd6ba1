"""Every method through its own trainer: a run, an interruption, the same numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.distillers import distiller_dict
from djip_ext.bench.distillers.ft import FT
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import train
from djip_ext.bench.engine.trainer import BaseTrainer, CRDTrainer
from djip_ext.bench.models import cifar_model_dict
from djip_ext.errors import DJIPError

SMALL = [
    "DATASET.TYPE",
    "synthetic",
    "BENCH.DEVICE",
    "cpu",
    "SOLVER.EPOCHS",
    2,
    "BENCH.EVAL_EVERY",
    2,
    "DISTILLER.TEACHER",
    "resnet8",
]
SMALL += [
    "DISTILLER.STUDENT",
    "resnet8",
    "SOLVER.BATCH_SIZE",
    20,
    "SOLVER.LR",
    0.01,
    "FT.PRETRAIN.EPOCHS",
    1,
]
SMALL += ["CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 16]


class Interrupted(Exception):
    pass


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Two epochs on forty images, with a teacher of random weights."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    teacher = tmp_path / "teacher.pth"
    torch.save({"model": cifar_model_dict["resnet8"][0](num_classes=20).state_dict()}, teacher)
    return [*SMALL, "BENCH.TEACHER_CHECKPOINT", str(teacher), "LOG.PREFIX", str(tmp_path)]


def settings(options: list, kind: str, name: str):
    teacher = options[options.index("BENCH.TEACHER_CHECKPOINT") + 1]
    start = ["BENCH.STUDENT_CHECKPOINT", teacher] if kind == "MCMI" else []  # it only fine-tunes
    return load_cfg(
        None,
        [
            *options,
            *start,
            "DISTILLER.TYPE",
            kind,
            "SOLVER.TRAINER",
            "crd" if kind == "CRD" else "base",
            "EXPERIMENT.PROJECT",
            name,
        ],
    )


def weights(result: dict) -> dict[str, Tensor]:
    return torch.load(Path(result["folder"]) / "student_last.pth", weights_only=True)["model"]


@pytest.mark.parametrize("kind", distiller_dict)
def test_an_interrupted_run_resumes_to_the_same_student(
    kind: str, options: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(train(settings(options, kind, "whole")))

    train_epoch = BaseTrainer.train_epoch

    def stop_at_two(self: BaseTrainer, epoch: int) -> dict[str, float]:
        if epoch == 2:
            raise Interrupted
        return train_epoch(self, epoch)

    parts = settings(options, kind, "parts")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(BaseTrainer, "train_epoch", stop_at_two)
        train(parts)
    resumed = weights(train(parts, resume=True))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_ft_pretrains_once_and_not_again_on_resume(
    options: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    pretrain = FT.pretrain
    monkeypatch.setattr(
        FT, "pretrain", lambda self, *args: calls.append(1) or pretrain(self, *args)
    )
    cfg = settings(options, "FT", "ft")
    train(cfg)
    train(cfg, resume=True)
    assert len(calls) == 1


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_ft_interrupted_while_pretraining_resumes_to_the_same_student(
    stop: int, options: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*options, "FT.PRETRAIN.EPOCHS", 3]
    whole = train(settings(options, "FT", "whole"))
    error, calls = FT._reconstruction_error, []

    def stop_within(self: FT, image: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 2 * stop:  # the second and last step of epoch `stop`
            raise Interrupted
        return error(self, image)

    parts = settings(options, "FT", "parts")
    written = (Path(whole["folder"]) / "pretrain.csv").read_text()
    assert len(written.splitlines()) == 1 + 3
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(FT, "_reconstruction_error", stop_within)
        train(parts)
    resumed = train(parts, resume=True)
    assert (Path(resumed["folder"]) / "pretrain.csv").read_text() == written
    last, again = weights(whole), weights(resumed)
    assert all(torch.equal(last[key], again[key]) for key in last)


def contrast(mode: str, k: int, epoch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, indices and contrastive indices of the first batch of an epoch.

    There are thirty images of three classes.
    """
    labels = torch.arange(3).repeat_interleave(10)
    data = ImageSet(torch.zeros(30, 8, 8, 3, dtype=torch.uint8), labels, 3, (0.5,) * 3, (0.25,) * 3)
    cfg = load_cfg(
        None, ["CRD.MODE", mode, "CRD.NCE.K", k, "SOLVER.TRAINER", "crd", "BENCH.EVAL_EVERY", 999]
    )
    student = torch.nn.Linear(1, 1)
    student.get_learnable_parameters = student.parameters  # type: ignore[assignment]
    trainer = CRDTrainer(
        Path(), student, DeviceLoader(data, 8, augment=True), DeviceLoader(data, 8), cfg
    )
    seen = []
    trainer.train_step = lambda batch, epoch: (
        seen.append(trainer.distiller_input(batch, epoch))
        or (torch.zeros(len(batch[1]), 3), torch.zeros(()))
    )
    trainer.train_epoch(epoch)
    return labels, seen[0]["index"], seen[0]["contrastive_index"]


@pytest.mark.parametrize("k", [20, 50])
def test_negatives_are_of_other_classes_and_differ_while_there_are_enough(k: int) -> None:
    labels, index, contrastive = contrast("exact", k)
    assert torch.equal(contrastive[:, 0], index)
    assert (labels[contrastive[:, 1:]] != labels[index][:, None]).all()
    assert all(len(row.unique()) == k for row in contrastive[:, 1:]) == (k == 20)


def test_relaxed_positives_are_of_the_same_class() -> None:
    labels, index, contrastive = contrast("relax", 4)
    assert (labels[contrastive[:, 0]] == labels[index]).all()
    assert not torch.equal(contrastive[:, 0], index)


def test_negatives_depend_on_the_epoch_alone() -> None:
    assert torch.equal(contrast("exact", 5)[2], contrast("exact", 5)[2])
    assert not torch.equal(contrast("exact", 5, epoch=1)[2], contrast("exact", 5, epoch=2)[2])


@pytest.mark.parametrize("kind", ["CC", "RKD", "ITRD"])
def test_a_last_batch_of_one_image_is_trained_on(kind: str, options: list) -> None:
    cfg = settings([*options, "SOLVER.BATCH_SIZE", 13], kind, "odd")  # 40 = 3 * 13 + 1
    assert all(value.isfinite().all() for value in weights(train(cfg)).values())


def test_crd_and_its_trainer_go_together(options: list) -> None:
    for kind, trainer in (("CRD", "base"), ("KD", "crd")):
        with pytest.raises(DJIPError, match="CRD takes crd"):
            train(load_cfg(None, [*options, "DISTILLER.TYPE", kind, "SOLVER.TRAINER", trainer]))
