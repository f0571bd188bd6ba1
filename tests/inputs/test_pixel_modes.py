"""Images of a folder in every mode that Pillow opens."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from djip_ext.bench.dataset.imagefolder import FolderLoader, load_folders
from djip_ext.bench.models.input_spec import IMAGENET
from djip_ext.errors import DJIPError
from djip_ext.inputs.pixel_modes import to_rgb

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4  # grey, 0 .. 252


def grey() -> Image.Image:
    return Image.fromarray(RAMP)


def sixteen_bits(order: str = "<") -> Image.Image:
    mode = "I;16B" if order == ">" else "I;16"
    return Image.frombytes(mode, (8, 8), (RAMP.astype(f"{order}u2") * 257).tobytes())


def seen(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(to_rgb(Image.open(path)))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, name: str, order: str) -> None:
    if order == ">" and not name.endswith("tif"):
        pytest.skip("these formats have one byte order")
    sixteen_bits(order).save(tmp_path / name)
    assert np.array_equal(seen(tmp_path / name), np.stack([RAMP] * 3, 2))


def test_sixteen_bits_are_rounded(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 65535 - 129, 65535 - 128, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert seen(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


def test_wide_integers_of_a_png_are_sixteen_bits() -> None:
    """As older versions of Pillow open them."""
    image = Image.fromarray(RAMP.astype(np.int32) * 257)
    image.format = "PNG"
    assert image.mode == "I" and np.array_equal(np.asarray(to_rgb(image))[:, :, 1], RAMP)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"]
)
def test_other_modes_are_converted_as_pillow_and_torchvision_do(mode: str) -> None:
    image = (
        grey().convert("RGB").convert(mode) if mode not in ("LA", "PA") else grey().convert(mode)
    )
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = grey().convert("P")
    image.save(tmp_path / "a.png", transparency=transparency)
    assert np.array_equal(seen(tmp_path / "a.png"), np.stack([RAMP] * 3, 2))


def folder(root: Path, image: Image.Image, name: str) -> Path:
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            image.save(root / part / label / name)
    return root


def test_a_folder_of_sixteen_bit_images_is_the_folder_of_eight_bit_ones(tmp_path: Path) -> None:
    spec = IMAGENET.at(8)
    passes = []
    for name, image in (("eight", grey()), ("sixteen", sixteen_bits())):
        train, _ = load_folders(folder(tmp_path / name, image, "a.png"), spec, 0)
        passes.append(next(iter(FolderLoader(train, 2)))[0])
    assert torch.equal(*passes)


@pytest.mark.parametrize(
    "image, reason",
    [
        (Image.fromarray(RAMP.astype(np.float32) / 255), r"from 0.0 to 0.98.* range is unknown"),
        (Image.fromarray(RAMP.astype(np.int32) * 9000), "range is unknown .mode I.; save it"),
    ],
)
def test_an_unknown_range_is_refused_by_the_file_s_name(
    tmp_path: Path, image: Image.Image, reason: str
) -> None:
    train, _ = load_folders(folder(tmp_path, image, "a.tif"), IMAGENET.at(8), 0)
    with pytest.raises(DJIPError, match=rf"a\.tif cannot be read .*{reason}") as caught:
        next(iter(FolderLoader(train, 2)))
    assert "\n" not in str(caught.value)


def test_a_huge_image_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    train, _ = load_folders(folder(tmp_path, grey(), "a.png"), IMAGENET.at(8), 0)
    with pytest.raises(DJIPError, match=r"a\.png cannot be read .*exceeds limit"):
        next(iter(FolderLoader(train, 2)))


def test_what_pillow_cannot_convert_is_one_line() -> None:
    with pytest.raises(DJIPError, match="cannot convert mode La"):
        to_rgb(Image.new("La", (2, 2)))
