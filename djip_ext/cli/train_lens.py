"""``djip fit``: fit a lens for the teacher that a benchmark configuration names."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import load_image_sets, make_loader
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.engine.run import build_teacher, code_version, resolve_device, run_record
from djip_ext.cli.options import add_benchmark_arguments, benchmark_cfg
from djip_ext.errors import DJIPError
from djip_ext.fit.loop import default_start, fit_lens
from djip_ext.fit.record import describe
from djip_ext.fit.settings import FitSettings
from djip_ext.hosts.task import HostTask, read_host
from djip_ext.lens.initial_tables import mean_magnitude, random_tables, sensitivity, standard_jpeg
from djip_ext.lens.io import lens_id, load_lens
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.metrics.class_simplex import most_raised_class
from djip_ext.metrics.measurement import Measurement, measure
from djip_ext.utils.distributed import by_first, joined, processes, rank, say, shard
from djip_ext.utils.files import claimed, write_json

if TYPE_CHECKING:
    from djip_ext.bench.dataset.imagefolder import FolderLoader, FolderSet


HOST_BENCH = ("BENCH.DEVICE", "BENCH.PRECISION")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument(
        "--out", required=True, metavar="LENS", help="where to write the lens (.safetensors)"
    )
    parser.add_argument(
        "--host",
        metavar="CHECKOUT",
        help="take teacher, checkpoint and data from this checkout; --cfg is then one of its files",
    )
    parser.add_argument(
        "--host-package",
        default="mdistiller",
        metavar="PACKAGE",
        help="its package (default: %(default)s)",
    )
    parser.add_argument(
        "--start",
        default="",
        metavar="TABLES",
        help="start: a number, jpeg:QUALITY, magnitude, sensitivity:QMAX or random:MEDIAN",
    )
    parser.add_argument("--alpha", type=float, help="fixed sharpness of the soft quantizer")
    parser.add_argument(
        "--kappa", type=float, help="tie the sharpness to the step instead: alpha = kappa / q^2"
    )
    parser.add_argument("--max-index", type=int, help="index range L")
    parser.add_argument(
        "--window", type=int, help="bins to sum (5 is JPEG-DL's code); default: the exact sum"
    )
    parser.add_argument(
        "--images", type=int, default=0, metavar="N", help="fit on N training images; 0: all"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    for field in dataclasses.fields(FitSettings):
        flag = "--" + field.name.replace("_", "-")
        if field.name == "cmi_gain":
            parser.add_argument(flag, type=float, nargs=2, metavar=("LOW", "HIGH"))
        else:
            kind = {"int": int, "float": float}.get(
                getattr(field.type, "__name__", ""), float if field.name == "lam" else str
            )
            parser.add_argument(flag, type=kind)
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted fit, to the same lens"
    )


def run(args: argparse.Namespace) -> None:
    """Fit as the flags say, alone or with the other processes of a torchrun, of which the first writes and prints."""
    out = Path(args.out)
    if out.suffix != ".safetensors" or out.is_dir():
        raise DJIPError(
            f"--out is {out}; name a file that ends in .safetensors, beside which the fit's record and checkpoint go"
        )
    record, checkpoint = out.with_suffix(".json"), out.with_suffix(".fit.pth")
    with joined():
        first = rank() == 0
        with claimed(out.with_suffix(".lock"), str(out)) if first else nullcontext():
            # one answer for all: a process on another machine may not see the file
            if args.resume and by_first(
                lambda: out.exists() and record.exists() and not checkpoint.exists()
            ):
                say(f"{out} is finished; delete it or leave out --resume to fit it again")
            else:
                fit(args, out, first)


def fit(args: argparse.Namespace, out: Path, first: bool) -> None:
    cfg, task = read_task(args)
    checkpoint = out.with_suffix(".fit.pth")
    if first and not args.resume:
        checkpoint.unlink(missing_ok=True)
        out.with_suffix(".json").unlink(
            missing_ok=True
        )  # else a fit killed before its first round would pass for the finished one
    device = resolve_device(cfg.BENCH.DEVICE)
    train_set, test_set = task.train, task.test
    teacher = task.teacher.to(device, memory_format=torch.channels_last)
    given = {
        f.name: getattr(args, f.name)
        for f in dataclasses.fields(FitSettings)
        if getattr(args, f.name) is not None
    }
    if "cmi_gain" in given:
        given["cmi_gain"] = tuple(given["cmi_gain"])
    settings = FitSettings(**{"precision": cfg.BENCH.PRECISION, **given})
    part = (
        train_set.subset(min(1.0, args.images / len(train_set.labels)), seed=settings.seed)
        if args.images
        else train_set
    )
    loader = make_loader(part, args.batch_size, device, shuffle=True, seed=settings.seed)
    start = starting_lens(args, teacher.eval(), loader, part)
    loader.shard = shard()

    with SummaryWriter(str(out.with_suffix(".events"))) if first else nullcontext() as writer:

        def log(row: dict[str, float]) -> None:
            for key, value in row.items():
                writer.add_scalar(f"fit/{key}", value, int(row["round"]))

        result = fit_lens(
            teacher,
            loader,
            train_set.num_classes,
            mean=train_set.mean,
            std=train_set.std,
            lens=start,
            settings=settings,
            checkpoint=checkpoint,
            log=log,
        )

    lens, normalisation = result.lens, Normalisation(train_set.mean, train_set.std)

    def measured(
        data: ImageSet | FolderSet, look: Callable[[Tensor], Tensor] | None
    ) -> Measurement:
        whole = make_loader(data, 250, device, shard=shard())
        return measure(
            teacher, whole, data.num_classes, look, settings.temperature, settings.precision
        )

    def look(image: Tensor) -> Tensor:
        return normalisation.through(lens, image)

    seen, before, after = part, result.before, result.after
    if part is not train_set and isinstance(
        train_set, ImageSet
    ):  # two passes over all of a folder would cost more than the fit
        seen, before, after = train_set, measured(train_set, None), measured(train_set, look)
    lens.metadata |= {
        "dataset": task.dataset,
        "fraction": cfg.BENCH.FRACTION,
        "input_size": list(train_set.size),
        "teacher": task.teacher_name,
        "fit_before": result.before.summary(),  # on the images of the fit, where the band and the floor were measured
        "before": before.summary(),
        "after": after.summary(),
        "test_before": measured(test_set, None).summary(),
        "test_after": measured(test_set, look).summary(),
        "start": args.start,
        "host": args.host_package if args.host else "",
        "processes": processes(),
        "code": code_version(),
    }
    if first:
        view = most_raised_class(
            teacher,
            seen,
            lambda samples: make_loader(samples, 250, device),
            look,
            before.cmi,
            after.cmi,
            settings.temperature,
            settings.precision,
        )
        lens.save(out)
        saved = load_lens(
            out
        )  # as all others read it, its steps clamped to the range: the id is of that
        record = describe(saved) | {"history": result.history, "one_class": view and view.to_json()}
        record["data"] = {"fit": part.fingerprint(), "test": test_set.fingerprint()}
        write_json(out.with_suffix(".json"), record | run_record(cfg))
        checkpoint.unlink(missing_ok=True)
        report(out, saved, result.in_band)


def read_task(args: argparse.Namespace) -> tuple[CfgNode, HostTask]:
    """Teacher and images: from the host's checkout with ``--host``, else from the embedded benchmark.

    With ``--host``, ``KEY VALUE`` pairs of the node ``BENCH`` are ours (:data:`HOST_BENCH`), all others the host's.
    """
    if args.host:
        if args.data_root:
            raise DJIPError(
                "--data-root is the embedded benchmark's; with --host the images are where the host keeps them"
            )
        if len(args.options) % 2:
            raise DJIPError(f"options: {args.options[-1]} has no value; they are KEY VALUE pairs")
        pairs = list(zip(args.options[::2], args.options[1::2]))
        for key, _ in pairs:
            if key.startswith("BENCH.") and key not in HOST_BENCH:
                raise DJIPError(
                    f"{key} is the embedded benchmark's and means nothing with --host, which takes {' and '.join(HOST_BENCH)} of it"
                )
        theirs = [word for pair in pairs for word in pair if not pair[0].startswith("BENCH.")]
        task = read_host(args.host, args.cfg or "", args.host_package, args.images, theirs)
        args.cfg, args.options = (
            None,
            [word for pair in pairs for word in pair if pair[0].startswith("BENCH.")],
        )
        cfg = benchmark_cfg(args)
        cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER = task.dataset, task.teacher_name
        return cfg, task
    cfg = benchmark_cfg(args)
    train_set, test_set = load_image_sets(cfg)
    return cfg, HostTask(
        build_teacher(cfg, train_set.num_classes),
        train_set,
        test_set,
        cfg.DATASET.TYPE,
        cfg.DISTILLER.TEACHER,
    )


def starting_lens(
    args: argparse.Namespace,
    teacher: nn.Module,
    loader: DeviceLoader | FolderLoader,
    data: ImageSet | FolderSet,
) -> JPEGLens:
    """The start that ``--start`` and the codec's flags describe; what they leave open is the default start's."""
    default = default_start()
    codec = {
        name: getattr(args, name)
        for name in ("alpha", "kappa", "max_index", "window")
        if getattr(args, name) is not None
    }
    if "alpha" not in codec:
        codec.setdefault("kappa", default.kappa)
    kind, _, value = args.start.partition(":")
    try:
        if kind == "jpeg":
            q: float | Tensor = standard_jpeg(int(value or 50))
        elif kind == "magnitude":
            q = mean_magnitude(loader, data.mean, data.std)
        elif kind == "sensitivity":
            q = sensitivity(teacher, loader, data.mean, data.std, float(value or 10))
        elif kind == "random":
            q = random_tables(float(value or 8), args.seed or 0)
        else:
            q = float(kind) if kind else default.q
    except ValueError as error:
        if isinstance(error, DJIPError):
            raise
        raise DJIPError(
            f"--start is '{args.start}'; give a number, jpeg:QUALITY, magnitude, sensitivity:QMAX or random:MEDIAN"
        ) from error
    return JPEGLens(q, **codec)


def report(out: Path, lens: JPEGLens, in_band: bool) -> None:
    about = lens.metadata
    print(f"{out}: lens {lens_id(lens)} for {about['teacher']}, {about['seconds']:.0f} s")
    for where, before, after in (
        ("fitted on", "before", "after"),
        ("test set", "test_before", "test_after"),
    ):
        plain, lensed = about[before], about[after]
        print(
            f"  {where}: CMI {plain['cmi']:.4f} -> {lensed['cmi']:.4f} nats, accuracy {plain['accuracy']:.2f} -> {lensed['accuracy']:.2f} %"
        )
    if not in_band:
        print(
            "  note: no round met both the CMI band and the accuracy floor; this is the nearest. Try more --rounds or another --cmi-gain"
        )
