"""Which quantity of the teacher's answers orders the students' gains, as Markdown.

    python results/cifar100/regime_why.py

from the root of the checkout; it reads records and the CSV files of regime.py alone.  Differences
to the plain teacher at the same T: T = 1 and T = 4 at 60 epochs (tables/regime_fifth), and T = 4 at
120 epochs (tables/fewshot).
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
SHORT = {"mild": "djip-b1916d44", "jpeg": "djip-dec9c692", "temperature": "djip-temperature-2"}
LONG = {"mild": "b1916d44", "strong": "554685ee", "jpeg": "dec9c692", "random": "addaec9b"}


def says(file: str, arm: str, temperature: int, images: str) -> dict[str, float]:
    """The row of one arm in a file of regime.py."""
    place = (arm, str(temperature), images)
    with open(TABLES / "regime_fifth" / "answers" / f"{file}.csv", newline="") as content:
        rows = [r for r in csv.DictReader(content) if (r["arm"], r["T"], r["images"]) == place]
    return {key: float(value) for key, value in rows[0].items() if key not in ("arm", "images")}


def cells() -> list[tuple[str, int, int, Path, Path]]:
    """Arm, T, epochs, the folder of its students and that of their baseline."""
    short = TABLES / "regime_fifth"
    found = []
    for temperature in (1, 4):
        name = f"kd_wrn_16_2_resnet8,KD.TEMPERATURE={temperature}"
        plain = short / "plain" / "djip-identity" / name
        found += [
            (arm, temperature, 60, short / arm / lens / name, plain) for arm, lens in SHORT.items()
        ]
    few = TABLES / "fewshot"
    base = few / "djip-identity" / "kd-5-long"
    found += [(arm, 4, 120, few / f"djip-{lens}" / "kd-5-long", base) for arm, lens in LONG.items()]
    return [*found, ("MCMI", 4, 120, few / "djip-identity" / "kd-5-long-mcmi", base)]


def main() -> None:
    heads = " | ".join(QUANTITIES)
    print(f"| T | arm | epochs | n | gain (points) | {heads} |")
    print(f"|{'---|' * (5 + len(QUANTITIES))}")
    points: dict[str, list[tuple[float, dict[str, float]]]] = {}
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
        points.setdefault(f"T = {temperature}, {epochs} epochs", []).append((gain.mean, change))
        numbers = " | ".join(f"{value:+.3f}" for value in change.values())
        text = f"{gain.mean:+.2f} ± {gain.half_width:.2f}"
        print(f"| {temperature} | {arm} | {epochs} | {gain.n} | {text} | {numbers} |")
    print("\nPairs of arms in order, the plain teacher among them; signs right:\n")
    print(f"| quantity, more is | {' | '.join(points)} |")
    print(f"|{'---|' * (1 + len(points))}")
    for name, (_, _, sign) in QUANTITIES.items():
        texts = [ordered(found, name, sign) for found in points.values()]
        print(f"| {name}, {'better' if sign > 0 else 'worse'} | {' | '.join(texts)} |")
    print_by_entropy()


def print_by_entropy() -> None:
    """All arms and temperatures of 60 epochs in the order of the entropy that the student sees."""
    rows = []
    for arm, lens in ({"plain": "djip-identity"} | SHORT).items():
        for temperature in (1, 4):
            name = f"kd_wrn_16_2_resnet8,KD.TEMPERATURE={temperature}"
            runs = read_arm(TABLES / "regime_fifth" / arm / lens / name)
            entropy = says("answers", arm, temperature, "training")["entropy"]
            accuracy = summarise([result["last_acc"] for result in runs.values()])
            rows.append((entropy, temperature, arm, accuracy))
    print("\n| entropy, training (nats) | T | arm | n | accuracy of the student (%) |")
    print("|---|---|---|---|---|")
    for entropy, temperature, arm, accuracy in sorted(rows):
        text = f"{accuracy.mean:.2f} ± {accuracy.spread:.2f}"
        print(f"| {entropy:.3f} | {temperature} | {arm} | {accuracy.n} | {text} |")


def ordered(found: list[tuple[float, dict[str, float]]], name: str, sign: int) -> str:
    """How many pairs of arms, the plain teacher among them, and how many signs are right."""
    whole = [*found, (0.0, dict.fromkeys(QUANTITIES, 0.0))]
    pairs = list(itertools.combinations(whole, 2))
    right = sum((a[0] - b[0]) * sign * (a[1][name] - b[1][name]) > 0 for a, b in pairs)
    signs = sum(gain * sign * change[name] > 0 for gain, change in found)
    return f"{right} of {len(pairs)}, {signs} of {len(found)}"


if __name__ == "__main__":
    main()
