"""``djip fit``: fit a lens for the teacher that a benchmark configuration names."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import load_image_sets, make_loader
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.protocols import LabelledImages, Loader
from djip_ext.bench.engine.run import build_teacher, code_version, resolve_device, run_record
from djip_ext.bench.engine.temperature import distiller_temperature
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.cli.expectation import expectation
from djip_ext.cli.options import (
    add_benchmark_arguments,
    add_fit_arguments,
    benchmark_cfg,
    fit_settings,
)
from djip_ext.errors import DJIPError
from djip_ext.fit.batch import BATCH, STEPS, batch_of
from djip_ext.fit.loop import FitResult, default_start, fit_lens
from djip_ext.fit.record import describe
from djip_ext.fit.settings import IMAGES_OF_A_CLASS, FitSettings
from djip_ext.hosts.task import HostTask, read_host
from djip_ext.inputs.closed_teacher import only_answers
from djip_ext.lens.initial_tables import mean_magnitude, random_tables, sensitivity, standard_jpeg
from djip_ext.lens.io import lens_id
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.metrics.class_simplex import most_raised_class
from djip_ext.metrics.measurement import Measurement, measure
from djip_ext.metrics.softening import measure_softening
from djip_ext.utils.distributed import by_first, joined, processes, rank, say, shard
from djip_ext.utils.files import claimed, write_json

if TYPE_CHECKING:
    Transform = Callable[[Tensor], Tensor]


HOST_BENCH = ("BENCH.DEVICE", "BENCH.PRECISION")
MEASURING_BATCH = 250
# settings that a search without gradients does not read
OF_THE_DESCENT = (
    "lam",
    "lam_max",
    "rounds",
    "patience",
    "lr",
    "variant",
    "gradient",
    "refresh",
    "ce_weight",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``djip fit``; those of the fit itself come from :class:`FitSettings`."""
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
        help="its package; . when its distillers are no part of one (default: %(default)s)",
    )
    default = default_start()
    parser.add_argument(
        "--start",
        default="",
        metavar="TABLES",
        help="tables to start from: a number, jpeg:QUALITY, magnitude, sensitivity:QMAX "
        "or random:MEDIAN (default: 8)",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="ALPHA",
        help="fixed sharpness of the soft quantizer (default: none, see --kappa)",
    )
    parser.add_argument(
        "--kappa",
        type=float,
        metavar="KAPPA",
        help="tie the sharpness to the step instead: alpha = kappa / q^2 "
        f"(default: {default.kappa:g}, unless --alpha is given)",
    )
    parser.add_argument(
        "--max-index", type=int, metavar="L", help=f"index range L (default: {default.max_index})"
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="bins to sum, 5 is JPEG-DL's code (default: all, the exact sum)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help=f"fit on N training images; 0: all (default: {IMAGES_OF_A_CLASS} of each class)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help=f"images in a step of the fit (default: {BATCH}, or fewer where that would make less "
        f"than {STEPS} steps a round)",
    )
    add_fit_arguments(parser)
    parser.add_argument(
        "--black-box",
        action="store_true",
        help="use the teacher's answers alone, not its gradient; nothing is asked beyond --queries "
        "(a search: flags of the descent, --rounds, --lr, --lam and the like, are refused)",
    )
    parser.add_argument(
        "--queries",
        type=int,
        metavar="N",
        help="with --black-box, how many images may be sent to the teacher at most "
        "(default: 30 passes)",
    )
    parser.add_argument(
        "--hard",
        action="store_true",
        help="with --black-box, fit the hard lens, which JPEG files of djip encode show",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted fit, to the same lens"
    )


def run(args: argparse.Namespace) -> None:
    """Fit as the flags say, alone or with the other processes of a torchrun.

    The first process writes and prints.

    Raises:
        DJIPError: anything the user can change.
    """
    out = Path(args.out)
    if out.suffix != ".safetensors" or out.is_dir():
        raise DJIPError(
            f"--out is {out}; name a file that ends in .safetensors, "
            "beside which the fit's record and checkpoint go"
        )
    with joined():
        first = rank() == 0
        with claimed(out.with_suffix(".lock"), str(out)) if first else nullcontext():
            # One answer for all: a process on another machine may not see the file.
            if args.resume and by_first(lambda: finished(out)):
                say(f"{out} is finished; delete it or leave out --resume to fit it again")
            else:
                fit(args, out, first)


def finished(out: Path) -> bool:
    """Whether the fit that writes ``out`` has ended."""
    record = out.with_suffix(".json")
    checkpoint = out.with_suffix(".fit.pth")
    return out.exists() and record.exists() and not checkpoint.exists()


def fit(args: argparse.Namespace, out: Path, first: bool) -> None:
    """Read teacher and images, fit, measure without and with the lens, and write it."""
    check_flags(args)
    cfg, host_options = configuration(args)
    settings = fit_settings(args, cfg.BENCH.PRECISION)
    task = read_task(args, cfg, host_options)
    device = resolve_device(cfg.BENCH.DEVICE)
    task.teacher.to(device).to(memory_format=torch.channels_last).eval()
    part = images_of_the_fit(task.train, images_asked_for(args.images, task.train), settings.seed)
    fitting = Fitting(task, part, settings, device, args.black_box, args.queries)

    batch = batch_size(args, len(part.labels))
    loader = make_loader(part, batch, device, shuffle=True, seed=settings.seed)
    start = starting_lens(args, task.teacher, loader, part)
    loader.shard = shard()
    if first and not args.resume:  # only now: a wrong flag must not cost the fit that is there
        forget_earlier_fit(out)
    result = fitting.fit(start, loader, out, first)
    measured = fitting.measure(result)
    result.lens.metadata |= {
        "dataset": task.dataset,
        "fraction": cfg.BENCH.FRACTION,
        "input_size": list(task.train.size),
        "teacher": task.teacher_name,
        # On the images of the fit, where the band and the floor were measured
        "fit_before": result.before.summary(),
        "fit_after": result.after.summary(),
        **measured.summaries(),
        "start": args.start,
        "host": args.host_package if args.host else "",
        "processes": processes(),
        "code": code_version(),
    }
    known = needs_teacher(cfg.DISTILLER.TYPE) and not args.host and not fitting.is_sparing
    temperature = distiller_temperature(cfg) if known else None
    if temperature is not None:
        result.lens.metadata["at_distiller"] = {
            "distiller": cfg.DISTILLER.TYPE,
            **fitting.at_distiller(temperature, result),
        }
    if first:
        lens = fitting.write(result, measured, out, run_record(cfg))
        out.with_suffix(".fit.pth").unlink(missing_ok=True)
        report(out, lens, result.in_band, cfg.DISTILLER.TYPE if known else "")


def check_flags(args: argparse.Namespace) -> None:
    """Raise DJIPError for flags that this kind of fit would ignore, and for empty batches."""
    if not args.black_box and (args.hard or args.queries is not None):
        raise DJIPError("--hard and --queries are for a fit with --black-box; add it")
    ignored = [name for name in OF_THE_DESCENT if getattr(args, name) is not None]
    if args.black_box and ignored:
        flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
        raise DJIPError(f"{flags}: the search of --black-box has no use for this; leave it out")
    if args.batch_size is not None and args.batch_size < 1:
        raise DJIPError(f"--batch-size is {args.batch_size}; it must be at least 1")


def batch_size(args: argparse.Namespace, images: int) -> int:
    """How many of the ``images`` of the fit make a step: as asked for, or :func:`batch_of`."""
    if args.batch_size is not None:
        return int(args.batch_size)
    return BATCH if args.black_box else batch_of(images)


def configuration(args: argparse.Namespace) -> tuple[CfgNode, list[str]]:
    """Our configuration, and the ``KEY VALUE`` words that are for the host's.

    With ``--host``, pairs of the node ``BENCH`` are ours (:data:`HOST_BENCH`), all others the
    host's, and so is the file that ``--cfg`` names.

    Raises:
        DJIPError: an option that means nothing with a host, or one without a value.
    """
    if not args.host:
        return benchmark_cfg(args), []
    if args.data_root:
        raise DJIPError(
            "--data-root is the embedded benchmark's; "
            "with --host the images are where the host keeps them"
        )
    if len(args.options) % 2:
        raise DJIPError(f"options: {args.options[-1]} has no value; they are KEY VALUE pairs")
    ours: list[str] = []
    theirs: list[str] = []
    for key, value in zip(args.options[::2], args.options[1::2], strict=True):
        if key.startswith("BENCH.") and key not in HOST_BENCH:
            raise DJIPError(
                f"{key} is the embedded benchmark's and means nothing with --host, "
                f"which takes {' and '.join(HOST_BENCH)} of it"
            )
        (ours if key in HOST_BENCH else theirs).extend((key, value))
    own = argparse.Namespace(**{**vars(args), "cfg": None, "options": ours})
    return benchmark_cfg(own), theirs


def read_task(args: argparse.Namespace, cfg: CfgNode, host_options: list[str]) -> HostTask:
    """Teacher and images: from the host's checkout with ``--host``, else from the benchmark.

    With a host, ``cfg`` gets its names of data set and teacher, for the record.
    """
    if args.host:
        task = read_host(
            args.host, args.cfg or "", args.host_package, args.images or 0, host_options
        )
        cfg.DATASET.TYPE = task.dataset
        cfg.DISTILLER.TEACHER = task.teacher_name
        return task
    train_set, test_set = load_image_sets(cfg)
    teacher = build_teacher(cfg, train_set.num_classes)
    return HostTask(teacher, train_set, test_set, cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER)


def forget_earlier_fit(out: Path) -> None:
    """Delete checkpoint and record of an earlier fit.

    Without this a fit that is killed before its first round would pass for the finished one.
    """
    out.with_suffix(".fit.pth").unlink(missing_ok=True)
    out.with_suffix(".json").unlink(missing_ok=True)


def images_asked_for(images: int | None, data: LabelledImages) -> int:
    """How many images a fit reads: ``images``, or what it needs of each class; 0: all of them."""
    return IMAGES_OF_A_CLASS * data.num_classes if images is None else images


def images_of_the_fit(data: LabelledImages, count: int, seed: int) -> LabelledImages:
    """``count`` images of ``data``, the same share of every class; all of them when it is 0."""
    return data.subset(min(1.0, count / len(data.labels)), seed=seed) if count else data


@dataclass(frozen=True)
class Measured:
    """The teacher without and with the lens, on training images ``seen`` and on test images."""

    seen: LabelledImages
    before: Measurement
    after: Measurement
    test_before: Measurement | None
    test_after: Measurement | None

    def summaries(self) -> dict[str, dict[str, float]]:
        """CMI, cross entropy and accuracy of each, as the lens' metadata keep them."""
        names = ("before", "after", "test_before", "test_after")
        known = {name: getattr(self, name) for name in names}
        return {name: one.summary() for name, one in known.items() if one is not None}


@dataclass(frozen=True)
class Fitting:
    """A fit of ``task`` on its training images ``part``."""

    task: HostTask
    part: LabelledImages
    settings: FitSettings
    device: torch.device
    black_box: bool = False
    queries: int | None = None

    @property
    def is_sparing(self) -> bool:
        """Whether every query of the teacher counts, so that none is sent but for the fit."""
        return self.black_box or only_answers(self.task.teacher)

    def fit(self, start: JPEGLens, loader: Loader, out: Path, first: bool) -> FitResult:
        """Fit from ``start``, with a checkpoint and TensorBoard events beside ``out``."""
        events: Any = SummaryWriter(str(out.with_suffix(".events"))) if first else nullcontext()
        with events as writer:

            def log(row: dict[str, float]) -> None:
                for key, value in row.items():
                    writer.add_scalar(f"fit/{key}", value, int(row["round"]))

            return fit_lens(
                self.task.teacher,
                loader,
                self.task.train.num_classes,
                mean=self.task.train.mean,
                std=self.task.train.std,
                lens=start,
                settings=self.settings,
                checkpoint=out.with_suffix(".fit.pth"),
                log=log,
                gradients=not self.black_box,
                queries=self.queries,
            )

    def measure(self, result: FitResult) -> Measured:
        """Measure on all training images, where these are in memory, and on the test images.

        Not with ``--black-box``, whose budget of queries is the fit's alone, nor with a closed
        teacher.
        """
        if self.is_sparing:
            return Measured(self.part, result.before, result.after, None, None)
        lens = self.transform(result.lens)
        train, test = self.task.train, self.task.test
        seen = self.part
        before = result.before
        after = result.after
        # Two passes over all of a folder would cost more than the fit.
        if self.part is not train and isinstance(train, ImageSet):
            seen = train
            before = self.measure_on(train, None)
            after = self.measure_on(train, lens)
        return Measured(
            seen, before, after, self.measure_on(test, None), self.measure_on(test, lens)
        )

    def at_distiller(self, temperature: float, result: FitResult) -> dict[str, float | None]:
        """What the distiller reads at its T, before and after, on the images of the fit."""
        found = measure_softening(
            self.task.teacher,
            make_loader(self.part, MEASURING_BATCH, self.device, shard=shard()),
            self.part.num_classes,
            self.transform(result.lens),
            temperature,
            self.settings.precision,
        )
        values: dict[str, float | None] = {"temperature": temperature}
        values["before"], values["after"] = found.cmi
        values["entropy_before"], values["entropy_after"] = found.entropy
        values["others_before"], values["others_after"] = found.others
        return values | {"equal_temperature": found.factor}

    def measure_on(
        self,
        data: LabelledImages,
        transform: Transform | None,
    ) -> Measurement:
        """CMI, cross entropy and accuracy on ``data``, each process on its share."""
        return measure(
            self.task.teacher,
            make_loader(data, MEASURING_BATCH, self.device, shard=shard()),
            data.num_classes,
            transform,
            self.settings.temperature,
            self.settings.precision,
        )

    def transform(self, lens: JPEGLens) -> Transform:
        """``lens`` for images that are normalised as those of the task are."""
        normalisation = Normalisation(self.task.train.mean, self.task.train.std)
        return lambda image: normalisation.through(lens, image)

    def write(
        self, result: FitResult, measured: Measured, out: Path, run: dict[str, Any]
    ) -> JPEGLens:
        """Write lens and record, with ``run`` in it; return the lens."""
        one_class = None
        if not self.is_sparing:
            one_class = most_raised_class(
                self.task.teacher,
                measured.seen,
                lambda samples: make_loader(samples, MEASURING_BATCH, self.device),
                self.transform(result.lens),
                measured.before.cmi,
                measured.after.cmi,
                self.settings.temperature,
                self.settings.precision,
            )
        result.lens.save(out)
        record: dict[str, Any] = describe(result.lens) | {
            "history": result.history,
            "one_class": one_class and one_class.to_json(),
            "data": {"fit": self.part.fingerprint(), "test": self.task.test.fingerprint()},
        }
        write_json(out.with_suffix(".json"), record | run)
        return result.lens


def starting_lens(
    args: argparse.Namespace,
    teacher: nn.Module,
    loader: Loader,
    data: LabelledImages,
) -> JPEGLens:
    """The start that ``--start`` and the codec's flags describe.

    What they leave open is that of :func:`~djip_ext.fit.loop.default_start`.

    Raises:
        DJIPError: ``--start`` names no tables.
    """
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
            f"--start is '{args.start}'; give a number, jpeg:QUALITY, magnitude, "
            "sensitivity:QMAX or random:MEDIAN"
        ) from error
    return JPEGLens(q, hard=args.hard, **codec)


def report(out: Path, lens: JPEGLens, in_band: bool, distiller: str = "") -> None:
    """Print what the lens does to the teacher, whether the fit met its goal, and what to expect.

    Args:
        distiller: that will read the teacher; "" where that is not known.
    """
    about = lens.metadata
    shield = about["fit"].get("goal") == "shield"
    print(f"{out}: lens {lens_id(lens)} for {about['teacher']}, {about['seconds']:.0f} s")
    for where, before, after in (
        ("training images", "before", "after"),
        ("test set", "test_before", "test_after"),
    ):
        if before not in about:
            continue
        plain = about[before]
        lensed = about[after]
        print(
            f"  {where}: CMI {plain['cmi']:.4f} -> {lensed['cmi']:.4f} nats, "
            f"accuracy {plain['accuracy']:.2f} -> {lensed['accuracy']:.2f} %"
        )
    read = about.get("at_distiller", {})
    if read:
        print(
            f"  as {read['distiller']} reads it, at T = {read['temperature']:g}: CMI "
            f"{read['before']:.4f} -> {read['after']:.4f} nats (images of the fit),"
        )
        print(
            f"    entropy {read['entropy_before']:.4f} -> {read['entropy_after']:.4f}, among the "
            f"classes beside the label's {read['others_before']:.4f} -> {read['others_after']:.4f}"
        )
    expected = expectation(distiller, read.get("temperature"), read.get("equal_temperature"))
    if expected and not shield:
        print(f"  note: {expected}; djip tune tries it on your data")
    if "queries" in about:
        print(f"  {about['queries']} queries, {about['queries'] / about['images']:g} per image")
    if not in_band and shield:
        print(
            "  note: no round kept the accuracy floor; raise --max-accuracy-drop or lower --start"
        )
    elif not in_band:
        low, _ = about["fit"]["cmi_gain"]
        is_below = about["fit_after"]["cmi"] < about["fit_before"]["cmi"] + low
        cure = "a coarser --start" if is_below else "another --cmi-gain"
        effort = "--queries" if "queries" in about else "--rounds"
        print(
            "  note: no round met both the CMI band and the accuracy floor; this is the nearest. "
            f"Try more {effort} or {cure}"
        )
