"""``djip inspect`` says what a lens is and writes the pictures that it promises."""

import argparse
import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.models import cifar_model_dict
from djip_ext.cli import inspect_lens
from djip_ext.errors import DJIPError
from djip_ext.lens.io import lens_id
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.metrics.spectrum import TEMPERATURES
from djip_ext.utils.files import write_json

TOOL = Path(__file__).parents[2] / "tools" / "inspect_lens.py"
NUMBERS = {"cmi": 0.1, "ncmi": 0.01, "ce": 0.2, "accuracy": 95.0}


@pytest.fixture(autouse=True)
def small_synthetic_set(monkeypatch) -> None:
    monkeypatch.setattr(
        "djip_ext.bench.dataset.image_sets.make_synthetic",
        lambda per_class, seed: make_synthetic(per_class // 20, seed),
    )


@pytest.fixture
def lens(tmp_path) -> JPEGLens:
    """A lens made by hand, saved as ``hand.safetensors``: nothing is known of it."""
    lens = JPEGLens(torch.linspace(0.1, 20, 128).view(2, 8, 8))
    lens.save(tmp_path / "hand.safetensors")
    return lens


@pytest.fixture
def teacher(tmp_path) -> list[str]:
    """The options that name an untrained resnet8 for the synthetic set."""
    torch.manual_seed(0)
    network = cifar_model_dict["resnet8"][0](num_classes=20)
    torch.save({"model": network.state_dict()}, tmp_path / "teacher.pth")
    options = {
        "DATASET.TYPE": "synthetic",
        "DISTILLER.TEACHER": "resnet8",
        "BENCH.TEACHER_CHECKPOINT": tmp_path / "teacher.pth",
    }
    options |= {"BENCH.FRACTION": 0.3, "BENCH.DEVICE": "cpu"}
    return [str(word) for pair in options.items() for word in pair]


def inspect(*argv: str | Path) -> None:
    parser = argparse.ArgumentParser()
    inspect_lens.add_arguments(parser)
    inspect_lens.run(parser.parse_args([str(word) for word in argv]))


def names(folder: Path) -> set[str]:
    assert all(file.stat().st_size > 0 for file in folder.iterdir())
    return {file.name for file in folder.iterdir()}


def test_a_lens_made_by_hand_prints_its_id_and_tables_and_that_the_rest_is_unknown(
    lens, tmp_path, capsys
) -> None:
    inspect(tmp_path / "hand.safetensors", "--images", "2")
    printed = capsys.readouterr().out
    assert f"lens {lens_id(lens)}" in printed
    assert "an unknown teacher on unknown data" in printed
    assert "luma steps: min 0.1, median 4.96, max 9.97, 3 of 64 dead" in printed
    assert "chroma steps: min 10.1" in printed and "20.0" in printed
    assert "does not say which images" in printed and "synthetic test images" in printed
    assert "3 of 128 steps have alpha q^2 < 1" in printed
    assert names(tmp_path / "hand-inspect") == {"tables.png", "images.png"}


def test_data_that_are_not_there_are_replaced_and_reported(lens, tmp_path, capsys) -> None:
    lens.metadata = {"dataset": "cifar100", "teacher": "resnet56"}
    lens.save(tmp_path / "lens.safetensors")
    inspect(
        tmp_path / "lens.safetensors",
        "--images",
        "2",
        "--data-root",
        tmp_path,
        "--out",
        tmp_path / "pictures",
    )
    printed = capsys.readouterr().out
    assert "fitted for resnet56 on cifar100" in printed
    assert "CIFAR-100 is missing" in printed and "showing synthetic ones" in printed
    assert names(tmp_path / "pictures") == {"tables.png", "images.png"}


def test_a_named_data_set_counts_for_more_than_that_of_the_lens(lens, tmp_path, capsys) -> None:
    lens.metadata = {"dataset": "cifar100"}
    lens.save(tmp_path / "lens.safetensors")
    inspect(tmp_path / "lens.safetensors", "DATASET.TYPE", "synthetic", "--images", "2")
    assert (
        "CIFAR-100 is missing" not in (printed := capsys.readouterr().out)
        and "on 100 synthetic test images" in printed
    )


def test_a_fitted_lens_tells_its_story_and_draws_its_fit(lens, tmp_path, capsys) -> None:
    fit = {"cmi_gain": [0.1, 0.3], "max_accuracy_drop": 10.0, "rounds": 1, "chosen": 1}
    lens.metadata = {
        "dataset": "synthetic",
        "teacher": "resnet20",
        "teacher_hash": "0123456789abcdef",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "before": NUMBERS,
        "after": NUMBERS | {"cmi": 0.3, "accuracy": 91.0},
        "fit": fit,
        "seconds": 12.3,
        "images": 4000,
    }
    lens.save(tmp_path / "lens.safetensors")
    row = NUMBERS | {"lam": 1.0, "q_low": 0.5, "q_high": 2.0, "seconds": 1.0}
    report = {"about": lens.metadata, "history": [row | {"round": 0}, row | {"round": 1}]}
    write_json(tmp_path / "lens.json", report)
    inspect(tmp_path / "lens.safetensors", "--images", "1")
    printed = capsys.readouterr().out
    assert (
        "resnet20 on synthetic" in printed
        and "0123456789abcdef" in printed
        and "12 s on 4000 images" in printed
    )
    assert (
        "CMI 0.1000 -> 0.3000 nats, CE 0.2000 -> 0.2000 nats, accuracy 95.00 -> 91.00 %" in printed
    )
    assert names(tmp_path / "lens-inspect") == {"tables.png", "images.png", "fit.png"}

    side = {"cmi": 0.1, "accuracy": 90.0, "f": [[0.9, 0.8], [0.05, 0.1], [0.0, 0.1]]}
    one_class = {"corners": ["a", "b", "c"], "temperature": 1.0, "before": side, "after": side}
    write_json(tmp_path / "lens.json", report | {"one_class": one_class})
    inspect(tmp_path / "lens.safetensors", "--images", "1", "--out", tmp_path / "newer")
    assert names(tmp_path / "newer") == {"tables.png", "images.png", "fit.png", "simplex.png"}

    write_json(tmp_path / "lens.json", report | {"about": {}})  # the report of another lens
    inspect(tmp_path / "lens.safetensors", "--images", "1", "--out", tmp_path / "again")
    assert names(tmp_path / "again") == {"tables.png", "images.png"}


def test_with_its_teacher_the_lens_is_measured_on_the_training_set(
    lens, teacher, tmp_path, capsys
) -> None:
    (tmp_path / "teacher.yaml").write_text("DATASET:\n  TYPE: synthetic\n")
    inspect(
        tmp_path / "hand.safetensors",
        *teacher,
        "--cfg",
        tmp_path / "teacher.yaml",
        "--images",
        "2",
        "--out",
        tmp_path / "out",
    )
    printed = capsys.readouterr().out
    assert (
        "resnet8 on 60 synthetic training images, T = 1" in printed
        and "CMI rises most in class" in printed
    )
    assert names(tmp_path / "out") == {
        "tables.png",
        "images.png",
        "cmi.png",
        "simplex.png",
        "summary.json",
    }
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["id"] == lens_id(lens)
    assert summary["tables"]["luma"]["dead"] == summary["health"]["dead"] == 3
    for side in ("before", "after"):
        per_class = summary["teacher"][side]["cmi_per_class"]
        assert sum(per_class) / 20 == pytest.approx(summary["teacher"][side]["cmi"])
    assert summary["teacher"]["before"]["ce"] != summary["teacher"]["after"]["ce"]


def test_a_lens_of_another_teacher_is_measured_with_a_note(lens, teacher, tmp_path, capsys) -> None:
    lens.metadata = {"teacher": "resnet56", "teacher_hash": "0123456789abcdef"}
    lens.save(tmp_path / "lens.safetensors")
    inspect(tmp_path / "lens.safetensors", *teacher, "--images", "1")
    printed = capsys.readouterr().out
    assert "note: the lens was fitted for resnet56 with weights 0123456789abcdef" in printed
    assert "-inspect: tables.png, images.png, cmi.png, simplex.png, summary.json" in printed


@pytest.mark.parametrize("content", [None, b"", b"not a lens"])
def test_a_missing_or_damaged_lens_is_one_line(content, tmp_path) -> None:
    path = tmp_path / "lens.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DJIPError) as caught:
        inspect(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "lens-inspect").exists()


def test_no_images_to_show_is_refused(lens, tmp_path) -> None:
    with pytest.raises(DJIPError, match="--images is 0"):
        inspect(tmp_path / "hand.safetensors", "--images", "0")


def test_the_tool_is_the_command(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), str(tmp_path / "lens.safetensors")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: there is no lens {tmp_path}")


def test_the_spectrum_of_a_teacher_needs_no_lens(teacher, tmp_path, capsys) -> None:
    inspect("--spectrum", "--out", tmp_path / "out", *teacher)
    assert names(tmp_path / "out") == {"spectrum.csv", "spectrum.png"}
    with open(tmp_path / "out/spectrum.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["temperature"]) for row in rows] == list(TEMPERATURES)
    assert set(rows[0]) == {"temperature", "training", "test"}
    assert 0 < float(rows[-1]["training"]) < float(rows[4]["training"])
    assert "CMI of resnet8 over the temperature spectrum" in capsys.readouterr().out


def test_the_spectrum_behind_a_lens_stands_beside_the_plain_one(lens, teacher, tmp_path) -> None:
    inspect("--spectrum", "--out", tmp_path / "out", tmp_path / "hand.safetensors", *teacher)
    with open(tmp_path / "out/spectrum.csv") as file:
        rows = list(csv.DictReader(file))
    assert {"spectrum.csv", "spectrum.png", "summary.json"} <= names(tmp_path / "out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())["teacher"]
    at_one = next(row for row in rows if float(row["temperature"]) == 1)
    assert float(at_one["training"]) == pytest.approx(summary["before"]["cmi"], rel=1e-6)
    assert float(at_one["training, lens"]) == pytest.approx(summary["after"]["cmi"], rel=1e-6)


def test_neither_lens_nor_spectrum_is_refused(lens, teacher, tmp_path) -> None:
    with pytest.raises(DJIPError, match="name a LENS"):
        inspect(*teacher)
    with pytest.raises(DJIPError, match="--spectrum needs the teacher"):
        inspect(tmp_path / "hand.safetensors", "--spectrum")
