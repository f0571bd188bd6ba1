"""Entry points as processes of their own: scripts whose loader spawns workers, ``python -m``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.folders import make_folders

import djip_ext

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(djip_ext.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
}
# As on macOS, on Windows and in Python 3.14: every worker imports the main script again.
SPAWNING = """
import multiprocessing, runpy, sys
multiprocessing.set_start_method("spawn")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_the_tool_trains_once_where_its_workers_are_spawned(tmp_path: Path) -> None:
    make_folders(tmp_path / "data", classes=2, train=3, val=1)
    settings = (
        "DATASET.TYPE imagefolder DATASET.NUM_WORKERS 1 BENCH.DATA_ROOT data BENCH.DEVICE cpu "
        "BENCH.INPUT_SIZE 16 DISTILLER.STUDENT resnet8 SOLVER.EPOCHS 1 SOLVER.BATCH_SIZE 2"
    )
    script = str(ROOT / "tools" / "train.py")
    done = run(tmp_path, "-c", SPAWNING, script, *settings.split(), "EXPERIMENT.NAME", "once")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(epoch 1 of 1)") == 1
    assert len(list(tmp_path.rglob("result.json"))) == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "tools").glob("*.py")))
def test_importing_a_tool_runs_nothing(name: str, tmp_path: Path) -> None:
    code = f"import runpy; runpy.run_path({str(ROOT / 'tools' / f'{name}.py')!r}); print('done')"
    done = run(tmp_path, "-c", code)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "done", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["djip_ext", "djip_ext.cli.main", "djip_ext.commands.main"])
def test_the_package_runs_as_the_command(module: str, tmp_path: Path) -> None:
    done = run(tmp_path, "-m", module, "compare", "nowhere")
    assert done.returncode == 2 and done.stderr.startswith("error: 'nowhere' is not NAME=FOLDER")
