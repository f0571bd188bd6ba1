"""What a teacher says at the distiller's temperature, arm by arm, as CSV and Markdown.

    python results/cifar100/regime.py TABLE.yaml [--out FILE.csv] [--teacher FILE]
                                                 [--temperatures T ...]

from the root of the checkout, with CIFAR-100 in ./data.  On the students' training images and on
test images, without augmentation.  The arms are those of the table; with --teacher, other weights
of the same network, those arms alone that have no lens.  For each T: CMI, entropy, entropy among
the other classes (without the label's, which DKD splits off), cross entropy and margin (probability
of the label minus the largest other one) of softmax(logits / T), in nats and as a number; accuracy
in %.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from djip_ext import conditional_mutual_information  # noqa: E402
from djip_ext.bench.dataset.image_sets import load_run_sets  # noqa: E402
from djip_ext.bench.dataset.imageset import ImageSet  # noqa: E402
from djip_ext.bench.dataset.loader import DeviceLoader  # noqa: E402
from djip_ext.bench.engine.run import build_teacher  # noqa: E402
from djip_ext.experiments.plan import Step, make_plan  # noqa: E402
from djip_ext.experiments.report import markdown_table  # noqa: E402
from djip_ext.experiments.table import load_table  # noqa: E402
from djip_ext.lens.io import read_lens  # noqa: E402
from djip_ext.metrics import entropy_among_others  # noqa: E402
from djip_ext.teacher import DJIPTeacher  # noqa: E402
from djip_ext.utils.files import write_csv  # noqa: E402
from djip_ext.utils.networks import autocast  # noqa: E402

TEMPERATURES = (1, 2, 4, 8)
NUMBERS = {
    "cmi": "CMI",
    "entropy": "entropy",
    "others": "entropy among the others",
    "ce": "cross entropy",
    "margin": "margin",
}


@torch.no_grad()
def answers(teacher: nn.Module, data: ImageSet, precision: str) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,)."""
    logits = []
    for image, _ in DeviceLoader(data, 250):
        with autocast(image.device, precision):
            logits.append(teacher(image)[0].float())
    return torch.cat(logits), data.labels


def described(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, float]:
    """The quantities of softmax(logits / temperature)."""
    logs = F.log_softmax(logits / temperature, dim=1)
    own = logs.gather(1, labels[:, None])[:, 0]
    largest = logs.scatter(1, labels[:, None], -torch.inf).amax(1)
    return {
        "cmi": conditional_mutual_information(logits, labels, logits.shape[1], temperature).total,
        "entropy": -(logs.exp() * logs).sum(1).mean().item(),
        "others": entropy_among_others(logits, labels, temperature).mean().item(),
        "ce": -own.mean().item(),
        "margin": (own.exp() - largest.exp()).mean().item(),
        "accuracy": 100 * (logits.argmax(1) == labels).float().mean().item(),
    }


def rows_of(
    arm: str, step: Step, checkpoint: str | None, temperatures: Sequence[float]
) -> list[dict[str, str | int | float]]:
    """The rows of one arm: training and test images, each at every temperature."""
    cfg = step.settings()
    cfg.BENCH.TEACHER_CHECKPOINT = checkpoint or cfg.BENCH.TEACHER_CHECKPOINT
    train, test = load_run_sets(cfg)
    network = build_teacher(cfg, train.num_classes).to(memory_format=torch.channels_last)
    teacher = DJIPTeacher(network, read_lens(step.lens), train.mean, train.std)
    rows = []
    for images, data in (("training", train), ("test", test)):
        logits, labels = answers(teacher, data, cfg.BENCH.PRECISION)
        for temperature in temperatures:
            found = described(logits, labels, temperature)
            row = {"arm": arm, "images": images, "n": len(labels), "T": f"{temperature:g}"}
            rows.append(row | {key: round(value, 5) for key, value in found.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("table", help="a table of results")
    parser.add_argument("--out", help="CSV file to write")
    parser.add_argument("--teacher", help="other weights of the table's teacher")
    parser.add_argument(
        "--temperatures", nargs="+", type=float, default=TEMPERATURES, help="that divide the logits"
    )
    args = parser.parse_args()
    table = load_table(args.table)
    steps: dict[str, Step] = {}
    for step in make_plan(table, f"output/{table.name}"):
        if step.kind == "student" and step.lens and step.seed == 0:  # not those of a bar
            steps[step.name.rsplit(", ", 2)[1]] = step
    rows = []
    for arm, step in steps.items():
        if step.lacks_its_lens():
            print(f"# {arm}: {step.lens} is still to be fitted", file=sys.stderr)
        elif not (args.teacher and step.lens_file):
            rows += rows_of(arm, step, args.teacher, args.temperatures)
            print(f"# {arm}", file=sys.stderr, flush=True)
    if args.out:
        write_csv(args.out, rows)
    lines = [["arm", "images", "n", "T", *NUMBERS.values(), "accuracy (%)"]]
    for row in rows:
        numbers = [f"{row[key]:.4f}" for key in NUMBERS]
        place = [str(row[key]) for key in ("arm", "images", "n", "T")]
        lines.append([*place, *numbers, f"{row['accuracy']:.2f}"])
    print(markdown_table(lines))


if __name__ == "__main__":
    main()
