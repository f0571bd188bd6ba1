"""What a teacher says at the distiller's temperature, on the students' training images and on test images, arm by arm, as CSV and Markdown.

    python results/cifar100/regime.py TABLE.yaml [--out FILE.csv] [--teacher FILE]     from the root of the checkout, CIFAR-100 in ./data

The arms are those of the table; with --teacher, other weights of the same network, those without a lens alone; images without augmentation. For each T: CMI, entropy, cross entropy and margin (probability of the
label minus the largest other one) of softmax(logits / T), in nats and as a number; accuracy in %.
"""

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from djip_ext import conditional_mutual_information  # noqa: E402
from djip_ext.bench.dataset import load_run_sets  # noqa: E402
from djip_ext.bench.imageset import ImageSet  # noqa: E402
from djip_ext.bench.loader import DeviceLoader  # noqa: E402
from djip_ext.bench.plan import make_plan  # noqa: E402
from djip_ext.bench.run import build_teacher  # noqa: E402
from djip_ext.bench.table import load_table  # noqa: E402
from djip_ext.lens_file import read_lens  # noqa: E402
from djip_ext.measure import autocast  # noqa: E402
from djip_ext.teacher import DJIPTeacher  # noqa: E402

TEMPERATURES = (1, 2, 4, 8)


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
    others = logs.scatter(1, labels[:, None], -torch.inf).amax(1)
    return {
        "cmi": conditional_mutual_information(logits, labels, logits.shape[1], temperature).total,
        "entropy": -(logs.exp() * logs).sum(1).mean().item(),
        "ce": -own.mean().item(),
        "margin": (own.exp() - others.exp()).mean().item(),
        "accuracy": 100 * (logits.argmax(1) == labels).float().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table")
    parser.add_argument("--out")
    parser.add_argument("--teacher")
    args = parser.parse_args()
    table = load_table(args.table)
    steps = {step.name.rsplit(", ", 2)[1]: step for step in make_plan(table, f"output/{table.name}") if step.kind == "student" and step.seed == 0}
    rows = []
    for arm, step in steps.items():
        if step.lacks_its_lens():
            print(f"# {arm}: {step.lens} is still to be fitted", file=sys.stderr)
            continue
        if args.teacher and step.lens_file:
            continue
        cfg = step.settings()
        cfg.BENCH.TEACHER_CHECKPOINT = args.teacher or cfg.BENCH.TEACHER_CHECKPOINT
        train, test = load_run_sets(cfg)
        network = build_teacher(cfg, train.num_classes).to(memory_format=torch.channels_last)
        teacher = DJIPTeacher(network, read_lens(step.lens), train.mean, train.std)
        for images, data in (("training", train), ("test", test)):
            logits, labels = answers(teacher, data, cfg.BENCH.PRECISION)
            rows += [{"arm": arm, "images": images, "n": len(labels), "T": t} | described(logits, labels, t) for t in TEMPERATURES]
        print(f"# {arm}", file=sys.stderr, flush=True)
    if args.out:
        with open(args.out, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()} for row in rows)
    print("| arm | images | n | T | CMI | entropy | cross entropy | margin | accuracy (%) |\n|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = " | ".join(f"{row[key]:.4f}" for key in ("cmi", "entropy", "ce", "margin"))
        print(f"| {row['arm']} | {row['images']} | {row['n']} | {row['T']} | {numbers} | {row['accuracy']:.2f} |")


main()
