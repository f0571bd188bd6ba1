"""How few images and rounds a lens needs: CMI on the whole training set against compute.

    python benchmarks/fit.py --cfg CFG [--grid IMAGESxROUNDS ...] [--flags '--patience 2']
                             [--out docs/performance/fit] [KEY VALUE ...]

Runs ``djip fit`` once for every IMAGESxROUNDS of the grid, the last one being the long fit that the
others are compared with; fits that have been run are not run again.  A teacher-epoch is what one
epoch of *training* the teacher costs (forward, backward, step): by the clock, timed on a few
batches right before each fit; or by passes, which no load disturbs, where a training step counts
as three forward passes, a step of the tables as two.  The seconds of a fit are those of its rounds.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from timing import machine, write  # noqa: E402

from djip_ext.bench.dataset.image_sets import load_image_sets  # noqa: E402
from djip_ext.bench.dataset.loader import DeviceLoader  # noqa: E402
from djip_ext.bench.engine.cfg import load_cfg  # noqa: E402
from djip_ext.bench.engine.run import build_teacher, resolve_device  # noqa: E402
from djip_ext.cli.main import run_command  # noqa: E402
from djip_ext.metrics.measurement import autocast  # noqa: E402
from djip_ext.utils.networks import logits_of  # noqa: E402


def teacher_epoch(cfg_path: str, options: list[str], batches: int = 12) -> tuple[float, int]:
    """Seconds of a training epoch of the teacher, from the median of some batches; its images."""
    cfg = load_cfg(cfg_path or None, options)
    device = resolve_device(cfg.BENCH.DEVICE)
    train_set, _ = load_image_sets(cfg)
    teacher = (
        build_teacher(cfg, train_set.num_classes)
        .to(device, memory_format=torch.channels_last)
        .train()
    )
    optimizer = torch.optim.SGD(teacher.parameters(), lr=1e-9, momentum=0.9)
    loader, seconds = DeviceLoader(train_set, 64, device, augment=True), []
    for index, (image, label, _) in enumerate(loader):
        started = time.perf_counter()
        with autocast(device, cfg.BENCH.PRECISION):
            logits = logits_of(teacher(image))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.float(), label).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        if index == batches:
            break
    return statistics.median(seconds[2:] or seconds) * len(loader), len(train_set.labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", default="", help="a configuration of the embedded benchmark")
    grid = ["500x6", "1000x6", "1000x10", "1500x10", "2500x6", "2500x20"]
    parser.add_argument("--grid", nargs="+", default=grid, metavar="IMAGESxROUNDS")
    parser.add_argument("--flags", default="", help="more flags of djip fit, for every fit")
    parser.add_argument("--out", type=Path, default=Path("docs/performance/fit"))
    parser.add_argument("options", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()
    work = args.out.with_name(args.out.name + "-fits")
    for job in args.grid:
        record = work / f"{job}.json"
        if record.exists():
            continue
        images, rounds = job.split("x")
        epoch, images_of_epoch = teacher_epoch(
            args.cfg, args.options
        )  # next to its fit, since the machine's load changes
        flags = [
            *(["--cfg", args.cfg] if args.cfg else []),
            "--images",
            images,
            "--rounds",
            rounds,
            *shlex.split(args.flags),
        ]
        run_command(
            ["fit", "--out", str(record.with_suffix(".safetensors")), *flags, *args.options]
        )
        content = json.loads(record.read_text())
        record.write_text(
            json.dumps(
                content | {"teacher_epoch_seconds": epoch, "teacher_epoch_images": images_of_epoch}
            )
        )
    fits = {job: json.loads((work / f"{job}.json").read_text()) for job in args.grid}
    long = fits[args.grid[-1]]["about"]
    rows = []
    for job, fit in fits.items():
        about, (images, rounds) = fit["about"], job.split("x")
        gain = about["after"]["cmi"] - about["before"]["cmi"]
        looks, moves = len(fit["history"]) + 1, min(len(fit["history"]), int(rounds))
        rows.append(
            {
                "images": int(images),
                "rounds": int(rounds),
                "rounds run": len(fit["history"]) - 1,
                "seconds": about["seconds"],
                "teacher-epochs, by the clock": about["seconds"] / fit["teacher_epoch_seconds"],
                "by passes": about["images"]
                * (looks + 2 * moves)
                / (3 * fit["teacher_epoch_images"]),
                "CMI, all training images (nats)": about["after"]["cmi"],
                "of the long fit's (%)": 100 * about["after"]["cmi"] / long["after"]["cmi"],
                "CE (nats)": about["after"]["ce"],
                "accuracy (%)": about["after"]["accuracy"],
                "price dCE / dCMI": (about["after"]["ce"] - about["before"]["ce"]) / gain
                if gain > 0
                else float("nan"),
            }
        )
    print(
        write(
            rows,
            args.out,
            f"{machine()}; plain teacher: CMI {long['before']['cmi']:.4f} nats, "
            f"CE {long['before']['ce']:.4f}",
        )
    )
    picture(fits, rows, args.out)


def picture(fits: dict[str, dict], rows: list[dict[str, object]], path: Path) -> None:
    """Left: the rounds of every fit, on its own images; right: the chosen lenses, on all images."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (way, end) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for fit, row in zip(fits.values(), rows, strict=True):
        rounds = range(len(fit["history"]))
        spent = [
            fit["about"]["images"] * (2 + 3 * k) / (3 * fit["teacher_epoch_images"]) for k in rounds
        ]
        images, label = row["images"], f"{row['images']} images, {row['rounds']} rounds"
        (line,) = way.plot(spent, [r["cmi"] for r in fit["history"]], marker=".", label=label)
        end.plot(
            row["by passes"], row["CMI, all training images (nats)"], "o", color=line.get_color()
        )
        end.annotate(
            f" {images} x {row['rounds']}",
            (row["by passes"], row["CMI, all training images (nats)"]),
            va="bottom",
        )
    end.axhline(
        0.95 * rows[-1]["CMI, all training images (nats)"],
        color="0.6",
        linewidth=0.8,
        linestyle="--",
    )
    way.set_ylabel("CMI before each round, images of the fit (nats)")
    end.set_ylabel("CMI of the lens taken, all training images (nats)")
    way.legend(frameon=False)
    for axis in (way, end):
        axis.axvline(2, color="0.6", linewidth=0.8, linestyle="--")
        axis.set_xlabel("compute, in epochs of training the teacher (by passes)")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


main()
