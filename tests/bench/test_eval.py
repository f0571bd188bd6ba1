"""``djip eval`` and tools/eval.py: mdistiller's eval.py, plain and behind a lens."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from helpers.folders import make_folders

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.run import build_model
from djip_ext.bench.engine.utils import evaluate
from djip_ext.cli.main import main
from djip_ext.lens.io import lens_id
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.teacher import DJIPTeacher

TOOL = Path(__file__).parents[2] / "tools" / "eval.py"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forty test images and a working folder of its own."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint() -> str:
    torch.manual_seed(0)
    torch.save({"model": build_model("resnet8", 20).state_dict()}, "net.pth")
    return "net.pth"


def evaluated(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, list[float]]:
    """What stands before the colon, and the three numbers, of the line that the command prints."""
    capsys.readouterr()
    main(["eval", *argv, "BENCH.DEVICE", "cpu"])
    what, numbers = capsys.readouterr().out.strip().splitlines()[-1].split(": ")
    return what, [float(number) for number in re.findall(r" (\d+\.\d+)", f" {numbers}")]


def expected(network: torch.nn.Module) -> list[float]:
    row = evaluate(network, DeviceLoader(make_synthetic(2, seed=1), 64))
    digits = {"test_acc": 2, "test_acc_top5": 2, "test_loss": 4}
    return [pytest.approx(row[key], abs=0.6 * 10**-n) for key, n in digits.items()]


def test_a_network_is_evaluated_plain_and_behind_a_lens(
    checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = build_model("resnet8", 20)
    network.load_state_dict(torch.load(checkpoint)["model"])
    argv = ["-m", "resnet8", "-c", checkpoint, "-d", "synthetic", "-bs", "16"]
    assert evaluated(capsys, *argv) == ("resnet8", expected(network))
    what, numbers = evaluated(capsys, *argv, "--djip-lens", "identity")
    assert (what, numbers) == ("resnet8 behind identity", expected(network))

    lens = JPEGLens(torch.full((2, 8, 8), 40.0))
    lens.save("coarse.safetensors")
    behind = DJIPTeacher(network, lens, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    what, numbers = evaluated(capsys, *argv, "--djip-lens", "coarse.safetensors")
    assert (what, numbers) == (f"resnet8 behind {lens_id(lens)}", expected(behind))
    assert numbers != expected(network)


def test_key_value_pairs_are_stronger_than_flags(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = image_sets.make_loader
    monkeypatch.setattr(
        image_sets, "make_loader", lambda data, size, *how: sizes.append(size) or real(data, size)
    )
    own = ["DATASET.TYPE", "synthetic", "DATASET.TEST.BATCH_SIZE", "7"]
    plain = evaluated(capsys, "-m", "resnet8", "-c", checkpoint, *own)
    assert plain[0] == "resnet8"
    other = ["-m", "resnet14", "-c", "lost.pth", "-d", "imagenet", "-bs", "9"]
    own += ["DISTILLER.TEACHER", "resnet8", "BENCH.TEACHER_CHECKPOINT", checkpoint]
    assert evaluated(capsys, *other, *own) == plain and sizes == [7, 7]


def test_the_script_is_the_command_and_runs_only_as_a_script(
    checkpoint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["-m", "resnet8", "-c", checkpoint, "-d", "synthetic", "BENCH.DEVICE", "cpu"]
    monkeypatch.setattr(sys, "argv", [str(TOOL), *argv])
    runpy.run_path(str(TOOL), run_name="imported")
    assert capsys.readouterr().out == ""
    runpy.run_path(str(TOOL), run_name="__main__")
    assert capsys.readouterr().out.startswith("resnet8: top-1 ")


def test_tiny_imagenet_is_read_from_mdistillers_place(capsys: pytest.CaptureFixture[str]) -> None:
    make_folders(Path("data", "tiny-imagenet-200"), classes=3, size=(64, 64))
    torch.save({"model": build_model("MobileNetV2", 3, "tiny_imagenet").state_dict()}, "mv2.pth")
    argv = ["-m", "MobileNetV2", "-c", "mv2.pth", "-d", "tiny_imagenet", "DATASET.NUM_WORKERS", "0"]
    what, (top1, top5, _) = evaluated(capsys, *argv)
    assert what == "MobileNetV2" and 0 <= top1 <= top5 == 100


@pytest.mark.parametrize(
    "argv, message",
    [
        (["-m", "resnet9", "-d", "synthetic"], "there is no model 'resnet9'; choose from"),
        (["-m", "resnet8", "-d", "synthetic"], "resnet8 has no published checkpoint"),
        (["-m", "resnet8", "-c", "lost.pth", "-d", "synthetic"], "lost.pth"),
        (["-m", "resnet8"], "CIFAR-100 is missing"),
        (["-m", "resnet8", "-bs", "0"], "DATASET.TEST.BATCH_SIZE is 0; it must be at least 1"),
        (["-m", "resnet8", "--djip-any-teacher"], "name it with --djip-lens"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", *argv])
    errors = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and errors[-1].startswith("error: ") and message in errors[-1]
