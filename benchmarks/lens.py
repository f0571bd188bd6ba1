"""The lens against other JPEG layers: time and peak memory, ratios in one interleaved run.

    python benchmarks/lens.py [--jpeg-dl CHECKOUT] [--diff-jpeg CHECKOUT] [--diffjpeg CHECKOUT]
                              [--rounds 15] [--threads N] [--out PATH]

kornia is taken when pip has installed it; without a checkout of JPEG-DL a naive five-bin layer
stands in for it, under that name.  Prints, and writes as CSV and Markdown, the medians in
milliseconds and the peak memory in units of the images, with a picture; the ratios; and the share
that the lens has in a teacher's forward pass.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import peers  # noqa: E402
import torch  # noqa: E402
from peers import Peer  # noqa: E402
from timing import interleaved, machine, peak_bytes, write  # noqa: E402
from torch import Tensor, nn  # noqa: E402

SIZES = ((128, 32), (32, 224))
MODES = ("forward", "to q", "to q and x")
COLOURS = dict(zip(MODES, ("#8c8c8c", "#3b6ea5", "#c1543c"), strict=True))


def candidates(args: argparse.Namespace, batch: int, size: int) -> dict[str, Callable[[], Peer]]:
    """What can be compared here, by name; nothing is built yet."""
    found: dict[str, Callable[[], Peer]] = {
        "lens, compiled": lambda: peers.lens(compiled=True),
        "lens": peers.lens,
        "lens, alpha = 5": lambda: peers.lens(kappa=None, alpha=5.0),
        "lens, JPEG-DL's settings": lambda: peers.lens(
            kappa=None, alpha=5.0, window=5, max_index=127
        ),
    }
    if not args.compiled:
        del found["lens, compiled"]
    if args.jpeg_dl:
        found["JPEG-DL"] = lambda: peers.jpeg_dl(Path(args.jpeg_dl), size)
    else:
        found["plain five bins (stand-in for JPEG-DL)"] = peers.plain_five_bins
    try:
        import kornia  # noqa: F401

        found["kornia"] = lambda: peers.kornia_codec(batch)
    except ImportError:
        print("kornia is not installed (pip install kornia): left out")
    if args.diff_jpeg:
        found["Diff-JPEG"] = lambda: peers.diff_jpeg(Path(args.diff_jpeg), batch)
    if args.diffjpeg:
        found["DiffJPEG"] = lambda: peers.diffjpeg(Path(args.diffjpeg), size)
    return found | {
        "Pillow": peers.pillow,
        "torchvision": peers.torchvision_codec,
        "copy": lambda: Peer(torch.Tensor.clone, []),
    }


def call_of(peer: Peer, mode: str, images: Tensor, weight: Tensor) -> Callable[[], object] | None:
    """One forward or forward + backward pass; ``None`` for what has no gradients."""
    if mode == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return peer.apply(images)

        return forward
    if not peer.tables:
        return None
    x = images.clone().requires_grad_(mode == "to q and x")
    wanted = peer.tables + [x] * x.requires_grad
    return lambda: torch.autograd.grad(peer.apply(x), wanted, weight)


def scene(batch: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth images with some noise in [0, 255], and a gradient to pull back."""
    torch.manual_seed(0)
    coarse = torch.nn.functional.interpolate(
        torch.rand(batch, 3, size // 8, size // 8) * 255, size=(size, size), mode="bicubic"
    )
    images = (coarse + 8 * torch.randn(batch, 3, size, size)).clamp(0, 255)
    return images.to(peers.DEVICE), torch.randn(batch, 3, size, size).to(peers.DEVICE)


def compare(args: argparse.Namespace) -> list[dict[str, object]]:
    """A row per size and layer: milliseconds of every mode, and peak memory."""
    rows = []
    for batch, size in args.sizes:
        images, weight = scene(batch, size)
        built = {name: build() for name, build in candidates(args, batch, size).items()}
        table: dict[str, dict[str, object]] = {
            name: {"images": f"{batch} x {size} x {size}", "layer": name} for name in built
        }
        for mode in MODES:
            calls = {name: call_of(peer, mode, images, weight) for name, peer in built.items()}
            medians = interleaved({name: call for name, call in calls.items() if call}, args.rounds)
            for name, seconds in medians.items():
                table[name][f"{mode}, ms"] = 1e3 * seconds
        for name in table:
            table[name] |= memory(args, batch, size, name)
        rows += table.values()
    return rows


def memory(args: argparse.Namespace, batch: int, size: int, name: str) -> dict[str, float]:
    """Peak memory of the three modes in units of the images, measured in a process of its own."""
    if not args.memory:
        return {}
    command = [sys.executable, __file__, "--peak", json.dumps([batch, size, name])]
    for flag in ("jpeg_dl", "diff_jpeg", "diffjpeg"):
        checkout = getattr(args, flag)
        if checkout:
            command += [f"--{flag.replace('_', '-')}", checkout]
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def print_peak(args: argparse.Namespace) -> None:
    """Print what :func:`memory` asks a process of its own for."""
    batch, size, name = json.loads(args.peak)
    images, weight = scene(batch, size)
    peer = candidates(args, batch, size)[name]()
    found = {}
    for mode in MODES:
        call = call_of(peer, mode, images, weight)
        peak = peak_bytes(call) if call else None
        if peak is not None:
            found[f"{mode}, peak / images"] = peak / (images.numel() * images.element_size())
    print(json.dumps(found))


def shares(args: argparse.Namespace) -> list[dict[str, object]]:
    """The lens next to a teacher's forward pass, both in float32 and eval mode."""
    from torchvision.models import resnet34

    from djip_ext.bench.models import cifar_model_dict

    resnet32x4 = cifar_model_dict["resnet32x4"][0](num_classes=100)
    return [
        share("resnet32x4", resnet32x4, 64, 32, args),
        share("ResNet-34", resnet34(), 8, 224, args),
    ]


def share(
    name: str, network: nn.Module, batch: int, size: int, args: argparse.Namespace
) -> dict[str, object]:
    """Milliseconds of ``network`` and of the lens, and the lens as part of the network in %."""
    network = network.eval().to(peers.DEVICE).to(memory_format=torch.channels_last)
    images, _ = scene(batch, size)
    normalised = images.to(memory_format=torch.channels_last) / 128 - 1
    lenses = {"lens": peers.lens()}
    if args.compiled:
        lenses["lens, compiled"] = peers.lens(compiled=True)

    def call(function: Callable[[Tensor], object], argument: Tensor) -> Callable[[], object]:
        return torch.no_grad()(lambda: function(argument))

    calls = {"teacher": call(network, normalised)}
    calls |= {key: call(lens.apply, images) for key, lens in lenses.items()}
    medians = interleaved(calls, args.rounds)
    row: dict[str, object] = {"teacher": name, "images": f"{batch} x {size} x {size}"}
    row |= {f"{key}, ms": 1e3 * seconds for key, seconds in medians.items()}
    teacher = medians.pop("teacher")
    return row | {f"{key} / teacher, %": 100 * value / teacher for key, value in medians.items()}


def ratios(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Of each layer, how many times as long as the lens it takes."""
    ours = {(row["images"], row["layer"]): row for row in rows}
    out = []
    for row in rows:
        if str(row["layer"]).startswith("lens"):
            continue
        line: dict[str, object] = {"images": row["images"], "layer": row["layer"]}
        for title, layer in (("compiled", "lens, compiled"), ("eager", "lens")):
            base = ours.get((row["images"], layer), {})
            line |= {
                f"{mode} / {title}": row[key] / base[key]
                for mode in MODES
                if (key := f"{mode}, ms") in row and key in base
            }
        out.append(line)
    return out


def picture(rows: list[dict[str, object]], path: Path) -> None:
    """Draw the milliseconds of every layer, a panel per size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(row["images"] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(sizes), figsize=(5.5 * len(sizes), 4), squeeze=False, layout="constrained"
    )
    for axis, size in zip(axes[0], sizes, strict=True):
        chosen = [row for row in rows if row["images"] == size][::-1]
        for k, (mode, colour) in enumerate(COLOURS.items()):
            key = f"{mode}, ms"
            places = [i + 0.27 * (1 - k) for i, row in enumerate(chosen) if key in row]
            axis.barh(
                places,
                [row[key] for row in chosen if key in row],
                height=0.25,
                color=colour,
                label=mode,
            )
        axis.set_yticks(range(len(chosen)), [str(row["layer"]).split(" (")[0] for row in chosen])
        axis.set_xscale("log")
        axis.set_xlabel("milliseconds (median)")
        axis.set_title(f"{size} images")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, loc="lower right")
    figure.savefig(path.with_suffix(".png"), dpi=110)


def _size(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def main() -> None:
    """Time the layers, and write the tables and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jpeg-dl", metavar="CHECKOUT")
    parser.add_argument("--diff-jpeg", metavar="CHECKOUT")
    parser.add_argument("--diffjpeg", metavar="CHECKOUT")
    parser.add_argument(
        "--rounds", type=int, default=15, help="repetitions, of which the median is taken"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="of torch; 0: all. One is steadier on a machine that others use",
    )
    parser.add_argument(
        "--sizes", type=_size, nargs="+", default=SIZES, metavar="BxS", help="batches, like 32x224"
    )
    parser.add_argument(
        "--no-compile", dest="compiled", action="store_false", help="leave the compiled lens out"
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--no-teachers", dest="teachers", action="store_false")
    parser.add_argument("--out", type=Path, default=Path("docs/performance/lens"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(args)
        return
    title = f"{machine()}; medians of {args.rounds} interleaved runs"
    rows = compare(args)
    print(write(rows, args.out, title))
    heading = "Times as long as the lens takes, compiled and eager"
    print(write(ratios(rows), args.out.with_name(f"{args.out.name}-ratios"), heading))
    picture(rows, args.out)
    if args.teachers:
        heading = "The lens next to a teacher's forward pass"
        print(write(shares(args), args.out.with_name(f"{args.out.name}-shares"), heading))


if __name__ == "__main__":
    main()
