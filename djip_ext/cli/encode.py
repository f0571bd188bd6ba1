"""``djip encode``: a folder of images as JPEG files whose quantization tables are a lens's."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from djip_ext.errors import DJIPError
from djip_ext.lens.io import lens_id, load_lens
from djip_ext.lens.jpeg_file import open_rgb, write_jpeg
from djip_ext.lens.jpeg_lens import JPEGLens

# formats whose suffixes Pillow knows and whose pixels it does not read
UNREAD = ("BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF")
AT_ONCE = 1024  # files handed to the threads in one go, so that a million do not wait in memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip encode``."""
    parser.add_argument("lens", metavar="LENS", help="lens file (.safetensors)")
    parser.add_argument("folder", metavar="FOLDER", help="images, in folders of any depth")
    parser.add_argument("out", metavar="OUT", help="where the JPEG files go, in the same folders")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="threads that encode (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the JPEG files and say what was written; raises DJIPError as the functions below."""
    folder = Path(args.folder)
    out = Path(args.out)
    lens = load_lens(args.lens)
    if args.workers < 1:
        raise DJIPError(f"--workers is {args.workers}; at least one thread has to encode")
    written, skipped, sizes = encode_folder(lens, folder, out, args.workers)
    if not written:
        raise DJIPError(f"{folder} holds no images; nothing was written")
    print(f"{out}: {written} JPEG files with the tables of lens {lens_id(lens)}, 4:4:4")
    if skipped:
        print(f"  {skipped} files were skipped")
    fitted = tuple(lens.metadata.get("input_size") or ())
    if fitted and sizes != {fitted}:
        print(
            f"  note: the lens was fitted at {fitted[0]}x{fitted[1]}, and here are other sizes; a "
            "teacher that scales images after decoding does not see what the lens shows"
        )


def encode_folder(
    lens: JPEGLens, folder: Path, out: Path, workers: int = 1
) -> tuple[int, int, set[tuple[int, int]]]:
    """Write every image at or below ``folder`` as a JPEG file below ``out``, in the same layout.

    ``a/b.png`` becomes ``a/b.jpg``; the names of JPEG files stay.  What is there already is
    replaced.  A file without the suffix of an image that Pillow can read is skipped with a line on
    the terminal; hidden files are passed over.

    Returns:
        How many files were written, how many were skipped, and the sizes (H, W) met.

    Raises:
        DJIPError: no such folder, ``out`` inside of it or around it, two sources with one target, a
            damaged image, a disk that is full.
    """
    images, others = _scan(folder, out)
    for path in others:
        print(f"skipped {path}: not an image")

    comment = f"djip lens {lens_id(lens)}"

    def encode(pair: tuple[Path, Path]) -> tuple[int, int]:
        source, target = pair
        image = open_rgb(source)
        write_jpeg(image, lens.q, target, comment)
        return image.height, image.width

    def sizes() -> Iterator[tuple[int, int]]:
        with ThreadPoolExecutor(workers) as threads:
            for start in range(0, len(images), AT_ONCE):
                yield from threads.map(encode, images[start : start + AT_ONCE])

    met = set(tqdm(sizes(), desc="encoding", total=len(images), unit="image", leave=False))
    return len(images), len(others), met


def _scan(folder: Path, out: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """(source, target) of every image in ``folder``, and all other files, in order."""
    if not folder.is_dir():
        raise DJIPError(f"there is no folder {folder}; name the one that holds the images")
    inside = out.resolve()
    around = folder.resolve()
    if inside.is_relative_to(around) or around.is_relative_to(inside):
        raise DJIPError(f"{out} lies in or around {folder}; write the JPEG files somewhere else")
    known = Image.registered_extensions()
    suffixes = {suffix for suffix, kind in known.items() if kind not in UNREAD}
    targets: dict[Path, Path] = {}
    others = []
    for source in _files(folder):
        if source.suffix.lower() not in suffixes:
            others.append(source)
            continue
        relative = source.relative_to(folder)
        jpeg = source.suffix.lower() in (".jpg", ".jpeg")
        target = out / (relative if jpeg else relative.with_suffix(".jpg"))
        if target in targets:
            raise DJIPError(
                f"{targets[target]} and {source} would both become {target}; rename one"
            )
        targets[target] = source
    return [(source, target) for target, source in targets.items()], others


def _files(folder: Path) -> Iterator[Path]:
    """Every file at or below ``folder`` that is not hidden; links to folders are followed."""
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(where, name) for name in sorted(names) if not name.startswith("."))
