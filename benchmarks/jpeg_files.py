"""A lens as real JPEG files against the hard lens of the same integer tables.

    python benchmarks/jpeg_files.py --lens LENS --teacher CHECKPOINT [--data-root DIR] [--images N]
                                    [--out docs/performance/jpeg_files]

Pixels: photographs that scikit-image ships, encoded by ``djip encode`` and decoded by Pillow.
CMI and accuracy: the teacher on CIFAR-100 as it is, through the lens, through the hard lens of its
steps, of its integer tables, and on the decoded files, in the precision of the fit; on N images of
the lens's training set, and of the test set.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from timing import write  # noqa: E402

from djip_ext.bench.dataset.image_sets import load_image_sets, make_loader  # noqa: E402
from djip_ext.bench.dataset.imageset import ImageSet  # noqa: E402
from djip_ext.bench.engine.cfg import load_cfg  # noqa: E402
from djip_ext.bench.engine.run import build_teacher  # noqa: E402
from djip_ext.cli.main import run_command  # noqa: E402
from djip_ext.lens.initial_tables import standard_jpeg  # noqa: E402
from djip_ext.lens.io import load_lens  # noqa: E402
from djip_ext.lens.jpeg_lens import JPEGLens  # noqa: E402
from djip_ext.lens.normalisation import Normalisation  # noqa: E402
from djip_ext.metrics.measurement import measure  # noqa: E402

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")


def encoded(lens: JPEGLens, images: list[np.ndarray]) -> list[np.ndarray]:
    """The images (H, W, 3) written as PNG, through ``djip encode``, read again."""
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name, "png"), Path(name, "jpeg")
        source.mkdir()
        for index, pixels in enumerate(images):
            Image.fromarray(pixels).save(source / f"{index:06d}.png", compress_level=1)
        lens.save(Path(name, "lens.safetensors"))
        run_command(["encode", str(Path(name, "lens.safetensors")), str(source), str(out)])
        return [np.array(Image.open(path)) for path in sorted(out.iterdir())]


def integer_lens(lens: JPEGLens) -> JPEGLens:
    """The hard lens of the integer tables."""
    return JPEGLens(torch.tensor(lens.jpeg_tables()).float().view(2, 8, 8), hard=True)


@torch.no_grad()
def pixels(lenses: dict[str, JPEGLens]) -> list[dict[str, object]]:
    from skimage import data

    rows = []
    for name, lens in lenses.items():
        photographs = {photo: getattr(data, photo)() for photo in PHOTOGRAPHS}
        for photo, decoded in zip(
            photographs, encoded(lens, list(photographs.values())), strict=True
        ):
            image = torch.from_numpy(photographs[photo].copy()).permute(2, 0, 1)[None].float()
            seen = integer_lens(lens)(image)[0].clamp(0, 255).permute(1, 2, 0).numpy()
            error = np.abs(seen - decoded)
            rows.append(
                {
                    "tables": name,
                    "photograph": f"{photo} {image.shape[3]}x{image.shape[2]}",
                    "mean difference": float(error.mean()),
                    "within 1 level, %": 100 * float((error <= 1).mean()),
                    "within 2 levels, %": 100 * float((error <= 2).mean()),
                    "largest": float(error.max()),
                    "moved by the lens": float(np.abs(seen - photographs[photo]).mean()),
                }
            )
    return rows


def predictions(
    lens: JPEGLens, teacher: torch.nn.Module, sets: dict[str, ImageSet]
) -> list[dict[str, object]]:
    rows = []
    for where, data in sets.items():
        normalisation = Normalisation(data.mean, data.std)
        hard = JPEGLens(lens.q.detach(), hard=True)
        files = encoded(lens, list(data.images.numpy()))
        from_files = ImageSet(
            torch.from_numpy(np.stack(files)), data.labels, data.num_classes, data.mean, data.std
        )

        arms = {
            "no lens": (data, None),
            "the lens": (data, partial(normalisation.through, lens)),
            "hard lens, its steps": (data, partial(normalisation.through, hard)),
            "hard lens, integer steps": (data, partial(normalisation.through, integer_lens(lens))),
            "JPEG files": (from_files, None),
        }
        for name, (images, view) in arms.items():
            now = measure(
                teacher,
                make_loader(images, 250),
                data.num_classes,
                view,
                precision=lens.metadata["fit"]["precision"],
            )
            rows.append({"images": where, "seen": name, **now.summary()})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lens", required=True)
    parser.add_argument("--teacher", help="its checkpoint; without one only pixels are compared")
    parser.add_argument("--data-root", default="./data")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("docs/performance/jpeg_files"))
    args = parser.parse_args()
    lens = load_lens(args.lens)
    tables = {
        "the lens": lens,
        "JPEG, quality 75": JPEGLens(standard_jpeg(75)),
        "JPEG, quality 10": JPEGLens(standard_jpeg(10)),
    }
    title = "Decoded JPEG files against the hard lens of the same integer tables, in grey levels."
    print(write(pixels(tables), args.out.with_name(args.out.name + "_pixels"), title))
    if not args.teacher:
        return
    about = lens.metadata
    options = ["DISTILLER.TEACHER", about["teacher"], "BENCH.TEACHER_CHECKPOINT", args.teacher]
    options += ["BENCH.FRACTION", about["fraction"], "BENCH.DATA_ROOT", args.data_root]
    cfg = load_cfg(None, options)
    train, test = load_image_sets(cfg)
    teacher = build_teacher(cfg, train.num_classes).eval().requires_grad_(False)
    sets = {
        f"{name}, {min(args.images, len(data.labels))}": data.subset(
            min(1.0, args.images / len(data.labels))
        )
        for name, data in (("training", train), ("test", test))
    }
    title = f"{about['teacher']} on CIFAR-100 through a lens, and on JPEG files with its tables."
    print(write(predictions(lens, teacher, sets), args.out, title))


if __name__ == "__main__":
    main()
