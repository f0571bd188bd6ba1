"""What CMI costs in cross entropy, by start, quantizer, variant and price: see docs/defaults.md.

    python results/cifar100/frontier.py [NAME ...]

from the root of the checkout, with CIFAR-100 in ./data, fits (or, with ``--rounds 0``, only
measures) each named row or all of them, skipping rows that are done, on 1,500 of the 2,500 images
of the 5 % set, measures on all 2,500, and prints the table of every row that is done.
"""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from djip_ext.cli.main import run_command  # noqa: E402
from djip_ext.experiments.report import markdown_table  # noqa: E402
from djip_ext.experiments.statistics import summarise  # noqa: E402

FOLDER = Path("results/cifar100/tables/frontier")
COMMON = (
    "--cfg configs/cifar100/fewshot/kd_wrn_16_2_resnet8.yaml --images 1500 --batch-size 64 "
    "DISTILLER.TEACHER wrn_16_2 BENCH.PRECISION bfloat16 BENCH.FRACTION 0.05 "
    "BENCH.TEACHER_CHECKPOINT results/cifar100/teacher/wrn_16_2.safetensors"
)
FIT = "--rounds 10 --cmi-gain 0.15 0.25 --max-accuracy-drop 20"
ROWS = {
    "JPEG, quality 92": "--rounds 0 --alpha 5 --start jpeg:92",
    "JPEG, quality 85": "--rounds 0 --alpha 5 --start jpeg:85",
    "equal steps of 10": "--rounds 0 --alpha 5 --start 10",
    "random, median 6": "--rounds 0 --alpha 5 --start random:6 --seed 0",
    "random, median 8": "--rounds 0 --alpha 5 --start random:8 --seed 0",
    "default": FIT,
    "start JPEG 70": f"{FIT} --start jpeg:70",
    "start sensitivity": f"{FIT} --start sensitivity:20",
    "alpha = 5": f"{FIT} --alpha 5",
    "JPEG-DL's code": f"{FIT} --alpha 5 --max-index 127 --window 5 --start 1 --q-min 0.01",
    "fixed centres": f"{FIT} --variant fixed",
    "literal": f"{FIT} --variant literal",
    "straight-through": f"{FIT} --gradient straight-through",
    "T = 4": "--rounds 10 --cmi-gain 0.04 0.08 --max-accuracy-drop 30 --temperature 4",
    "lambda 0.5": f"{FIT} --lam 0.5",
    "lambda 1": f"{FIT} --lam 1",
    "lr 0.02": "--rounds 20 --cmi-gain 0.15 0.25 --max-accuracy-drop 20 --lr 0.02",
    "batch 500, lr 0.2": f"{FIT} --batch-size 500 --lr 0.2",
}
for seed in range(1, 5):
    ROWS |= {
        f"default, seed {seed}": f"{FIT} --seed {seed}",
        f"literal, seed {seed}": f"{FIT} --variant literal --seed {seed}",
        f"straight-through, seed {seed}": f"{FIT} --gradient straight-through --seed {seed}",
    }


HEADER = ["row", "CMI (nats)", "CE (nats)", "accuracy (%)", "price: dCE / dCMI", "seconds", "flags"]
MEASURABLE = 0.02  # nats of CMI; below it a price is noise


def path_of(name: str) -> Path:
    """The record of a row; its lens lies beside it."""
    return FOLDER / f"{''.join(c if c.isalnum() else '-' for c in name)}.json"


def main(names: list[str]) -> None:
    """Fit the rows that are not done and print the table."""
    for name in names or ROWS:
        if not path_of(name).exists():
            lens = path_of(name).with_suffix(".safetensors")
            run_command(["fit", "--out", str(lens), *shlex.split(ROWS[name]), *shlex.split(COMMON)])
    done = {
        name: json.loads(path_of(name).read_text())["about"]
        for name in ROWS
        if path_of(name).exists()
    }
    if not done:
        return
    plain = next(iter(done.values()))["before"]
    lines = [HEADER, ["plain teacher", *numbers(plain), "", "", ""]]
    for name, about in done.items():
        cost = price(about)
        text = "-" if math.isnan(cost) else f"{cost:.3f}"
        row = [name, *numbers(about["after"]), text, f"{about['seconds']:.0f}", f"`{ROWS[name]}`"]
        lines.append(row)
    print(markdown_table(lines))
    print_seeds({name: price(about) for name, about in done.items()})


def numbers(measured: dict[str, float]) -> list[str]:
    """CMI, CE and accuracy as text."""
    return [f"{measured['cmi']:.4f}", f"{measured['ce']:.4f}", f"{measured['accuracy']:.2f}"]


def price(about: dict[str, Any]) -> float:
    """dCE / dCMI of a lens; nan where it hardly moves CMI."""
    before, after = about["before"], about["after"]
    gain = after["cmi"] - before["cmi"]
    return float((after["ce"] - before["ce"]) / gain) if gain > MEASURABLE else math.nan


def print_seeds(prices: dict[str, float]) -> None:
    """Compare the row ``default`` with its variants over the seeds that both have."""
    seeds = ["", *(f", seed {seed}" for seed in range(1, 5))]
    for variant in ("literal", "straight-through"):
        both = [s for s in seeds if f"{variant}{s}" in prices and f"default{s}" in prices]
        if len(both) < 2:
            continue
        theirs = summarise([prices[f"{variant}{s}"] for s in both])
        default = summarise([prices[f"default{s}"] for s in both])
        difference = summarise([prices[f"{variant}{s}"] - prices[f"default{s}"] for s in both])
        print(
            f"\nprice over {len(both)} seeds: default {default.mean:.3f} ± {default.spread:.3f}, "
            f"{variant} {theirs.mean:.3f} ± {theirs.spread:.3f}, "
            f"paired difference {difference.mean:+.3f} ± {difference.half_width:.3f} "
            "(half of the 95 % t-interval)"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
