"""The benchmark commands run, at a size that says nothing about speed."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from djip_ext import JPEGLens
from djip_ext.bench.engine.run import build_model

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_the_lens_is_timed_against_the_stand_in_and_the_hard_codecs(tmp_path: Path) -> None:
    out = tmp_path / "lens"
    arguments = (
        "--no-compile",
        "--no-memory",
        "--no-teachers",
        "--rounds",
        "1",
        "--sizes",
        "1x16",
        "--threads",
        "1",
        "--out",
        str(out),
    )
    assert "stand-in for JPEG-DL" in run("lens.py", *arguments)
    rows = {row["layer"]: row for row in rows_of(out.with_suffix(".csv"))}
    assert {
        "lens",
        "lens, alpha = 5",
        "plain five bins (stand-in for JPEG-DL)",
        "Pillow",
        "torchvision",
        "copy",
    } <= set(rows)
    assert all(float(rows["lens"][f"{mode}, ms"]) > 0 for mode in ("forward", "to q", "to q and x"))
    assert rows["Pillow"]["to q, ms"] == ""
    assert out.with_suffix(".png").stat().st_size > 1000


def test_the_stand_in_is_the_lens_with_jpeg_dl_s_settings() -> None:
    """The benchmark compares layers that compute the same."""
    code = """
import sys

sys.path[:0] = ["benchmarks", "."]
import peers
import torch

torch.manual_seed(0)
images = torch.rand(2, 3, 16, 16) * 255
stand_in = peers.plain_five_bins()
lens = peers.lens(kappa=None, alpha=5.0, window=5, max_index=127)
print((stand_in.apply(images) - lens.apply(images)).abs().max().item())
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert float(result.stdout) < 5e-2, result.stderr


@pytest.mark.parametrize("pair", ("resnet8:resnet8",))
def test_the_training_loop_is_timed_without_a_checkout(pair: str, tmp_path: Path) -> None:
    out = tmp_path / "loop"
    arguments = (
        "--batches",
        "1",
        "--rounds",
        "1",
        "--batch-size",
        "4",
        "--images",
        "100",
        "--threads",
        "1",
        "--out",
        str(out),
    )
    run("training_loop.py", "--pairs", pair, *arguments)
    rows = rows_of(out.with_suffix(".csv"))
    assert len(rows) == 4 and all(float(row["images / s"]) > 0 for row in rows)


def test_fits_with_and_without_gradients_are_compared(tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher.pth", tmp_path / "black_box"
    torch.save({"model": build_model("resnet8", 20).state_dict()}, teacher)
    data = ("--images", "40", "DATASET.TYPE", "synthetic")
    arguments = ("--teacher", "resnet8", "--checkpoint", str(teacher), "--out", str(out), *data)
    run("black_box.py", "--passes", "5", "6", *arguments)
    rows = rows_of(out.with_suffix(".csv"))
    assert [row["fit"] for row in rows] == 2 * ["without gradients", "with gradients"]
    assert all(float(row["passes"]) <= float(row["budget"]) for row in rows)
    assert out.with_suffix(".png").exists() and not out.with_suffix(".fit.pth").exists()


def test_the_price_at_equal_cmi_is_found_on_a_known_frontier() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from black_box import price_at

    for start in (0.01, 0.1, 0.29, 2.0):
        price, factor = price_at(0.3, lambda x, s=start: (s * math.exp(2 * x), math.exp(2.8 * x)))
        exact = math.sqrt(0.3 / start)
        assert factor == pytest.approx(exact, rel=0.02)
        assert price == pytest.approx(exact**2.8, rel=0.02)


def test_jpeg_files_are_held_against_the_hard_lens(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    lens = tmp_path / "lens.safetensors"
    JPEGLens(q=8.0, kappa=5.0).save(lens)
    run("jpeg_files.py", "--lens", str(lens), "--out", str(tmp_path / "files"))
    rows = rows_of(tmp_path / "files_pixels.csv")
    assert len(rows) == 9 and all(float(row["within 2 levels, %"]) > 80 for row in rows)


def test_the_curve_of_fits_compares_with_the_last_and_keeps_what_has_run(tmp_path: Path) -> None:
    teacher, out = tmp_path / "teacher.pth", tmp_path / "fit"
    torch.save({"model": build_model("resnet8", 20).state_dict()}, teacher)
    options = (
        "DATASET.TYPE",
        "synthetic",
        "BENCH.FRACTION",
        "0.02",
        "DISTILLER.TEACHER",
        "resnet8",
    )
    options += ("BENCH.TEACHER_CHECKPOINT", str(teacher))
    run("fit.py", "--grid", "40x0", "40x1", "--out", str(out), *options)
    rows = rows_of(out.with_suffix(".csv"))
    assert [row["rounds run"] for row in rows] == ["0", "1"]
    assert float(rows[1]["of the long fit's (%)"]) == pytest.approx(100)
    record = tmp_path / "fit-fits" / "40x1.json"
    before = record.stat().st_mtime_ns
    run("fit.py", "--grid", "40x0", "40x1", "--out", str(out), *options)
    assert record.stat().st_mtime_ns == before
