"""Which quantity of the teacher's answers orders the students' gains, as Markdown.

    python results/cifar100/regime_why.py

from the root of the checkout; it reads records and the CSV files of regime.py alone.  Differences
to the plain teacher at the same T.  Found on T = 1 (60 epochs, tables/regime_fifth), checked on
T = 4 (120 epochs, tables/fewshot), which took no part.
"""

import csv
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from djip_ext.experiments.runs import read_arm  # noqa: E402
from djip_ext.experiments.statistics import summarise  # noqa: E402

TABLES = Path("results/cifar100/tables")
QUANTITIES = {  # name -> images, column, whether more of it should be worth more
    "CMI, training": ("training", "cmi", 1),
    "entropy, training": ("training", "entropy", 1),
    "cross entropy, training": ("training", "ce", -1),
    "entropy, test": ("test", "entropy", 1),
    "cross entropy, test": ("test", "ce", -1),
    "margin, test": ("test", "margin", 1),
    "accuracy, test (%)": ("test", "accuracy", 1),
}
SHORT = {"mild": "djip-b1916d44", "temperature": "djip-temperature-2"}
LONG = {"mild": "b1916d44", "strong": "554685ee", "jpeg": "dec9c692", "random": "addaec9b"}


def says(file: str, arm: str, temperature: int, images: str) -> dict[str, float]:
    """The row of one arm in a file of regime.py."""
    place = (arm, str(temperature), images)
    with open(TABLES / "regime_fifth" / "answers" / f"{file}.csv", newline="") as content:
        rows = [r for r in csv.DictReader(content) if (r["arm"], r["T"], r["images"]) == place]
    return {key: float(value) for key, value in rows[0].items() if key not in ("arm", "images")}


def cells() -> list[tuple[str, int, str, Path, Path]]:
    """Arm, T, epochs, the folder of its students and that of their baseline."""
    name = "kd_wrn_16_2_resnet8,KD.TEMPERATURE=1"
    short = TABLES / "regime_fifth"
    plain = short / "plain" / "djip-identity" / name
    found = [(arm, 1, "60", short / arm / lens / name, plain) for arm, lens in SHORT.items()]
    few = TABLES / "fewshot"
    base = few / "djip-identity" / "kd-5-long"
    found += [
        (arm, 4, "120", few / f"djip-{lens}" / "kd-5-long", base) for arm, lens in LONG.items()
    ]
    return [*found, ("MCMI", 4, "120", few / "djip-identity" / "kd-5-long-mcmi", base)]


def main() -> None:
    heads = " | ".join(QUANTITIES)
    print(f"| T | arm | epochs | n | gain (points) | {heads} |")
    print(f"|{'---|' * (5 + len(QUANTITIES))}")
    points: dict[int, list[tuple[float, dict[str, float]]]] = {}
    for arm, temperature, epochs, folder, baseline in cells():
        runs = read_arm(folder)
        base = read_arm(baseline)
        seeds = sorted(runs.keys() & base.keys())
        gain = summarise([runs[seed]["last_acc"] - base[seed]["last_acc"] for seed in seeds])
        own, file = ("plain", "answers-mcmi") if arm == "MCMI" else (arm, "answers")
        change = {
            name: says(file, own, temperature, images)[column]
            - says("answers", "plain", temperature, images)[column]
            for name, (images, column, _) in QUANTITIES.items()
        }
        points.setdefault(temperature, []).append((gain.mean, change))
        numbers = " | ".join(f"{value:+.3f}" for value in change.values())
        text = f"{gain.mean:+.2f} ± {gain.half_width:.2f}"
        print(f"| {temperature} | {arm} | {epochs} | {gain.n} | {text} | {numbers} |")
    print("\n| quantity, more is | T = 1: pairs of arms in order, signs right | T = 4: the same |")
    print("|---|---|---|")
    for name, (_, _, sign) in QUANTITIES.items():
        texts = [ordered(found, name, sign) for found in points.values()]
        print(f"| {name}, {'better' if sign > 0 else 'worse'} | {' | '.join(texts)} |")


def ordered(found: list[tuple[float, dict[str, float]]], name: str, sign: int) -> str:
    """How many pairs of arms, the plain teacher among them, and how many signs are right."""
    whole = [*found, (0.0, dict.fromkeys(QUANTITIES, 0.0))]
    pairs = list(itertools.combinations(whole, 2))
    right = sum((a[0] - b[0]) * sign * (a[1][name] - b[1][name]) > 0 for a, b in pairs)
    signs = sum(gain * sign * change[name] > 0 for gain, change in found)
    return f"{right} of {len(pairs)}, {signs} of {len(found)}"


if __name__ == "__main__":
    main()
