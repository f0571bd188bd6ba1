"""How few images and rounds a lens needs: its CMI against the compute of its fit.

    python benchmarks/fit.py --cfg CFG [--grid IMAGESxROUNDS ...] [--flags '--patience 2']
                             [--out docs/performance/fit] [KEY VALUE ...]

Runs ``djip fit`` once for every IMAGESxROUNDS of the grid, the last one being the long fit that the
others are compared with; fits that have been run are not run again.  A teacher-epoch is what one
epoch of *training* the teacher costs (forward, backward, step): by the clock, timed on a few
batches right before each fit; or by passes, which no load disturbs, where a training step counts
as three forward passes, an update of the quantization tables as two.  The seconds of a fit are
those of its rounds.
"""

import argparse
import json
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from timing import machine, write  # noqa: E402

from djip_ext.bench.dataset.image_sets import load_image_sets  # noqa: E402
from djip_ext.bench.dataset.loader import DeviceLoader  # noqa: E402
from djip_ext.bench.engine.cfg import load_cfg  # noqa: E402
from djip_ext.bench.engine.run import build_teacher, resolve_device  # noqa: E402
from djip_ext.cli.main import run_command  # noqa: E402
from djip_ext.utils.networks import autocast, logits_of  # noqa: E402

GRID = ["500x6", "1000x6", "1000x10", "1500x10", "2500x6", "2500x20"]
CMI_COLUMN = "CMI, all training images (nats)"


def teacher_epoch(cfg_path: str, options: list[str], batches: int = 12) -> tuple[float, int]:
    """Seconds of one training epoch of the teacher, and its images.

    Extrapolated from the median of some batches.
    """
    cfg = load_cfg(cfg_path or None, options)
    device = resolve_device(cfg.BENCH.DEVICE)
    train_set, _ = load_image_sets(cfg)
    teacher = build_teacher(cfg, train_set.num_classes).to(device)
    teacher = teacher.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(teacher.parameters(), lr=1e-9, momentum=0.9)
    loader = DeviceLoader(train_set, 64, device, augment=True)
    seconds = []
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


def run_fit(job: str, record: Path, args: argparse.Namespace) -> None:
    """Fit a lens with IMAGESxROUNDS ``job``, next to a timing of the teacher, in one ``record``."""
    images, rounds = job.split("x")
    # Right before its fit, since the load of the machine changes
    seconds, images_of_epoch = teacher_epoch(args.cfg, args.options)
    flags = ["--cfg", args.cfg] if args.cfg else []
    flags += ["--images", images, "--rounds", rounds, "--batch-size", "64"]
    flags += shlex.split(args.flags)
    lens = record.with_suffix(".safetensors")
    run_command(["fit", "--out", str(lens), *flags, *args.options])
    content = json.loads(record.read_text())
    content |= {"teacher_epoch_seconds": seconds, "teacher_epoch_images": images_of_epoch}
    record.write_text(json.dumps(content))


def row_of(job: str, fit: dict[str, Any], long: dict[str, Any]) -> dict[str, object]:
    """The numbers of one fit; ``long`` is what the long fit says of itself."""
    about = fit["about"]
    before, after = about["before"], about["after"]
    images, rounds = map(int, job.split("x"))
    history = len(fit["history"])
    # A pass for the plain teacher, one before each round and after the last; two in each round
    passes = (history + 1) + 2 * min(history, rounds)
    gain = after["cmi"] - before["cmi"]
    return {
        "images": images,
        "rounds": rounds,
        "rounds run": history - 1,
        "seconds": about["seconds"],
        "teacher-epochs, by the clock": about["seconds"] / fit["teacher_epoch_seconds"],
        "by passes": about["images"] * passes / (3 * fit["teacher_epoch_images"]),
        CMI_COLUMN: after["cmi"],
        "of the long fit's (%)": 100 * after["cmi"] / long["after"]["cmi"],
        "CE (nats)": after["ce"],
        "accuracy (%)": after["accuracy"],
        "price dCE / dCMI": (after["ce"] - before["ce"]) / gain if gain > 0 else float("nan"),
    }


def main() -> None:
    """Run what has not been run, and write table and picture of the whole grid."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", default="", help="a configuration of the embedded benchmark")
    parser.add_argument("--grid", nargs="+", default=GRID, metavar="IMAGESxROUNDS")
    parser.add_argument("--flags", default="", help="more flags of djip fit, for every fit")
    parser.add_argument("--out", type=Path, default=Path("docs/performance/fit"))
    parser.add_argument("options", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()
    work = args.out.with_name(args.out.name + "-fits")
    for job in args.grid:
        record = work / f"{job}.json"
        if not record.exists():
            run_fit(job, record, args)
    fits = {job: json.loads((work / f"{job}.json").read_text()) for job in args.grid}
    long = fits[args.grid[-1]]["about"]
    rows = [row_of(job, fit, long) for job, fit in fits.items()]
    plain = f"CMI {long['before']['cmi']:.4f} nats, CE {long['before']['ce']:.4f}"
    print(write(rows, args.out, f"{machine()}; plain teacher: {plain}"))
    picture(list(fits.values()), rows, args.out)


def picture(fits: list[dict[str, Any]], rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the rounds of every fit on its own images, and the lenses taken on all images."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (way, end) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for fit, row in zip(fits, rows, strict=True):
        images, rounds = row["images"], row["rounds"]
        own, whole = fit["about"]["images"], fit["teacher_epoch_images"]
        spent = [own * (2 + 3 * k) / (3 * whole) for k in range(len(fit["history"]))]
        cmi = [entry["cmi"] for entry in fit["history"]]
        (line,) = way.plot(spent, cmi, marker=".", label=f"{images} images, {rounds} rounds")
        place = row["by passes"], row[CMI_COLUMN]
        end.plot(*place, "o", color=line.get_color())
        end.annotate(f" {images} x {rounds}", place, va="bottom")
    grey = {"color": "0.6", "linewidth": 0.8, "linestyle": "--"}
    end.axhline(0.95 * rows[-1][CMI_COLUMN], **grey)
    way.set_ylabel("CMI before each round, images of the fit (nats)")
    end.set_ylabel("CMI of the lens taken, all training images (nats)")
    way.legend(frameon=False)
    for axis in (way, end):
        axis.axvline(2, **grey)
        axis.set_xlabel("compute, in epochs of training the teacher (by passes)")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
