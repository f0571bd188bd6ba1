"""``djip encode``: the layout is kept, and what is no image is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from djip_ext import JPEGLens
from djip_ext.cli.main import main, run_command


@pytest.fixture
def lens(tmp_path: Path) -> str:
    lens = JPEGLens(torch.rand(2, 8, 8) * 20 + 2)
    lens.metadata = {"input_size": [16, 24]}
    lens.save(tmp_path / "lens.safetensors")
    return str(tmp_path / "lens.safetensors")


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def refused(capsys: pytest.CaptureFixture, *command: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in command])
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_folder_becomes_jpeg_files(
    lens: str, tmp_path: Path, capsys: pytest.CaptureFixture, workers: str
) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    names = ["train/cat/1.png", "train/cat/2.JPEG", "train/dog/1.png", "top.jpg"]
    for seed, name in enumerate(names):
        picture(source / name, seed)
    picture(source / ".hidden" / "a.png")
    (source / "train" / "1.txt").write_text("labels")
    (source / "link").symlink_to(source / "train" / "dog")
    run_command(["encode", lens, str(source), str(out), "--workers", workers])
    text = capsys.readouterr().out
    assert f"skipped {source / 'train' / '1.txt'}: not an image" in text
    assert f"{out}: 5 JPEG files" in text and "note" not in text
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == [
        "link/1.jpg",
        "top.jpg",
        "train/cat/1.jpg",
        "train/cat/2.JPEG",
        "train/dog/1.jpg",
    ]
    from_file = JPEGLens.from_jpeg(out / "train/cat/2.JPEG")
    assert torch.equal(from_file.q, JPEGLens.from_jpeg(out / "link/1.jpg").q)


def test_what_pillow_names_but_cannot_read_is_skipped(
    lens: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    picture(source / "a.png")
    picture(source / "z.png").rename(source / "z.mpo")  # the suffix of one that it reads
    contents = {"b.h5": b"\x89HDF\r\n\x1a\n", "c.pdf": b"%PDF-1.4", "d.mpg": b"\0\0\1\xb3"}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    run_command(["encode", lens, str(source), str(out)])
    text = capsys.readouterr().out
    assert all(f"skipped {source / name}: not an image" in text for name in contents)
    assert sorted(path.name for path in out.iterdir()) == ["a.jpg", "z.jpg"]


def test_another_size_than_the_lens_was_fitted_at_is_said(
    lens: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture(tmp_path / "images" / "a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "images" / "b.png")
    run_command(["encode", lens, str(tmp_path / "images"), str(tmp_path / "out")])
    assert "note: the lens was fitted at 16x24" in capsys.readouterr().out


def test_mistakes_are_one_line(lens: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = tmp_path / "images", tmp_path / "out"
    assert "there is no folder" in refused(capsys, "encode", lens, source, out)
    source.mkdir()
    assert "holds no images" in refused(capsys, "encode", lens, source, out)
    picture(source / "a.png")
    assert "in or around" in refused(capsys, "encode", lens, source, source / "out")
    assert "in or around" in refused(capsys, "encode", lens, source, source)
    assert "--workers is 0" in refused(capsys, "encode", lens, source, out, "--workers", "0")
    picture(source / "a.jpg")
    assert "would both become" in refused(capsys, "encode", lens, source, out)
    assert not out.exists()
    (source / "a.jpg").unlink()
    (source / "b.png").write_bytes(b"no image")
    assert "b.png cannot be read" in refused(capsys, "encode", lens, source, out)
