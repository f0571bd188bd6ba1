"""``djip demo``: the whole story on generated images, as the commands a user would type.

It needs no network and takes minutes on a CPU.
"""

import argparse
import json
import shlex
import shutil
import time
from pathlib import Path

from djip_ext.errors import DJIPError
from djip_ext.experiments.runs import read_arm
from djip_ext.lens.io import lens_id, load_lens
from djip_ext.utils.files import atomic_write, write_json

SOLVER = shlex.split(
    "SOLVER.BATCH_SIZE 64 SOLVER.LR 0.05 SOLVER.WEIGHT_DECAY 0.0005 "
    "SOLVER.LR_DECAY_STAGES [8,10] SOLVER.EPOCHS 12"
)
FEW_SHOT = ["BENCH.FRACTION", "0.25"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip demo``."""
    parser.add_argument(
        "--out",
        default="output/demo",
        metavar="FOLDER",
        help="where everything goes (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="of teacher, fit and students (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete an earlier demo in that folder first"
    )


def run(args: argparse.Namespace) -> None:
    """Run the five commands, then compare the two students.

    Raises:
        DJIPError: the folder holds something already.
    """
    out = Path(args.out)
    started = time.perf_counter()
    _claim(out, args.overwrite)
    lens = out / "lens.safetensors"
    for title, command in _steps(out, lens, args.seed):
        _step(title, command)
    _compare(out, lens, args.seed, time.perf_counter() - started)


def _steps(out: Path, lens: Path, seed: int) -> list[tuple[str, list[str]]]:
    """The commands with their titles."""
    teacher = out / "runs/teacher" / f"seed-{seed}" / "student_last.pth"
    data = ["DATASET.TYPE", "synthetic", "LOG.PREFIX", str(out), "EXPERIMENT.PROJECT", "runs"]
    data += SOLVER
    pair = ["DISTILLER.TEACHER", "resnet14", "DISTILLER.STUDENT", "resnet8"]
    pair += ["BENCH.TEACHER_CHECKPOINT", str(teacher)]
    seeded = ["--seed", str(seed)]

    train_teacher = ["train", *seeded, *data]
    train_teacher += ["EXPERIMENT.NAME", "teacher", "DISTILLER.STUDENT", "resnet14"]
    fit = ["fit", "--out", str(lens), "--images", "1000", "--rounds", "10", "--lr", "0.4"]
    fit += ["--cmi-gain", "0.03", "0.1", *seeded, *data, *pair]
    distil = ["train", *seeded, *data, *pair, *FEW_SHOT]
    distil += ["EXPERIMENT.NAME", "KD", "DISTILLER.TYPE", "KD"]
    inspect = ["inspect", str(lens), "--out", str(out / "pictures"), *data, *pair]
    return [
        ("1. Train a teacher", train_teacher),
        ("2. Fit a lens for it", fit),
        (
            "3. Distil a student from the plain teacher, on a quarter of the images",
            [*distil, "--djip-lens", "identity"],
        ),
        (
            "4. Distil the same student from the teacher behind the lens",
            [*distil, "--djip-lens", str(lens)],
        ),
        ("5. Look at the lens", inspect),
    ]


def _claim(out: Path, overwrite: bool) -> None:
    """Take ``out`` for this demo; never delete a folder that a demo did not make."""
    marker = out / "demo.json"
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise DJIPError(
                f"{out} is not empty; "
                "add --overwrite to delete an earlier demo or choose another --out"
            )
        if not marker.exists():
            raise DJIPError(
                f"{out} holds something other than a demo and is left alone; choose another --out"
            )
        shutil.rmtree(out)
    write_json(marker, {"finished": False})


def _step(title: str, command: list[str]) -> None:
    from djip_ext.cli.main import run_command

    print(f"\n{title}\n$ djip {shlex.join(command)}", flush=True)
    run_command(command)


def _compare(out: Path, lens: Path, seed: int, seconds: float) -> None:
    """Print and write the table that the demo is about."""
    about = json.loads(lens.with_suffix(".json").read_text())["about"]
    arms = {"plain": "identity", "lens": lens_id(load_lens(lens))}
    rows = {name: read_arm(out / "runs" / f"djip-{arm}" / "KD")[seed] for name, arm in arms.items()}
    lines = [
        "| teacher | CMI (nats) | teacher's accuracy (%) "
        "| student, last epoch (%) | student, best epoch (%) |",
        "|---|---|---|---|---|",
    ]
    for name, key in (("plain", "before"), ("lens", "after")):
        result = rows[name]
        lines.append(
            f"| {name} | {about[key]['cmi']:.4f} | {about['test_' + key]['accuracy']:.2f} "
            f"| {result['last_acc']:.2f} | {result['best_acc']:.2f} |"
        )
    difference = rows["lens"]["last_acc"] - rows["plain"]["last_acc"]
    text = "\n".join(lines)
    note = (
        f"Paired difference, last epoch: {difference:+.2f} points (n = 1 seed: "
        "one pair is an illustration, not evidence; results/ has the measured comparison)."
    )
    atomic_write(out / "comparison.md", lambda path: path.write_text(f"{text}\n\n{note}\n"))
    write_json(
        out / "demo.json",
        {
            "finished": True,
            "seconds": seconds,
            "difference": difference,
            "plain": rows["plain"],
            "lens": rows["lens"],
        },
    )
    print(
        f"\n{text}\n\n{note}\nPictures: {out / 'pictures'}. "
        f"Table: {out / 'comparison.md'}. It took {seconds:.0f} s."
    )
