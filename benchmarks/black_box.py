"""A lens fitted without gradients against one fitted with them, at equal cost and equal CMI.

    python benchmarks/black_box.py --teacher NAME --checkpoint FILE [--data-root DIR] [--images N]
        [--passes 10 30 100] [--out docs/performance/black_box] [KEY VALUE ...]

Cost is counted in forward passes over N training images.  A fit without gradients spends one per
tables that it tries; a round of a fit with gradients spends one to measure and two for its steps
(forward and backward), and both spend one on the teacher without a lens.  Fits are made on
CIFAR-100 with the default settings but for the accuracy floor,
which is off.

Two fits rarely end at the same CMI.  So the tables of each are scaled by a common factor until the
gain is the middle of the band, after the fit and not counted, and the cross entropy paid there is
the price at equal CMI.  The same tables on as many other training images show what of it was only
learnt by heart: cross entropy paid per nat of CMI gained.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from timing import machine, write  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from djip_ext.bench.dataset.image_sets import load_image_sets, make_loader  # noqa: E402
from djip_ext.bench.engine.cfg import load_cfg  # noqa: E402
from djip_ext.bench.engine.run import build_teacher  # noqa: E402
from djip_ext.fit.loop import FitResult, fit_lens  # noqa: E402
from djip_ext.lens.jpeg_lens import JPEGLens  # noqa: E402
from djip_ext.lens.normalisation import Normalisation  # noqa: E402
from djip_ext.metrics.measurement import measure  # noqa: E402

TARGET = 0.3  # the middle of the default band, in nats
STEP = 3  # passes of one round with gradients


def price_at(
    target: float, gain_and_price: Callable[[float], tuple[float, float]], tries: int = 6
) -> tuple[float, float]:
    """Cross entropy paid at a gain of ``target``, and the factor of the tables that leads there.

    ``gain_and_price`` maps ln(factor) to (gain in CMI, cross entropy paid).
    """
    points = [_point(0.0, gain_and_price)]
    while abs(points[-1][1] - target) > 0.02 * target and len(points) < tries:
        x, gain, _ = min(points, key=lambda p: abs(p[1] - target))
        slope = 2.0
        if len(points) > 1:
            (a, gain_a, _), (b, gain_b, _) = sorted(points, key=lambda p: abs(p[1] - target))[:2]
            slope = max(0.5, math.log(gain_a / gain_b) / (a - b))
        x += min(max(math.log(target / gain) / slope, -1.0), 1.0)
        points.append(_point(x, gain_and_price))
    (x, gain, paid), (_, gain_b, paid_b) = (
        sorted(points, key=lambda p: abs(p[1] - target))[:2] if len(points) > 1 else points * 2
    )
    # The last few hundredths of a nat on the line through the two nearest points.
    rate = (paid - paid_b) / (gain - gain_b) if gain != gain_b else 1.5
    return paid + rate * (target - gain), math.exp(x)


def _point(
    x: float, gain_and_price: Callable[[float], tuple[float, float]]
) -> tuple[float, float, float]:
    """ln(factor), gain and price; a gain of nothing is taken for a thousandth of a nat."""
    gain, paid = gain_and_price(x)
    return x, max(gain, 1e-3), paid


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panel, axes = pyplot.subplots(figsize=(5, 3.4), layout="constrained")
    for name in dict.fromkeys(row["fit"] for row in rows):
        mine = [row for row in rows if row["fit"] == name]
        x = [row["budget"] for row in mine]
        y = [row["CE paid at equal CMI"] for row in mine]
        (line,) = axes.plot(x, y, label=name, zorder=1)
        for row in mine:  # hollow: the fit itself did not reach the band
            face = line.get_color() if row["in band"] == "yes" else "white"
            place = row["budget"], row["CE paid at equal CMI"]
            axes.scatter(*place, color=face, edgecolors=line.get_color(), zorder=2)
    axes.set(
        xscale="log",
        xlabel="budget, forward passes over the images",
        ylabel=f"CE paid for {TARGET} nats of CMI",
    )
    axes.legend(frameon=False)
    panel.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data-root", default="./data")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--passes", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--out", type=Path, default=Path("docs/performance/black_box"))
    parser.add_argument("options", nargs="*", metavar="KEY VALUE")
    args = parser.parse_args()
    options = ["DISTILLER.TEACHER", args.teacher, "BENCH.TEACHER_CHECKPOINT", args.checkpoint]
    options += ["BENCH.DATA_ROOT", args.data_root, *args.options]
    cfg = load_cfg(None, options)
    train, _ = load_image_sets(cfg)
    both = train.subset(2 * args.images / len(train.labels))
    half = torch.arange(len(both.labels)) % 2 == 0  # labels alternate at random, as the set does
    part = both.select(half.nonzero().flatten())
    other = both.select((~half).nonzero().flatten())
    precision = cfg.BENCH.PRECISION
    teacher: nn.Module = build_teacher(cfg, train.num_classes).eval().requires_grad_(False)
    teacher.to(memory_format=torch.channels_last)
    normalisation = Normalisation(part.mean, part.std)
    whole: Iterable[Any] = make_loader(part, 250)
    unseen: Iterable[Any] = make_loader(other, 250)
    plain = measure(teacher, unseen, part.num_classes, None, 1.0, precision)

    def fit(gradients: bool, passes: int) -> FitResult:
        how: dict[str, Any] = {"rounds": (passes - 2) // STEP}
        if not gradients:
            how = {"queries": passes * len(part.labels), "checkpoint": kept}
        return fit_lens(
            teacher,
            make_loader(part, 64, shuffle=True) if gradients else whole,
            part.num_classes,
            mean=part.mean,
            std=part.std,
            gradients=gradients,
            progress=False,
            precision=precision,
            max_accuracy_drop=100.0,
            **how,
        )

    kept = args.out.with_suffix(".fit.pth")  # a larger budget goes on where the smaller one ended
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.unlink(missing_ok=True)
    rows: list[dict[str, Any]] = []
    for passes in args.passes:
        for gradients in (False, True):
            result = fit(gradients, passes)
            before, after, lens = result.before, result.after, result.lens

            def gain_and_price(
                x: float, lens: JPEGLens = lens, before: Any = before, images: Any = whole
            ) -> tuple[float, float]:
                scaled = JPEGLens(lens.q.detach() * math.exp(x), kappa=lens.kappa).freeze()

                def view(image: Tensor) -> Tensor:
                    return normalisation.through(scaled, image)

                now = measure(teacher, images, part.num_classes, view, 1.0, precision)
                return now.cmi.total - before.cmi.total, now.ce - before.ce

            price, factor = price_at(TARGET, gain_and_price)
            gain, paid = gain_and_price(math.log(factor), before=plain, images=unseen)
            spent = STEP * (len(result.history) - 1) + 2 if gradients else len(result.history) + 1
            rows.append(
                {
                    "fit": "with gradients" if gradients else "without gradients",
                    "budget": passes,
                    "passes": min(spent, passes),
                    "in band": "yes" if result.in_band else "no",
                    "CMI gained": after.cmi.total - before.cmi.total,
                    "CE paid": after.ce - before.ce,
                    "accuracy lost, points": before.accuracy - after.accuracy,
                    "CE paid at equal CMI": price,
                    "factor to get there": factor,
                    "CE per nat, other images": paid / max(gain, 1e-3),
                }
            )
            print(rows[-1], flush=True)
            title = (
                f"{args.teacher} on {len(part.labels)} training images of CIFAR-100, {precision}; "
                f"{machine()}."
            )
            text = write(rows, args.out, title)
            figure(rows, args.out.with_suffix(".png"))
    kept.unlink(missing_ok=True)
    print(text)


if __name__ == "__main__":
    main()
