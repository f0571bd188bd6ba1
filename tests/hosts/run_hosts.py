"""Run every distiller of every checkout in a folder, end to end, and write the table of docs/hosts.md.

    python tests/hosts/run_hosts.py CHECKOUTS --data FOLDER_OF_CIFAR --out docs/hosts_table.md

Each run is the checkout's own train.py in a copy of the checkout, one epoch on 100 training and 20 test images of the
real CIFAR-100, resnet56 -> resnet8, a teacher of random weights, on a CPU, seed 0:

- launcher: without a lens, with the identity lens and with a lens, by ``djip_ext.launch``;
- one line: with the same lens, by the line that patches/djip_flag.py adds.

"works" in the column launcher: the runs end well and the student of the lens differs from that of the identity lens.
"identity = plain": the student of the identity lens is bit for bit the plain one; not so where the distiller moves the
statistics of a bare teacher.  A name with + is a distiller that djip_ext adds, so that it has no plain run.
"""

import argparse
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import scipy.stats  # noqa: E402, F401  (imported here once: every run is a fork of this process)
import tensorboardX  # noqa: E402, F401
import torch  # noqa: E402
import torchvision  # noqa: E402
import yaml  # noqa: E402

from djip_ext import JPEGLens  # noqa: E402
from djip_ext.bench.models import cifar_model_dict  # noqa: E402
from djip_ext.install import find_registry  # noqa: E402
from djip_ext.launch import main as launch  # noqa: E402
from djip_ext.launch import run_script  # noqa: E402

PATCH = Path(__file__).resolve().parents[2] / "patches" / "djip_flag.py"
TEACHER, STUDENT = "resnet56", "resnet8"
WIDTHS = [16, 32, 64, 64]  # of resnet8 and resnet56 alike, with the pooled feature
SHARED = {
    "EXPERIMENT": {"PROJECT": "hosts"},
    "DATASET": {"TYPE": "cifar100", "NUM_WORKERS": 0, "TEST": {"BATCH_SIZE": 50}},
    "DISTILLER": {"TEACHER": TEACHER, "STUDENT": STUDENT},
    "SOLVER": {"BATCH_SIZE": 50, "EPOCHS": 1},
}
NODES = {
    "CRD": {"FEAT": {"STUDENT_DIM": 64, "TEACHER_DIM": 64}, "NCE": {"K": 50}},
    "REVIEWKD": {"IN_CHANNELS": WIDTHS, "OUT_CHANNELS": WIDTHS, "SHAPES": [1, 8, 16, 32], "OUT_SHAPES": [1, 8, 16, 32], "MAX_MID_CHANNEL": 64},
    "FT": {"PRETRAIN": {"EPOCHS": 1}},
}
SECONDS = 180
HEAD = ("| checkout | distiller | launcher | one line | identity = plain |", "|---|---|---|---|---|")


@dataclass
class Outcome:
    """``added``: a distiller that djip_ext adds; ``failed`` maps an arm to its reason."""

    added: bool
    failed: dict[str, str] = field(default_factory=dict)
    identity_is_plain: bool = False
    lens_changes: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path, help="folder whose subfolders are checkouts")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar-100-python")
    parser.add_argument("--out", type=Path, required=True, help="where the Markdown table goes; rows already there are kept")
    parser.add_argument("--only", nargs="*", default=[], help="run these distillers only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torchvision.datasets.CIFAR100._check_integrity = lambda self: True  # the subset has checksums of its own
    rows = args.out.read_text().splitlines()[2:] if args.out.exists() else []
    for checkout in sorted(args.checkouts.iterdir()):
        package = next((p.parent.parent.name for p in checkout.glob("*/distillers/__init__.py")), None)
        name = checkout.name.replace("+", "/")
        if package is None:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            for row in run_checkout(name, prepare(checkout, Path(scratch) / "host", args.data), package, args.only, rows):
                print(row, flush=True)
                rows.append(row)
                args.out.write_text("\n".join([*HEAD, *rows]) + "\n")


def prepare(checkout: Path, copy: Path, data: Path) -> Path:
    """A copy of the checkout with a subset of CIFAR-100, a teacher and a lens beside it."""
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "data", "download_ckpts", "output"))
    folder = copy / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    shutil.copy(data / "cifar-100-python" / "meta", folder)
    for part in ("train", "test"):
        entry = pickle.loads((data / "cifar-100-python" / part).read_bytes(), encoding="latin1")
        first = [entry["fine_labels"].index(label) for label in range(100)]
        first = first if part == "train" else first[:20]
        subset = {"data": entry["data"][first], "fine_labels": [entry["fine_labels"][i] for i in first]}
        (folder / part).write_bytes(pickle.dumps(subset))
    weights = copy / "download_ckpts" / "cifar_teachers" / f"{TEACHER}_vanilla" / "ckpt_epoch_240.pth"
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    teacher = cifar_model_dict[TEACHER][0](num_classes=100)
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean: one pass then gives statistics under which images differ
    images = torch.from_numpy(entry["data"][:50]).view(-1, 3, 32, 32).float()
    with torch.no_grad():
        teacher((images - 127.5) / 64)
    torch.save({"model": teacher.state_dict()}, weights)
    JPEGLens(12.0, window=5).save(copy / "lens.safetensors")
    return copy


def run_checkout(name: str, host: Path, package: str, only: list[str], done: list[str]) -> Iterator[str]:
    listing = host / "distillers.txt"
    error = in_fork(host, lambda: listing.write_text("\n".join(registered(package))))
    if error:
        yield f"| {name} | all | no: {error} | no: {error} | |"
        return
    for kind in listing.read_text().split():
        start = f"| {name} | {kind} |"
        if (not only or kind in only) and not any(row.startswith(start) for row in done):
            yield f"{start} {cells(run_distiller(host, package, kind))} |"


def registered(package: str) -> list[str]:
    """The host's own distillers, then those that djip_ext adds."""
    from djip_ext.install import install

    own = [name for name in find_registry(package) if name != "NONE"]
    install("identity", package)
    return own + [f"{name}+" for name in find_registry(package) if name not in own and name != "NONE"]


def run_distiller(host: Path, package: str, kind: str) -> Outcome:
    added, kind = kind.endswith("+"), kind.rstrip("+")
    cfg = host / f"{kind}.yaml"
    cfg.write_text(yaml.safe_dump(configuration(host, kind)))
    train = ["tools/train.py", "--cfg", str(cfg)]
    launcher = {
        "plain": ["--seed", "0"],
        "identity": ["--seed", "0", "--djip-lens", "identity"],
        "lens": ["--seed", "0", "--djip-lens", "lens.safetensors"],
    }
    outcome, students = Outcome(added=added), {}
    for arm, flags in launcher.items():
        if arm == "plain" and added:
            continue  # without a lens djip_ext adds nothing
        if error := in_fork(host, lambda: launch(["--host", package, *flags, *train])):
            outcome.failed[arm] = error
            if arm == "plain":
                return outcome
        else:
            students[arm] = newest_student(host)
    subprocess.run([sys.executable, PATCH, "add", host], check=True, capture_output=True)
    flags = ["--djip-lens", "lens.safetensors", "--djip-seed", "0", "--djip-no-cure", "folders"]
    if error := in_fork(host, lambda: run_script("tools/train.py", [*train[1:], *flags])):
        outcome.failed["one line"] = error
    subprocess.run([sys.executable, PATCH, "remove", host], check=True, capture_output=True)
    outcome.identity_is_plain = "plain" in students and "identity" in students and equal(students["plain"], students["identity"])
    outcome.lens_changes = "lens" in students and "identity" in students and not equal(students["lens"], students["identity"])
    return outcome


def configuration(host: Path, kind: str) -> dict:
    """The host's own YAML for this distiller on CIFAR-100, where it has one, for our pair and one epoch."""
    merged: dict = {}
    for path in sorted((host / "configs").glob("cifar100/**/*.yaml")):
        found = yaml.safe_load(path.read_text()) or {}
        if found.get("DISTILLER", {}).get("TYPE") == kind and "DOT" not in found.get("SOLVER", {}):
            merged = found
            break
    own = {"EXPERIMENT": {"NAME": kind}, "DISTILLER": {"TYPE": kind}, **({kind: NODES[kind]} if kind in NODES else {})}
    trainer = {"SOLVER": {"TRAINER": "crd"}} if kind == "CRD" else {}
    for layer in (SHARED, own, trainer):
        merged = overlaid(merged, layer)
    return merged


def overlaid(under: dict, over: dict) -> dict:
    both = {key: overlaid(under[key], value) if isinstance(value, dict) and key in under else value for key, value in over.items()}
    return {**under, **both}


def in_fork(host: Path, run: Callable[[], object]) -> str:
    """``run()`` in a child process inside ``host``; the last line of its error, or nothing when it ended well."""
    log = host / "log.txt"
    child = os.fork()
    if child == 0:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(host)
        sys.path[:] = [str(host), str(host / "tools"), *sys.path[1:]]  # as after mdistiller's `setup.py develop`
        signal.alarm(SECONDS)
        status = 1
        try:
            run()
            status = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            status = 0 if end.code in (None, 0) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    if status == 0:
        return ""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log.read_text(errors="replace")) if line.strip()]
    return f"killed after {SECONDS} s" if os.WIFSIGNALED(status) else (lines[-1] if lines else "no message")[:160].replace("|", "/")


def newest_student(host: Path) -> Path:
    return max(host.glob("output/**/student_latest"), key=lambda path: path.stat().st_mtime_ns)


def equal(one: Path, other: Path) -> bool:
    a, b = (torch.load(path, map_location="cpu", weights_only=True)["model"] for path in (one, other))
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=0, atol=0, equal_nan=True) for key in a)


def cells(outcome: Outcome) -> str:
    """launcher | one line | identity = plain."""
    if "plain" in outcome.failed:
        return f"host fails without a lens: {outcome.failed['plain']} | | "
    launcher = "; ".join(f"{arm}: {outcome.failed[arm]}" for arm in ("identity", "lens") if arm in outcome.failed)
    if not launcher:
        launcher = "works" if outcome.lens_changes else "no: the lens changes nothing"
    return f"{launcher} | {outcome.failed.get('one line', 'works')} | {'' if outcome.added else 'yes' if outcome.identity_is_plain else 'no'}"


if __name__ == "__main__":
    main()
