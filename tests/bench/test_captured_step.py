"""``BENCH.CUDA_GRAPH``: the same training, recorded; the recording itself needs a GPU."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from djip_ext import JPEGLens, install, uninstall
from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.distillers import methods
from djip_ext.bench.engine.captured_step import CapturedStep
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import build_model, train
from djip_ext.bench.engine.utils import load_checkpoint
from djip_ext.errors import DJIPError

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> list:
    """Four epochs of eleven steps, the last of them on a smaller batch."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    torch.manual_seed(0)
    teacher = tmp_path / "teacher.safetensors"
    save_file(build_model("resnet8", 20).state_dict(), teacher)
    networks = ["DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8"]
    solver = ["SOLVER.EPOCHS", 4, "SOLVER.BATCH_SIZE", 4, "SOLVER.LR", 0.01]
    kept = ["BENCH.TEACHER_CHECKPOINT", str(teacher), "LOG.PREFIX", str(tmp_path)]
    return ["DATASET.TYPE", "synthetic", *networks, *solver, *kept, *options]


def test_elsewhere_it_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = small(tmp_path, monkeypatch, "BENCH.CUDA_GRAPH", True, "BENCH.DEVICE", "cpu")
    result = train(load_cfg(None, [*options, "SOLVER.EPOCHS", 1]))
    assert "CUDA_GRAPH: false" in result["config"]
    assert "here every step is taken plainly" in capsys.readouterr().out


def test_an_optimiser_that_counts_on_the_cpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small(tmp_path, monkeypatch, "BENCH.CUDA_GRAPH", True, "SOLVER.TYPE", "AdamW")
    with pytest.raises(DJIPError, match="records SGD only, but SOLVER.TYPE is AdamW"):
        train(load_cfg(None, options))


@on_a_gpu
def test_a_step_is_recorded_behind_a_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first images are looked at, which no recording may fall on."""
    install(JPEGLens(8.0), "djip_ext.bench")
    try:
        test_a_recorded_step_trains_as_a_plain_one("KD", tmp_path, monkeypatch)
    finally:
        uninstall("djip_ext.bench")


@on_a_gpu
@pytest.mark.parametrize("method", [name for name in methods if name != "CRD"])
def test_a_recorded_step_trains_as_a_plain_one(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recordings = []
    record = CapturedStep._record

    def counted(self: CapturedStep, batch: tuple[Tensor, ...], epoch: int) -> None:
        recordings.append(epoch)
        record(self, batch, epoch)

    monkeypatch.setattr(CapturedStep, "_record", counted)

    def student(name: str, *options: object) -> dict[str, Tensor]:
        given = ["DISTILLER.TYPE", method, "FT.PRETRAIN.EPOCHS", 1, "EXPERIMENT.NAME", name]
        result = train(load_cfg(None, small(tmp_path, monkeypatch, *given, *options)))
        path = Path(result["folder"], "student_last.pth")
        weights: dict[str, Tensor] = load_checkpoint(path)["model"]
        return weights

    plain, recorded = student("plain"), student("recorded", "BENCH.CUDA_GRAPH", True)
    assert recordings == [1, 2, 3, 4]
    again, early = student("again"), student("early", "SOLVER.EPOCHS", 1)
    learned = []
    for name, weight in plain.items():
        # a GPU adds in no fixed order, and some methods make much of that
        noise = (again[name] - weight).abs().max()
        tolerance = 2e-3 + 2e-2 * weight.abs().max() + 4 * noise
        assert (recorded[name] - weight).abs().max() <= tolerance, name
        learned.append((early[name] - weight).abs().max() > tolerance)
    assert any(learned)  # a student that stood still would be within every tolerance


@on_a_gpu
def test_what_replaces_its_buffers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["DISTILLER.TYPE", "CRD", "SOLVER.TRAINER", "crd", "BENCH.CUDA_GRAPH", True]
    sizes = ["CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 8]
    with pytest.raises(DJIPError, match="BENCH.CUDA_GRAPH False"):
        train(load_cfg(None, small(tmp_path, monkeypatch, *options, *sizes)))
