"""Which quantity of the teacher's answers orders the students' gains: a row a cell, as Markdown, and how each quantity orders them.

    python results/cifar100/regime_why.py     from the root of the checkout; reads records and the CSV files of regime.py alone

Differences to the plain teacher at the same T. Found on: T = 1 (60 epochs, regime_fifth). Checked on: T = 4 (120 epochs, records/).
"""

import csv
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from djip_ext.bench.compare import read_arm, summarise  # noqa: E402

HERE = Path("results/cifar100")
QUANTITIES = {  # name -> images, column, whether more of it should be worth more
    "CMI, training": ("training", "cmi", 1),
    "entropy, training": ("training", "entropy", 1),
    "cross entropy, training": ("training", "ce", -1),
    "entropy, test": ("test", "entropy", 1),
    "cross entropy, test": ("test", "ce", -1),
    "margin, test": ("test", "margin", 1),
    "accuracy, test (%)": ("test", "accuracy", 1),
}
SAID = {"mild": "answers", "temperature": "answers", "jpeg": "answers", "strong": "answers", "random": "answers", "MCMI": "answers-mcmi"}
LONG = {"mild": "b1916d44", "strong": "554685ee", "jpeg": "dec9c692", "random": "addaec9b"}


def says(file: str, arm: str, temperature: int, images: str) -> dict[str, float]:
    with open(HERE / "regime_fifth" / f"{file}.csv", newline="") as rows:
        found = [row for row in csv.DictReader(rows) if (row["arm"], row["T"], row["images"]) == (arm, str(temperature), images)]
    return {key: float(value) for key, value in found[0].items() if key not in ("arm", "images")}


def cells() -> list[tuple[str, int, str, Path, Path]]:
    """Arm, T, epochs, the folder of its students and that of their baseline."""
    found = []
    students = HERE / "regime_fifth"
    for arm in ("mild", "temperature", "jpeg", "strong"):
        for folder in sorted(students.glob(f"{arm}/djip-*/*KD.TEMPERATURE=1")):
            found.append((arm, 1, "60", folder, students / "plain/djip-identity" / folder.name))
    records = HERE / "records"
    plain = records / "djip-identity/kd-5-long"
    found += [(arm, 4, "120", records / f"djip-{lens}/kd-5-long", plain) for arm, lens in LONG.items()]
    return [*found, ("MCMI", 4, "120", records / "djip-identity/kd-5-long-mcmi", plain)]


def main() -> None:
    heads = " | ".join(QUANTITIES)
    print(f"| T | arm | epochs | n | gain (points) | {heads} |\n|{'---|' * (5 + len(QUANTITIES))}")
    points: dict[int, list[tuple[float, dict[str, float]]]] = {}
    for arm, temperature, epochs, folder, baseline in cells():
        runs, base = read_arm(folder), read_arm(baseline)
        gain = summarise([runs[seed]["last_acc"] - base[seed]["last_acc"] for seed in sorted(runs.keys() & base.keys())])
        own = "plain" if arm == "MCMI" else arm
        change = {}
        for name, (images, column, _) in QUANTITIES.items():
            change[name] = says(SAID[arm], own, temperature, images)[column] - says("answers", "plain", temperature, images)[column]
        points.setdefault(temperature, []).append((gain.mean, change))
        numbers = " | ".join(f"{value:+.3f}" for value in change.values())
        print(f"| {temperature} | {arm} | {epochs} | {gain.n} | {gain.mean:+.2f} ± {gain.half_width:.2f} | {numbers} |")
    print("\n| quantity, more is | T = 1: pairs of arms in order, signs right | T = 4: the same |\n|---|---|---|")
    for name, (_, _, sign) in QUANTITIES.items():
        texts = []
        for found in points.values():
            whole = [*found, (0.0, dict.fromkeys(QUANTITIES, 0.0))]  # the plain teacher is a cell too
            pairs = list(itertools.combinations(whole, 2))
            right = sum((a[0] - b[0]) * sign * (a[1][name] - b[1][name]) > 0 for a, b in pairs)
            signs = sum(gain * sign * change[name] > 0 for gain, change in found)
            texts.append(f"{right} of {len(pairs)}, {signs} of {len(found)}")
        print(f"| {name}, {'better' if sign > 0 else 'worse'} | {' | '.join(texts)} |")


main()
