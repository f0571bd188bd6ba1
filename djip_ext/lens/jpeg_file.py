"""A lens as a real JPEG file, and the tables of a JPEG file as a lens (ITU-T T.81).

A JPEG encoder rounds each DCT coefficient to a multiple of an integer step: the hard lens of
integer tables.  So a closed service, which takes files and nothing else, can be shown what the lens
shows.
Uses Pillow, which is imported only when a file is read or written.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from djip_ext.errors import DJIPError, first_line
from djip_ext.ops.dct import BLOCK
from djip_ext.utils.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.JpegImagePlugin import JpegImageFile

LARGEST_STEP = 255  # of a baseline JPEG file
SUBSAMPLINGS = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}  # Pillow's numbers


def jpeg_tables(q: Tensor) -> list[list[int]]:
    """Round the steps ``q`` (2, 8, 8) to what a baseline JPEG file can hold.

    Returns:
        Two lists of 64 integers in 1 .. 255, luma and chroma, row by row ("natural order", not
        zigzag), as the ``qtables`` of Pillow's ``Image.save`` takes them.  A step below 1 becomes
        1, all others the nearest integer, a half the nearest even one.
    """
    steps = q.detach().cpu().round().clamp(1, LARGEST_STEP).long()
    return steps.view(2, BLOCK * BLOCK).tolist()


def read_jpeg_tables(path: str | os.PathLike[str]) -> tuple[Tensor, dict[str, object]]:
    """The quantization tables (2, 8, 8) of a JPEG file, and how it is coded.

    See :meth:`djip_ext.lens.jpeg_lens.JPEGLens.from_jpeg`.
    """
    from PIL import Image

    from djip_ext.inputs.pixel_modes import UNREADABLE

    path = Path(path)
    try:
        with Image.open(path) as image:
            if image.format not in ("JPEG", "MPO"):
                raise DJIPError(
                    f"{path} is a {image.format} file; only JPEG files carry quantization tables"
                )
            luma, chroma, about = _read(image, path)
    except DJIPError:
        raise
    except UNREADABLE as error:
        raise DJIPError(
            f"{path} cannot be read as a JPEG file ({first_line(error)}); check the path"
        ) from error
    tables = torch.tensor([luma, chroma]).float().view(2, BLOCK, BLOCK)
    return tables, about


def _read(image: JpegImageFile, path: Path) -> tuple[list[int], list[int], dict[str, object]]:
    """Luma table, chroma table and the file's properties; warn of what the lens cannot show."""
    from PIL.JpegImagePlugin import get_sampling

    if image.mode not in ("RGB", "L") or image.info.get("adobe_transform") == 0:
        raise DJIPError(
            f"{path} does not store YCbCr (mode {image.mode}); its tables have no luma and chroma"
        )
    # A component is (id, horizontal sampling, vertical sampling, number of its table).
    tables = [list(image.quantization[component[3]]) for component in image.layer]
    if len(tables) == 3 and tables[1] != tables[2]:
        raise DJIPError(f"{path} has different tables for Cb and Cr; a lens has one for both")
    sampling = "grey" if len(tables) == 1 else SUBSAMPLINGS.get(get_sampling(image), "unknown")
    if sampling == "grey":
        warnings.warn(
            f"{path} is a grey JPEG; its one table is taken for chroma as well", stacklevel=4
        )
    elif sampling != "4:4:4":
        warnings.warn(
            f"{path} is subsampled ({sampling}): its chroma steps are for averaged pixels, but "
            "the lens is always 4:4:4",
            stacklevel=4,
        )
    if max(map(max, tables)) > LARGEST_STEP:
        warnings.warn(f"{path} has steps above 255; the lens has 255 there", stacklevel=4)
    about = {"progressive": bool(image.info.get("progressive")), "subsampling": sampling}
    return tables[0], tables[-1], about


def open_rgb(path: str | os.PathLike[str]) -> Image:
    """Read an image file as 8-bit RGB, upright: its EXIF orientation is applied.

    Of an animation the first frame is taken.  Transparency is dropped, as most loaders of data sets
    do.  16-bit grey is scaled by 1 / 257.

    Raises:
        DJIPError: no image, a damaged one, or one of a mode without a scale (floating point).
    """
    from PIL import Image, ImageOps

    from djip_ext.inputs.pixel_modes import UNREADABLE, to_rgb

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.format = file.format  # a transposed copy has none
        return to_rgb(image)
    except (*UNREADABLE, ValueError) as error:
        raise DJIPError(
            f"{path} cannot be read as an image ({first_line(error)}); replace or remove it"
        ) from error


def write_jpeg(image: Image, q: Tensor, path: str | os.PathLike[str], comment: str) -> Path:
    """Write an RGB ``image`` as a 4:4:4 JPEG file with the steps ``q`` (2, 8, 8), atomically.

    ``comment`` stands in the file.  Profiles and other metadata are not kept.

    Raises:
        DJIPError: the operating system refused.
    """

    def write(temporary: Path) -> None:
        image.save(temporary, "JPEG", qtables=jpeg_tables(q), subsampling=0, comment=comment)

    image.info = {}  # else Pillow would keep a comment or a profile of the source
    return atomic_write(path, write)
