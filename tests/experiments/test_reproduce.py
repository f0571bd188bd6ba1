"""Whole tables as real processes: killed, out of disk, two at once, on a cluster; same numbers."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock

from djip_ext.cli import reproduce as command
from djip_ext.errors import DJIPError
from djip_ext.experiments.plan import make_plan
from djip_ext.experiments.runs import collect, read_runs
from djip_ext.experiments.scheduler import Outcome
from djip_ext.experiments.table import load_table
from djip_ext.lens.io import load_lens

ROOT = Path(__file__).parents[2]
SMALL = Path(__file__).with_name("small_djip.py")
CONFIGS = ROOT / "configs" / "cifar100"
ALL = {
    "DATASET.TYPE": "synthetic",
    "BENCH.DEVICE": "cpu",
    "DISTILLER.TEACHER": "resnet8",
    "SOLVER.BATCH_SIZE": 20,
}
TABLE = {
    "configs": f"{CONFIGS}/fewshot/{{distiller}}_{{pair}}.yaml",
    "pairs": ["wrn_16_2_resnet8"],
    "distillers": ["KD", "AT"],
    "arms": {"plain": "identity", "lens": "fit --images 40 --rounds 2 --batch-size 10"},
    "teachers": {"resnet8": f"{CONFIGS}/vanilla/resnet8.yaml"},
    "seeds": 1,
    "epochs": 3,
    "options": {"all": ALL, "teacher": {"SOLVER.EPOCHS": 3}, "KD": {"BENCH.VIEWS": 2}},
}
STEPS = 6  # a teacher, a lens, two students each


def djip(folder: Path, *words: str, on: str = "", how: str = "") -> "subprocess.Popen[str]":
    """Begin a small ``djip`` in ``folder``, as the leader of a process group."""
    environment = (
        os.environ
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        | ({"ON": on, "HOW": how} if on else {})
    )
    command = [sys.executable, str(SMALL), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)


def reproduce(folder: Path, *words: str, on: str = "", how: str = "") -> tuple[int, str, str]:
    """The status and the output of ``djip reproduce`` on the table, in ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump(TABLE, sort_keys=False))
    process = djip(folder, "reproduce", "small.yaml", *words, on=on, how=how)
    out, errors = process.communicate(timeout=200)
    return process.returncode, out, errors


def numbers(folder: Path) -> dict[str, object]:
    """All that must not depend on what happened on the way: weights, accuracies, losses, tables."""
    runs = folder / "output" / "small"
    found: dict[str, object] = {}
    for path in sorted(runs.rglob("result.json")):
        name, result = path.parent.relative_to(runs).as_posix(), json.loads(path.read_text())
        found[name] = {
            key: result[key]
            for key in ("last_acc", "best_acc", "best_epoch", "train_acc", "epochs", "data", "lens")
        }
        weights = torch.load(path.with_name("student_last.pth"), weights_only=True)["model"]
        found[f"{name}/weights"] = {key: value.tolist() for key, value in weights.items()}
        with open(path.with_name("log.csv")) as file:
            found[f"{name}/log"] = [
                [row[key] for key in ("epoch", "train_loss", "test_loss", "test_acc")]
                for row in csv.DictReader(file)
            ]
    for path in runs.glob("lenses/*.safetensors"):
        found[path.name] = load_lens(path).q.tolist()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an undisturbed reproduction runs."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(folder: Path) -> tuple[str, dict[str, object]]:
    """What an undisturbed reproduction prints and leaves."""
    status, out, errors = reproduce(folder)
    assert status == 0, errors
    return out, numbers(folder)


def test_a_table_is_made_in_order_and_reported(whole: tuple[str, dict[str, object]]) -> None:
    out, found = whole
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("[")] == [
        "[1/6] teacher resnet8", "[2/6] lens lens of resnet8",
        "[3/6] KD wrn_16_2_resnet8, plain, seed 0", "[4/6] KD wrn_16_2_resnet8, lens, seed 0",
        "[5/6] AT wrn_16_2_resnet8, plain, seed 0", "[6/6] AT wrn_16_2_resnet8, lens, seed 0",
    ]  # fmt: skip
    assert "4 of 4 students" in out and "| KD | 1 |" in out
    assert (
        all(f"-{picture}.png)" in out for picture in ("tables", "fit", "simplex"))
        and "Not drawn" not in out
    )
    assert len([name for name in found if name.endswith("/log")]) == 5
    assert len([name for name in found if name.endswith(".safetensors")]) == 1


def test_real_runs_are_collected_without_loss(
    folder: Path, whole: tuple[str, dict[str, object]], tmp_path: Path
) -> None:
    runs = folder / "output" / "small"
    assert collect(runs, tmp_path) == (5, 5)
    for run in read_runs(tmp_path):
        result = json.loads((runs / run.folder / "result.json").read_text())
        assert result.pop("folder") == f"output/small/{run.folder}"
        assert {key: value for key, value in run.result.items() if key != "folder"} == result
    records = [path.name for path in tmp_path.glob("lenses/*.json")]
    assert records == [path.name for path in runs.glob("lenses/*.json")] and len(records) == 1


# the last bytes of a file that is being written when the power goes
PHASES = ["teachers/*/latest.pth", "teachers/*/result.json", ".fit.pth", "lenses/*.safetensors"]
PHASES += ["teacher_cache/*", "lens/*/kd_*/latest.pth", "plain/*/at_*/result.json"]


def test_killed_in_any_phase_it_ends_with_the_same_numbers(
    tmp_path: Path, whole: tuple[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done: dict[Path, dict[str, float]] = {}
    for phase in PHASES:
        monkeypatch.setenv("SKIP", str(int(phase.endswith(".pth"))))  # a run has a first epoch
        status, _, errors = reproduce(tmp_path, on=phase, how="kill")
        assert status == -9, f"{phase} was not reached: {errors}"
        assert not _broken(tmp_path)
        if phase.endswith(".pth"):
            (path,) = (p for p in tmp_path.rglob("*.pth") if fnmatch(str(p), f"*{phase}"))
            (half_done[path],) = _history(path)
    status, out, errors = reproduce(tmp_path)
    assert status == 0, errors
    assert "done already" in out  # what was finished between two kills is not done twice
    assert numbers(tmp_path) == whole[1]
    for path, first in half_done.items():  # and what was begun went on: equal to its seconds
        assert _history(path)[0] == first, path


def test_a_full_disk_stops_what_needs_it_and_the_rest_follows(
    tmp_path: Path, whole: tuple[str, dict[str, object]]
) -> None:
    status, out, errors = reproduce(tmp_path, on="lenses/*.safetensors", how="full")
    assert (
        status == 2
        and errors.splitlines()[-1].startswith("error: 1 commands failed, and 2 that need them")
        and "FAILED" in out
    )
    assert "No space left" in (tmp_path / "output/small/logs/lens-lens-of-resnet8.log").read_text()
    assert "seed 0: " in out  # the students that need no lens went on
    assert reproduce(tmp_path)[0] == 0
    assert numbers(tmp_path) == whole[1]


def test_two_processes_share_one_table(
    tmp_path: Path, whole: tuple[str, dict[str, object]]
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(TABLE, sort_keys=False))
    pair = [djip(tmp_path, "reproduce", "small.yaml", "--workers", "2") for _ in range(2)]
    outputs = [process.communicate(timeout=200) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert all(
        len(re.findall(r"^\[\d/6\]", out, flags=re.MULTILINE)) == STEPS for out, _ in outputs
    )  # both saw all of it end
    assert numbers(tmp_path) == whole[1] and not _broken(tmp_path)
    events = [len(list(folder.iterdir())) for folder in (tmp_path / "output").rglob("*.events")]
    assert events == [1] * STEPS  # whoever trains begins a file: nothing was done twice


def test_ended_by_a_signal_it_takes_its_commands_along(tmp_path: Path) -> None:
    long = TABLE | {"options": {"all": ALL, "teacher": {"SOLVER.EPOCHS": 10_000}}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(long, sort_keys=False))
    process = djip(tmp_path, "reproduce", "small.yaml")
    run = tmp_path / "output/small/teachers/resnet8/seed-0"
    try:
        while not (run / "log.csv").exists():  # the first command has trained an epoch
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        assert (run / ".lock").exists()
        process.terminate()
        assert process.wait(timeout=60) == 128 + 15
        with FileLock(run / ".lock", timeout=30):  # no command holds it any more
            assert not list(tmp_path.rglob("result.json"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_report_that_cannot_be_does_not_hide_which_command_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(TABLE, sort_keys=False))
    table = load_table(tmp_path / "small.yaml")
    steps = make_plan(table, str(tmp_path))
    outcome = Outcome(here=[steps[-1]], failed=[steps[0]])
    command.report(outcome, table, tmp_path)  # of a folder without runs
    assert "no report: " in capsys.readouterr().out
    with pytest.raises(DJIPError, match="1 commands failed; the first: teacher resnet8"):
        command.finish(outcome, str(tmp_path))
    with pytest.raises(DJIPError):  # nothing failed that would explain it
        command.report(Outcome(here=[steps[-1]]), table, tmp_path)


def _history(checkpoint: Path) -> list[dict[str, float]]:
    """The rows of a run or a fit; a fit that has ended has a record instead of a checkpoint."""
    record = checkpoint.with_name(checkpoint.name.replace(".fit.pth", ".json"))
    if record != checkpoint and record.exists():
        return json.loads(record.read_text())["history"]
    return torch.load(checkpoint, weights_only=True)["history"]


def _broken(folder: Path) -> list[Path]:
    """Records and checkpoints that cannot be read."""
    bad = []
    for path in folder.rglob("*.*"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".pth":
                torch.load(path, weights_only=True)
            elif path.suffix == ".safetensors" and path.parent.name == "lenses":
                load_lens(path)
        except Exception:
            bad.append(path)
    return bad


def test_a_command_that_another_process_runs_is_refused_with_a_status_of_its_own(
    tmp_path: Path,
) -> None:
    from filelock import FileLock

    folder = tmp_path / "output" / "distill" / "run" / "seed-0"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        process = djip(
            tmp_path,
            "train",
            "DATASET.TYPE",
            "synthetic",
            "EXPERIMENT.NAME",
            "run",
            "DISTILLER.STUDENT",
            "resnet8",
        )
        _, errors = process.communicate(timeout=100)
    assert process.returncode == os.EX_TEMPFAIL and errors.strip().splitlines()[-1].startswith(
        "error: another process is at work on"
    )


def test_the_same_plan_goes_through_submitit(tmp_path: Path) -> None:
    """Real jobs, real processes, the installed command: one student of a given teacher."""
    pytest.importorskip("submitit")
    from safetensors.torch import save_file

    from djip_ext.bench.engine.run import build_model

    save_file(build_model("resnet8", 20).state_dict(), tmp_path / "teacher.safetensors")
    options = {"all": ALL | {"BENCH.FRACTION": 0.01, "BENCH.EVAL_EVERY": 9}}
    table = TABLE | {
        "distillers": ["KD"],
        "arms": {"plain": "identity"},
        "epochs": 1,
        "options": options,
    }
    table["teachers"] = {"resnet8": "teacher.safetensors"}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    command = [
        sys.executable,
        "-m",
        "djip_ext",
        "reproduce",
        "one.yaml",
        "--cluster",
        "local",
        "--job",
        "timeout_min=5",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 students" in done.stdout and list(
        (tmp_path / "output/one/jobs").glob("*_result.pkl")
    )
