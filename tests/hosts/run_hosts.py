"""Run every distiller of every checkout in a folder, end to end; write docs/hosts_table.md.

    python tests/hosts/run_hosts.py CHECKOUTS --data FOLDER_OF_CIFAR --out docs/hosts_table.csv

Each run is the checkout's own train.py in a copy of the checkout, one epoch of two steps on 20
training images of the real CIFAR-100 (100, one of each class, where a CRD draws its negatives) and
10 test images, resnet56 -> resnet20, a teacher of random weights, on a CPU, seed 0, one process
with the environment of torchrun:

- plain, identity, lens: by ``djip_ext.launch``, without a lens, with the identity lens and with a
  lens;
- one line: with the same lens, by the line that patches/djip_flag.py adds.

A run with the lens "works" when it ends well and its student differs from that of the identity
lens.  "identity = plain": the student of the identity lens is bit for bit the plain one; not so
where the distiller moves the statistics of a bare teacher.  A name with + is a distiller that
djip_ext adds.  Where a host fails without a lens the others are not run.  The row
"djip fit --host" reads teacher and images for a fit.
Rows already in the file are kept, so that a run continues where it was interrupted.
"""

import argparse
import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import scipy.stats  # noqa: E402, F401  (imported here once: every run is a fork of this process)
import tensorboardX  # noqa: E402, F401
import torch  # noqa: E402
import torchvision  # noqa: E402
import yaml  # noqa: E402
from helpers.forks import forked  # noqa: E402
from helpers.small_host import TEACHER, configuration, configurations, prepare, train_set  # noqa: E402
from hosts_table import FIT, WORKS, Row, read_rows, write_rows  # noqa: E402

from djip_ext import install  # noqa: E402
from djip_ext.hosts.registry import find_registry  # noqa: E402
from djip_ext.hosts.task import read_host  # noqa: E402
from djip_ext.launch import main as launch  # noqa: E402
from djip_ext.launch import run_script  # noqa: E402

PATCH = Path(__file__).resolve().parents[2] / "patches" / "djip_flag.py"
STRONG = dict.fromkeys(("MLKD", "UniMLKD", "KR_MLKD", "KD_strong", "MixKD"), "tools/train_mlkd.py")
SCRIPTS = {
    "KD_ours": "tools/train_ours.py",
    **STRONG,
}  # where a checkout has a script of its own for them
SECONDS = 120  # of computing
TORCHRUN = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkouts", type=Path, help="folder whose subfolders, OWNER+NAME, are checkouts"
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds cifar-100-python"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the CSV file; the table goes beside it"
    )
    parser.add_argument("--only", nargs="*", default=[], help="run these distillers only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torchvision.datasets.CIFAR100._check_integrity = lambda self: (
        True
    )  # the subset has checksums of its own
    rows = read_rows(args.out)
    for checkout in sorted(
        args.checkouts.iterdir(),
        key=lambda path: (not path.name.startswith("megvii"), path.name.lower()),
    ):
        if not (checkout / "mdistiller" / "distillers").is_dir():
            continue
        commit = ["git", "-C", checkout, "log", "-1", "--format=%h, %ad", "--date=format:%Y-%m"]
        start = Row(
            checkout.name.replace("+", "/"),
            subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip(),
            "",
        )
        with tempfile.TemporaryDirectory() as scratch:
            host = prepare(checkout, Path(scratch) / "host", args.data)
            kinds, error = listed(host)
            for kind in kinds:
                done = any((row.checkout, row.distiller) == (start.checkout, kind) for row in rows)
                if not done and (not args.only or kind in args.only):
                    row = replace(start, distiller=kind)
                    rows.append(replace(row, plain=error) if error else run_distiller(host, row))
                    print(rows[-1], flush=True)
                    write_rows(args.out, rows)


def listed(host: Path) -> tuple[list[str], str]:
    """The host's own distillers, then those that djip_ext adds, with a +.

    They are "all", with the reason, when the host cannot be imported.  configurations.json then
    holds which YAML file of the host's own, one that its schema accepts, is for which distiller.
    """
    listing = host / "distillers.txt"
    nothing = host / "nothing.py"
    found = host / "configurations.json"

    def write() -> None:
        nothing.write_text("")
        launch([str(nothing)])  # for the workarounds alone
        own = list(find_registry("mdistiller"))
        found.write_text(
            json.dumps(configurations(host, importlib.import_module("mdistiller.engine.cfg").CFG))
        )
        install("identity")
        added = [f"{name}+" for name in find_registry("mdistiller") if name not in own]
        listing.write_text("\n".join([name for name in own if name != "NONE"] + added + [FIT]))

    error = attempt(host, write)
    return (listing.read_text().splitlines(), "") if error == WORKS else (["all"], error)


def run_distiller(host: Path, row: Row) -> Row:
    """``row`` with what became of the four runs.

    Of the row FIT: whether the host's teacher and images can be read.
    """
    if row.distiller == FIT:
        cfg = next(iter(json.loads((host / "configurations.json").read_text()).values()))
        train_set(host, 20)
        options = ["DATASET.TYPE", "cifar100", "DISTILLER.TEACHER", TEACHER]
        return replace(
            row, lens=attempt(host, lambda: read_host(host, cfg, limit=10, options=options))
        )
    kind = row.distiller.rstrip("+")
    train_set(host, 100 if "CRD" in kind else 20)
    cfg = host / f"{kind}.yaml"
    cfg.write_text(yaml.safe_dump(configuration(host, kind)))
    script = SCRIPTS.get(kind, "tools/train.py")
    script = script if (host / script).exists() else "tools/train.py"
    arms = {
        "plain": [],
        "identity": ["--djip-lens", "identity"],
        "lens": ["--djip-lens", "lens.safetensors"],
    }
    outcome, students = {}, {}
    for arm, flags in arms.items():
        if arm == "plain" and row.added:
            continue
        command = ["--seed", "0", *flags, script, "--cfg", str(cfg)]
        outcome[arm] = attempt(host, functools.partial(launch, command))
        if arm == "plain" and outcome[arm] != WORKS:
            return replace(row, **outcome)
        students[arm] = student(host) if outcome[arm] == WORKS else None
    subprocess.run(
        [sys.executable, PATCH, "add", host, "--script", script], check=True, capture_output=True
    )
    flags = [
        "--djip-lens",
        "lens.safetensors",
        "--djip-seed",
        "0",
        "--djip-no-workaround",
        "folders",
    ]
    outcome["one_line"] = attempt(host, lambda: run_script(script, ["--cfg", str(cfg), *flags]))
    students["one_line"] = student(host) if outcome["one_line"] == WORKS else None
    subprocess.run(
        [sys.executable, PATCH, "remove", host, "--script", script], check=True, capture_output=True
    )
    for arm in ("lens", "one_line"):
        if outcome[arm] == WORKS and equal(students[arm], students["identity"]):
            outcome[arm] = "the lens changes nothing"
    same = ""
    if not row.added and outcome["identity"] == WORKS:
        same = "yes" if equal(students["plain"], students["identity"]) else "no"
    return replace(row, **outcome, identity_is_plain=same)


def attempt(host: Path, run: Callable[[], object]) -> str:
    """``run()`` in a child process inside ``host``: "works", or the last line of its error."""
    shutil.rmtree(host / "output", ignore_errors=True)

    def as_installed() -> None:
        os.environ.update(TORCHRUN)
        sys.path[:] = [
            str(host),
            str(host / "tools"),
            *sys.path[1:],
        ]  # as after mdistiller's `setup.py develop`
        run()

    status, output = forked(host, as_installed, SECONDS)
    if status == 0:
        return WORKS
    if status < 0:
        return f"killed after {SECONDS} s"
    output = output.replace(f"{host}/", "")
    lines = [
        line.strip()
        for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*m", "", output))
        if line.strip()
    ]
    joined = [
        f"{line} {after}" if line.endswith(":") else line
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
    ]
    errors = [line for line in joined if re.match(r"error: |[\w.]+(Error|Exception|Exit)\b", line)]
    return (errors or lines or ["no message"])[-1][:200].replace("|", "/")


def student(host: Path) -> dict[str, torch.Tensor]:
    """The state of the one student that the last run left."""
    (path,) = host.glob("output/**/student_latest")
    return torch.load(path, map_location="cpu", weights_only=True)["model"]


def equal(one: dict[str, torch.Tensor] | None, other: dict[str, torch.Tensor] | None) -> bool:
    if one is None or other is None:
        return False
    return one.keys() == other.keys() and all(
        torch.allclose(one[key], other[key], rtol=0, atol=0, equal_nan=True) for key in one
    )


if __name__ == "__main__":
    main()
