"""A lens as a JPEG file: any decoder shows what the hard lens of the same integer tables shows."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from djip_ext import DJIPError, JPEGLens
from djip_ext.lens.initial_tables import standard_jpeg
from djip_ext.lens.io import lens_id
from djip_ext.lens.jpeg_file import open_rgb, write_jpeg
from djip_ext.lens.jpeg_lens import tile
from djip_ext.ops.dct import (
    RGB_TO_YCBCR,
    YCBCR_TO_RGB,
    block_dct,
    block_idct,
    mix_channels,
    pad_to_blocks,
)


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth shades, edges and some noise, in colour."""
    draw = np.random.default_rng(seed)
    v, u = np.mgrid[:height, :width] / max(height, width)
    image = np.stack([np.sin(draw.uniform(2, 14) * (u + draw.uniform() * v)) for _ in range(3)], 2)
    image[height // 3 : height // 2, width // 4 :] *= -0.6
    pixels = 128 + 90 * image + draw.normal(0, 6, image.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def write(image: Image.Image, lens: JPEGLens, path: Path) -> Path:
    return write_jpeg(image, lens.q, path, f"djip lens {lens_id(lens)}")


def tensor_of(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()


def half_away(x: Tensor) -> Tensor:
    """Round as libjpeg does; torch rounds a half to the even neighbour."""
    return x.sign() * (x.abs() + 0.5).floor()


def codec(image: Tensor, tables: list[list[int]]) -> Tensor:
    """A JPEG file, slowly: the hard lens with 8-bit YCbCr before and after."""
    shift = torch.tensor([128.0, 0.0, 0.0], dtype=torch.float64)[:, None, None]
    ycbcr = half_away(mix_channels(pad_to_blocks(image), RGB_TO_YCBCR)) - shift
    z = block_dct(ycbcr)
    q = tile(torch.tensor(tables).double().view(2, 8, 8), z)
    seen = half_away(block_idct(half_away(z / q) * q) + shift)
    seen[:, 0].clamp_(0, 255)
    seen[:, 1:].clamp_(-128, 127)
    seen = mix_channels(seen, YCBCR_TO_RGB).round().clamp(0, 255)
    return seen[:, :, : image.shape[2], : image.shape[3]]


def uneven() -> Tensor:
    """Tables that show every transposition and every exchange."""
    q = standard_jpeg(60)
    q[0, 1, 3], q[1, 5, 0] = 90.0, 3.0
    return q


@pytest.mark.parametrize("q", [standard_jpeg(90), standard_jpeg(10), uneven()])
@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_the_decoded_file_is_the_hard_lens_of_its_integer_tables(
    q: Tensor, size: tuple[int, int], tmp_path: Path
) -> None:
    lens, image = JPEGLens(q, hard=True), photograph(*size)
    decoded = tensor_of(Image.open(write(image, lens, tmp_path / "a.jpg")))
    by_lens = (decoded - lens(tensor_of(image)).clamp(0, 255)).detach().abs()
    by_codec = (decoded - codec(tensor_of(image), lens.jpeg_tables())).abs()
    # A file rounds Y, Cb and Cr to 8 bits before it quantizes, and libjpeg's integer DCT has a
    # grain of 1/8: a coefficient on the border between two steps may fall to the other side, and
    # moves its whole block a little.
    assert by_lens.mean() < 1.5 and (by_lens <= 2).double().mean() > 0.75
    assert by_codec.mean() < 0.6 and (by_codec <= 2).double().mean() > 0.95
    other = JPEGLens(q.transpose(1, 2).contiguous(), hard=True)
    if not torch.equal(other.q, lens.q):
        assert (decoded - other(tensor_of(image))).detach().abs().mean() > by_lens.mean()


def test_the_tables_are_integers_in_natural_order() -> None:
    q = torch.arange(128.0).view(2, 8, 8) + 0.4
    q[0, 0, 0], q[0, 0, 1], q[0, 0, 2], q[1, 7, 7] = 0.2, 1.5, 2.5, 254.7
    luma, chroma = JPEGLens(q).jpeg_tables()
    assert luma[:5] == [1, 2, 2, 3, 4] and chroma == [*range(64, 127), 255]
    assert all(type(step) is int for step in luma + chroma)


def test_a_file_is_444_and_names_its_lens(tmp_path: Path) -> None:
    lens = JPEGLens(uneven())
    with Image.open(write(photograph(20, 20), lens, tmp_path / "b" / "a.jpg")) as file:
        assert [list(file.quantization[i]) for i in (0, 1)] == lens.jpeg_tables()
        assert [part[1:3] for part in file.layer] == [(1, 1)] * 3
        assert file.info["comment"] == f"djip lens {lens_id(lens)}".encode()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["a.jpg"]


def saved(path: Path, image: Image.Image | None = None, **how: object) -> Path:
    (image or photograph(32, 32)).save(path, **how)
    return path


@pytest.mark.parametrize("progressive", [False, True])
def test_a_lens_is_read_from_a_camera_s_file(tmp_path: Path, progressive: bool) -> None:
    path = saved(tmp_path / "a.jpg", quality=35, subsampling=0, progressive=progressive)
    lens = JPEGLens.from_jpeg(path)
    assert torch.equal(lens.q, standard_jpeg(35)) and lens.hard
    assert lens.metadata["jpeg_file"] == {"progressive": progressive, "subsampling": "4:4:4"}
    soft = JPEGLens.from_jpeg(path, hard=False)
    assert torch.equal(soft.q, lens.q) and not soft.hard and soft.kappa == 5.0
    again = write(photograph(32, 32), lens, tmp_path / "b.jpg")
    assert torch.equal(JPEGLens.from_jpeg(again).q, lens.q)


def test_what_a_lens_cannot_show_of_a_file_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="4:2:0"):
        lens = JPEGLens.from_jpeg(saved(tmp_path / "a.jpg", quality=35, subsampling=2))
    assert torch.equal(lens.q, standard_jpeg(35))
    grey = photograph(32, 32).convert("L")
    with pytest.warns(UserWarning, match="grey"):
        lens = JPEGLens.from_jpeg(saved(tmp_path / "b.jpg", grey, quality=35))
    assert torch.equal(lens.q[0], lens.q[1])
    coarse = [[1000] * 64, [300] * 64]
    with pytest.warns(UserWarning, match="above 255"):
        lens = JPEGLens.from_jpeg(saved(tmp_path / "c.jpg", qtables=coarse, subsampling=0))
    assert float(lens.q.detach().min()) == 255


def test_files_without_such_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="PNG file; only JPEG"):
        JPEGLens.from_jpeg(saved(tmp_path / "a.png"))
    with pytest.raises(DJIPError, match="mode CMYK"):
        JPEGLens.from_jpeg(saved(tmp_path / "a.jpg", photograph(8, 8).convert("CMYK")))
    with pytest.raises(DJIPError, match="YCbCr"):
        JPEGLens.from_jpeg(saved(tmp_path / "b.jpg", keep_rgb=True))
    with pytest.raises(DJIPError, match="cannot be read"):
        JPEGLens.from_jpeg(tmp_path / "missing.jpg")
    (tmp_path / "c.jpg").write_bytes(b"no image")
    with pytest.raises(DJIPError, match="cannot be read"):
        JPEGLens.from_jpeg(tmp_path / "c.jpg")


def test_images_are_read_upright_and_at_their_scale(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to see it upright
    path = saved(tmp_path / "a.png", photograph(20, 30), exif=exif)
    assert open_rgb(path).size == (20, 30)
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    deep = open_rgb(saved(tmp_path / "b.png", Image.fromarray(ramp)))
    assert np.array_equal(np.array(deep)[0, :, 0], np.arange(256))
    clear = photograph(8, 8)
    clear.putalpha(3)
    assert np.array_equal(np.array(open_rgb(saved(tmp_path / "c.png", clear))), photograph(8, 8))
    with pytest.raises(DJIPError, match="mode F"):
        open_rgb(saved(tmp_path / "d.tif", Image.fromarray(np.zeros((4, 4), np.float32))))
    content = saved(tmp_path / "e.png").read_bytes()
    (tmp_path / "e.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DJIPError, match=r"e\.png cannot be read"):
        open_rgb(tmp_path / "e.png")
    assert io.BytesIO(content).read(4) == b"\x89PNG"


def test_a_huge_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.jpg", photograph(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (open_rgb, JPEGLens.from_jpeg):
        with pytest.raises(DJIPError, match=r"a\.jpg cannot be read"):
            read(path)
