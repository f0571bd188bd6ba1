"""``djip inspect``: what a lens is and what it does to images.

Given the teacher, also what it does to the teacher's predictions, and, lens or no lens, the
teacher's CMI over the temperature spectrum.
"""

from __future__ import annotations

import argparse
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import load_image_sets, make_loader
from djip_ext.bench.dataset.protocols import LabelledImages
from djip_ext.bench.engine.run import build_teacher, resolve_device
from djip_ext.cli.options import add_benchmark_arguments, benchmark_cfg
from djip_ext.errors import DJIPError
from djip_ext.fit.record import LensRecord, made_for, parse_record, record_of
from djip_ext.lens.io import check_belongs, settings_of
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.metrics.class_simplex import most_raised_class
from djip_ext.metrics.measurement import measure
from djip_ext.metrics.spectrum import TEMPERATURES, measure_spectrum
from djip_ext.utils.files import write_csv, write_json

HEALTH_IMAGES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip inspect``."""
    parser.add_argument(
        "--spectrum",
        action="store_true",
        help="write the teacher's CMI over temperatures as spectrum.csv and spectrum.png, with "
        "the lens too where one is named (default: off)",
    )
    parser.add_argument(
        "lens",
        metavar="LENS",
        nargs="?",
        help="lens file (.safetensors); may be missing with --spectrum (default: none)",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where the pictures go (default: <stem>-inspect beside the lens, without one "
        "<teacher>-inspect)",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=8,
        metavar="N",
        help="test images to show (default: %(default)s)",
    )
    add_benchmark_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Print what the lens is and does, draw it, and measure it where the teacher is named.

    Raises:
        DJIPError: no such lens, data or teacher.
    """
    if args.images < 1:
        raise DJIPError(f"--images is {args.images}; show at least one")
    words = list(args.options) if args.lens is None else [args.lens, *args.options]
    if len(words) % 2 == 0:  # KEY VALUE pairs, with no lens before them
        args.options = words
        inspect_spectrum(args)
        return
    path = Path(words[0])
    args.options = words[1:]
    record = parse_record(record_of(path), path.with_suffix(".json"))
    cfg = benchmark_cfg(args)
    lens = record.lens
    out = Path(args.out) if args.out else path.with_name(f"{path.stem}-inspect")
    print(f"{path}: lens {record.id}\n{identity_text(lens)}\n{tables_text(lens)}")
    written = draw_lens(record, out)

    has_teacher = bool(
        args.cfg or cfg.BENCH.TEACHER_CHECKPOINT or "DISTILLER.TEACHER" in args.options
    )
    if has_teacher or "DATASET.TYPE" in args.options:
        train_set, test_set, dataset = image_sets(cfg)
    else:
        train_set, test_set, dataset = image_sets_of(lens, cfg)
    images, _ = spread(test_set, HEALTH_IMAGES)
    health = lens.health(images) | {"dataset": dataset, "images": len(images)}
    print(health_text(health))
    written.append(draw_images(lens, test_set, args.images, out))

    if has_teacher:
        teacher, pictures = inspect_teacher(lens, cfg, train_set, out)
        summary = {
            "id": record.id,
            "lens": settings_of(lens),
            "about": record.about,
            "tables": table_summary(lens),
            "health": health,
            "teacher": teacher,
        }
        written += [picture for picture in pictures if picture not in written]
        written.append(write_json(out / "summary.json", summary))
    if args.spectrum:
        if not has_teacher:
            raise DJIPError("--spectrum needs the teacher; name it with --cfg YAML")
        written += write_spectra(lens, cfg, train_set, test_set, out)
    print(f"written to {out}: {', '.join(file.name for file in written)}")


def inspect_spectrum(args: argparse.Namespace) -> None:
    """Write the CMI spectrum of a teacher without a lens.

    Raises:
        DJIPError: ``--spectrum`` is not given, no such teacher or data.
    """
    if not args.spectrum:
        raise DJIPError("name a LENS, or a teacher and --spectrum")
    cfg = benchmark_cfg(args)
    train_set, test_set, _ = image_sets(cfg)
    out = Path(args.out or f"{cfg.DISTILLER.TEACHER.replace(':', '-')}-inspect")
    written = write_spectra(None, cfg, train_set, test_set, out)
    print(f"written to {out}: {', '.join(file.name for file in written)}")


def write_spectra(
    lens: JPEGLens | None,
    cfg: CfgNode,
    train_set: LabelledImages,
    test_set: LabelledImages,
    out: Path,
) -> list[Path]:
    """Measure, print, write and draw the teacher's CMI over temperatures on both sets of images.

    Returns the paths of ``spectrum.csv`` (a row per temperature, a column per curve, nats) and of
    the picture.
    """
    from djip_ext.plots.spectrum import spectrum_figure
    from djip_ext.plots.style import save_figure

    device = resolve_device(cfg.BENCH.DEVICE)
    classes = train_set.num_classes
    teacher = build_teacher(cfg, classes).to(device).to(memory_format=torch.channels_last)
    spectra: dict[str, dict[float, float]] = {}
    for part, data in (("training", train_set), ("test", test_set)):
        loader = make_loader(data, 250, device)
        precision = cfg.BENCH.PRECISION
        spectra[part] = measure_spectrum(teacher, loader, classes, precision=precision)
        if lens is not None:
            lens = lens.to(device)
            transform = partial(Normalisation(data.mean, data.std).through, lens)
            spectra[f"{part}, lens"] = measure_spectrum(
                teacher, loader, classes, transform, precision=precision
            )
    print(f"CMI of {cfg.DISTILLER.TEACHER} over the temperature spectrum, in nats:")
    print(f"  {'T':>8}" + "".join(f"{name:>16}" for name in spectra))
    rows: list[dict[str, float]] = []
    for temperature in TEMPERATURES:
        values = {name: spectrum[temperature] for name, spectrum in spectra.items()}
        print(f"  {temperature:8.3g}" + "".join(f"{value:16.4f}" for value in values.values()))
        rows.append({"temperature": temperature} | values)
    path = write_csv(out / "spectrum.csv", rows)
    return [path, save_figure(spectrum_figure(spectra), out / "spectrum.png")]


def draw_lens(record: LensRecord, out: Path) -> list[Path]:
    """Draw what the record of a lens allows; return the pictures' paths."""
    from djip_ext.plots.lens import lens_figures
    from djip_ext.plots.style import save_figure

    figures = lens_figures(record)
    return [save_figure(figure, out / f"{name}.png") for name, figure in figures.items()]


def draw_images(lens: JPEGLens, data: LabelledImages, count: int, out: Path) -> Path:
    """Draw ``count`` images without and with the lens; return the picture's path."""
    from djip_ext.plots.images import images_figure
    from djip_ext.plots.style import save_figure

    images, labels = spread(data, count)
    names = [data.classes[label] for label in labels.tolist()]
    with torch.no_grad():
        figure = images_figure(images, lens(images), names)
    return save_figure(figure, out / "images.png")


def inspect_teacher(
    lens: JPEGLens, cfg: CfgNode, data: LabelledImages, out: Path
) -> tuple[dict[str, Any], list[Path]]:
    """Measure the teacher on ``data`` without and with the lens; draw CMI and one class.

    Returns the numbers for ``summary.json`` and the pictures' paths.
    """
    from djip_ext.plots.cmi import cmi_figure
    from djip_ext.plots.lens import simplex_figure
    from djip_ext.plots.style import save_figure

    device = resolve_device(cfg.BENCH.DEVICE)
    teacher = build_teacher(cfg, data.num_classes).to(device).to(memory_format=torch.channels_last)
    try:
        check_belongs(lens, teacher, data.mean, data.std)
    except DJIPError as error:
        print(f"note: {str(error).split(';')[0]}; measured all the same")
    temperature = (lens.metadata.get("fit") or {}).get("temperature", 1.0)
    precision = cfg.BENCH.PRECISION
    normalisation = Normalisation(data.mean, data.std)
    lens = lens.to(device)

    def load(part: LabelledImages) -> Any:
        return make_loader(part, 250, device)

    def with_lens(image: Tensor) -> Tensor:
        return normalisation.through(lens, image)

    before = measure(teacher, load(data), data.num_classes, None, temperature, precision)
    after = measure(teacher, load(data), data.num_classes, with_lens, temperature, precision)
    # The predictions of one class are drawn; those of all would be N x C numbers.
    one_class = most_raised_class(
        teacher, data, load, with_lens, before.cmi, after.cmi, temperature, precision
    )
    print(
        f"{cfg.DISTILLER.TEACHER} on {len(data.labels)} {cfg.DATASET.TYPE} training images, "
        f"T = {temperature:g}:"
    )
    print(f"  {change_text(before.summary(), after.summary())}")
    pictures = [save_figure(cmi_figure(before.cmi, after.cmi, data.classes), out / "cmi.png")]
    if one_class is not None:
        print(
            f"  CMI rises most in class {one_class.corners[0]}: "
            f"{one_class.before.cmi:.4f} -> {one_class.after.cmi:.4f} nats (simplex.png)"
        )
        pictures.append(save_figure(simplex_figure(one_class), out / "simplex.png"))
    numbers = {
        "name": cfg.DISTILLER.TEACHER,
        "dataset": cfg.DATASET.TYPE,
        "images": len(data.labels),
        "temperature": temperature,
        "before": before.summary() | {"cmi_per_class": before.cmi.per_class.tolist()},
        "after": after.summary() | {"cmi_per_class": after.cmi.per_class.tolist()},
    }
    return numbers, pictures


def identity_text(lens: JPEGLens) -> str:
    """What the lens is and what it was made for, one fact a line.

    A fact is ``unknown`` where the file does not say it.
    """
    about = lens.metadata
    fit = about.get("fit") or {}
    facts = {
        "quantizer": quantizer_text(lens),
        "fitted for": made_for(about),
        "weights": about.get("teacher_hash", "unknown"),
        "pixels": "unknown",
        "training": change_text(about.get("before"), about.get("after")),
        "test": change_text(about.get("test_before"), about.get("test_after")),
        "fit": ", ".join(f"{key} {value}" for key, value in fit.items()) or "unknown",
        "took": "unknown",
    }
    if {"mean", "std"} <= about.keys():
        facts["pixels"] = f"mean {tuple(about['mean'])}, std {tuple(about['std'])}"
    if "seconds" in about:
        facts["took"] = f"{about['seconds']:.0f} s on {about.get('images', 'unknown')} images"
    return "\n".join(
        textwrap.fill(f"  {name:<11}{fact}", 120, subsequent_indent=13 * " ")
        for name, fact in facts.items()
    )


def quantizer_text(lens: JPEGLens) -> str:
    """The settings of the codec, apart from its tables."""
    sharpness = f"alpha = {lens.alpha:g}" if lens.kappa is None else f"alpha = {lens.kappa:g} / q^2"
    bins = f"{lens.window} nearest bins" if lens.window else "all bins"
    rounding = "hard rounding" if lens.hard else f"soft, {sharpness}, {bins}"
    return f"{rounding}, index range L = {lens.max_index}, output not clamped"


def change_text(before: dict[str, float] | None, after: dict[str, float] | None) -> str:
    """CMI, cross entropy and accuracy without and with the lens."""
    if not before or not after:
        return "unknown"
    return (
        f"CMI {before['cmi']:.4f} -> {after['cmi']:.4f} nats, "
        f"CE {before['ce']:.4f} -> {after['ce']:.4f} nats, "
        f"accuracy {before['accuracy']:.2f} -> {after['accuracy']:.2f} %"
    )


def table_summary(lens: JPEGLens) -> dict[str, dict[str, Any]]:
    """For luma and chroma: smallest, median and largest step, dead steps, and all steps."""
    tables = zip(("luma", "chroma"), lens.q.detach(), lens.dead(), strict=True)
    return {
        name: {
            "min": q.min().item(),
            "median": q.median().item(),
            "max": q.max().item(),
            "dead": int(dead.sum()),
            "q": q.tolist(),
        }
        for name, q, dead in tables
    }


def tables_text(lens: JPEGLens) -> str:
    """Both tables, vertical frequencies down, horizontal ones across."""
    from djip_ext.plots.lens import step_text

    lines = []
    for name, table in table_summary(lens).items():
        span = ", ".join(f"{key} {table[key]:.3g}" for key in ("min", "median", "max"))
        lines.append(f"{name} steps: {span}, {table['dead']} of 64 dead")
        lines += ["  " + " ".join(f"{step_text(step):>6}" for step in row) for row in table["q"]]
    return "\n".join(lines)


def health_text(health: dict[str, Any]) -> str:
    """The numbers of :meth:`JPEGLens.health` with what they mean."""
    return "\n".join(
        [
            f"on {health['images']} {health['dataset']} test images:",
            f"  dead       {health['dead']} of 128 steps have alpha q^2 < 1: "
            "too small to round anything, and out of reach of a fit",
            f"  saturated  {100 * health['saturated']:.2f} % of the coefficients exceed "
            "the range L q and are cut off there",
            f"  zeroed     {100 * health['zeroed']:.2f} % of the visible coefficients "
            "(above half a grey level) vanish",
        ]
    )


def image_sets(cfg: CfgNode) -> tuple[LabelledImages, LabelledImages, str]:
    """Training set, test set and name of the data that ``cfg`` names."""
    return *load_image_sets(cfg), cfg.DATASET.TYPE


def image_sets_of(lens: JPEGLens, cfg: CfgNode) -> tuple[LabelledImages, LabelledImages, str]:
    """The same for the data that ``lens`` was fitted for.

    The synthetic set stands in where these are unknown or not there.
    """
    cfg = cfg.clone()
    cfg.DATASET.TYPE = lens.metadata.get("dataset", "unknown")
    try:
        return image_sets(cfg)
    except DJIPError as error:
        reason = str(error)
        if "dataset" not in lens.metadata:
            reason = "the lens does not say which images it was fitted for"
        print(f"note: {reason}; showing synthetic ones")
        cfg.DATASET.TYPE = "synthetic"
        return image_sets(cfg)


def spread(data: LabelledImages, count: int) -> tuple[Tensor, Tensor]:
    """Up to ``count`` images, evenly spread over the set, and their labels (N,).

    The images are float (N, 3, H, W) in [0, 255].
    """
    index = torch.linspace(0, len(data.labels) - 1, min(count, len(data.labels))).long()
    return data.pixels(index).permute(0, 3, 1, 2).float(), data.labels[index]
