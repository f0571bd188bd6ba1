"""The launcher, the added line and the workarounds, on a host of a few lines.

Every run is a fork of the test's process.
"""

import atexit
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorboardX  # noqa: F401  (here once, not in every fork)
import torch
import yacs.config  # noqa: F401
from helpers.forks import forked

from djip_ext import DJIPError, JPEGLens
from djip_ext.hosts.workarounds import WORKAROUNDS
from djip_ext.launch import main as launch
from djip_ext.launch import run_script
from djip_ext.lens.io import lens_id

DISTILLERS = """
from torch import nn

class Vanilla(nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

class KD(nn.Module):
    def __init__(self, student, teacher, cfg):
        super().__init__()
        self.student, self.teacher = student, teacher

distiller_dict = {"NONE": Vanilla, "KD": KD}
"""
CFG = """
from yacs.config import CfgNode
CFG = CfgNode({
    "EXPERIMENT": {"PROJECT": "project"},
    "DATASET": {"TYPE": "cifar100"},
    "LOG": {"WANDB": True},
    "DKD": {"ALPHA": 1.0},
})
"""
TRAIN = """
import sys
import torch
from tensorboardX import SummaryWriter
from torch import nn
from host.distillers import distiller_dict
from host.engine.cfg import CFG as cfg

if __name__ == "__main__":
    cfg.freeze()
    SummaryWriter(f"output/{cfg.EXPERIMENT.PROJECT}/name/train.events")
    open(f"output/{cfg.EXPERIMENT.PROJECT}/name/latest", "w").close()
    distiller = distiller_dict["KD"](nn.Flatten(), nn.Flatten(), cfg)
    print("argv", sys.argv[1:], "wandb", cfg.LOG.WANDB, "draw", torch.rand(()).item())
    image = torch.randn(1, 3, 8, 8)
    print("changed", not torch.equal(distiller.teacher(image), image.flatten(1)))
"""
EVAL = """
import torch
from torch import nn
from host.distillers import Vanilla
image = torch.randn(1, 3, 8, 8)
print("changed", not torch.equal(Vanilla(nn.Flatten()).student(image), image.flatten(1)))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "host/__init__.py": "",
        "host/distillers/__init__.py": DISTILLERS,
        "host/engine/__init__.py": "",
        "host/engine/cfg.py": CFG,
    }
    files |= {"tools/train.py": TRAIN, "tools/eval.py": EVAL}
    files["tools/patched.py"] = TRAIN.replace(
        "distiller_dict\nfrom", "distiller_dict\nimport djip_ext.autoload\nfrom"
    )
    for name, text in files.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    JPEGLens(40.0, window=5).save(tmp_path / "checkout" / "lens.safetensors")
    return tmp_path / "checkout"


def launched(folder: Path, *argv: str) -> tuple[int, str]:
    return forked(folder, lambda: launch(["--host", "host", *argv]))


def scripted(checkout: Path, text: str, *arguments: str) -> tuple[int, str]:
    (checkout / "tools" / "own.py").write_text(text)
    return launched(checkout, "tools/own.py", *arguments)


def test_a_script_runs_as_it_would_by_itself(checkout: Path) -> None:
    text = (
        "import sys\nown = sys.modules['__main__'].__dict__ is globals()\n"
        "print(sys.argv, __name__, __file__, own, sys.path[:2])"
    )
    arguments = ["--cfg", "a.yaml", "--seed", "3", "--", "SOLVER.LR", "-0.1", "--djip-lens"]
    status, output = scripted(checkout, text, *arguments)
    paths = [str((checkout / "tools").resolve()), str(checkout.resolve())]
    assert status == 0
    assert f"{['tools/own.py', *arguments]} __main__ tools/own.py True {paths}" in output


def test_a_script_keeps_its_traceback_and_its_exit_status(checkout: Path) -> None:
    status, output = scripted(checkout, "def broken():\n    raise KeyError('mine')\nbroken()\n")
    assert status == 1 and "KeyError: 'mine'" in output and 'own.py", line 3' in output
    assert "launch.py" not in output
    assert scripted(checkout, "raise SystemExit(7)")[0] == 7


@pytest.mark.parametrize("lens, changed", [("lens.safetensors", True), ("identity", False)])
def test_the_launcher_puts_the_lens_before_the_teacher(
    lens: str, changed: bool, checkout: Path
) -> None:
    status, output = launched(checkout, "--djip-lens", lens, "tools/train.py", "KEY", "VALUE")
    assert status == 0 and f"changed {changed}" in output and "argv ['KEY', 'VALUE']" in output
    tag = "identity" if lens == "identity" else lens_id(JPEGLens(40.0, window=5))
    assert (
        f"djip: {'identity lens' if lens == 'identity' else f'lens {tag}'} in front of the teacher"
        in output
    )
    assert (checkout / "output/project" / f"djip-{tag}" / "name/latest").exists()
    assert f"djip: the run goes to output/project/djip-{tag}/name" in output


@pytest.mark.parametrize("lens, changed", [("lens.safetensors", True), ("identity", False)])
def test_the_launcher_puts_the_lens_before_what_eval_evaluates(
    lens: str, changed: bool, checkout: Path
) -> None:
    status, output = launched(checkout, "--djip-lens", lens, "tools/eval.py")
    assert status == 0 and f"changed {changed}" in output


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "sys.exit()"])
def test_a_lens_that_is_never_used_is_an_error(end: str, checkout: Path) -> None:
    (checkout / "tools/own.py").write_text(f"import sys\nprint('done')\n{end}")
    status, output = launched(checkout, "--djip-lens", "identity", "tools/own.py")
    assert status == 2 and "the lens was never used" in output


@pytest.mark.parametrize(
    "script, argument, expected",
    [("tools/own.py", "", 3), ("tools/own.py", "--help", 0), ("tools/used.py", "", 0)],
)
def test_a_script_that_exits_keeps_its_status(
    script: str, argument: str, expected: int, checkout: Path
) -> None:
    (checkout / "tools/own.py").write_text("import sys\nsys.exit(3 * ('--help' not in sys.argv))")
    (checkout / "tools/used.py").write_text(TRAIN + "    sys.exit(0)\n")
    status, output = launched(checkout, "--djip-lens", "identity", script, argument)
    assert status == expected and "never used" not in output, output


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["tools/missing.py"], "there is no script tools/missing.py"),
        (
            ["--djip-lens", "missing.safetensors", "tools/train.py"],
            "there is no lens missing.safetensors",
        ),
        (
            ["--no-workaround", "nonsense", "tools/train.py"],
            "there is no workaround 'nonsense'; the workarounds are path",
        ),
        (["--seed", "-1", "tools/train.py"], "--seed is -1"),
        (["--djip-any-teacher", "tools/train.py"], "--djip-any-teacher is about a lens"),
        (
            ["--host", "elsewhere", "--djip-lens", "identity", "tools/train.py"],
            "cannot import elsewhere.distillers",
        ),
    ],
)
def test_what_the_user_can_fix_is_one_line(argv: list[str], reason: str, checkout: Path) -> None:
    status, output = launched(checkout, *argv)
    assert status == 2 and f"error: {reason}" in output and "Traceback" not in output


def test_a_seed_fixes_the_draw_and_names_the_folder(checkout: Path) -> None:
    draws = []
    for seed in ("3", "3", "4"):
        _, output = launched(
            checkout, "--seed", seed, "--no-workaround", "folders", "tools/train.py"
        )
        draws.append(output.split("draw ")[1].split()[0])
    assert draws[0] == draws[1] != draws[2]
    assert launched(checkout, "--seed", "3", "tools/train.py")[0] == 0
    assert (checkout / "output/project/seed-3/name/latest").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["--djip-lens", "lens.safetensors", "K", "V"],
        ["K", "--djip-lens=lens.safetensors", "V"],
        ["K", "V", "--djip-lens", "lens.safetensors"],
    ],
)
def test_the_added_line_takes_the_flag_wherever_it_stands(argv: list[str], checkout: Path) -> None:
    sys_path = [str(checkout), *sys.path]

    def run() -> None:
        sys.path[:] = sys_path
        run_script("tools/patched.py", argv)

    status, output = forked(checkout, run)
    assert status == 0 and "changed True" in output and "argv ['K', 'V']" in output
    assert (
        checkout / "output/project" / f"djip-{lens_id(JPEGLens(40.0, window=5))}" / "name/latest"
    ).exists()


def test_the_added_line_finds_the_registry_and_refuses_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    benchmark = importlib.import_module("djip_ext.autoload").benchmark
    del sys.modules["djip_ext.autoload"]  # the other tests' scripts import it anew
    assert benchmark() == "mdistiller"
    for name in ("one", "two"):
        registry = types.SimpleNamespace(distiller_dict={})
        monkeypatch.setitem(sys.modules, f"{name}.distillers", registry)
        if name == "one":
            assert benchmark() == "one"
    with pytest.raises(DJIPError, match="one, two all have a distiller_dict"):
        benchmark()


def test_the_added_line_refuses_the_lens_flag_without_a_lens(checkout: Path) -> None:
    def run() -> None:
        sys.path.insert(0, str(checkout))
        run_script("tools/patched.py", ["--djip-any-teacher"])

    status, output = forked(checkout, run)
    assert status == 1 and "error: --djip-any-teacher is about a lens" in output


def test_the_added_line_does_nothing_without_the_flag(checkout: Path) -> None:
    def run() -> None:
        sys.path.insert(0, str(checkout))
        run_script("tools/patched.py", ["K", "V"])

    status, output = forked(checkout, run)
    assert (
        status == 0
        and "djip" not in output
        and "changed False" in output
        and "wandb True" in output
    )
    assert (checkout / "output/project/name/latest").exists()


@pytest.mark.parametrize("used", [False, True])
def test_the_added_line_says_when_the_lens_was_never_used(used: bool, checkout: Path) -> None:
    path = checkout / "tools/patched.py"
    path.write_text(path.read_text() if used else path.read_text().partition("if __name__")[0])

    def run() -> None:
        sys.path.insert(0, str(checkout))
        run_script("tools/patched.py", ["--djip-lens", "identity"])
        atexit._run_exitfuncs()  # a fork ends without them

    status, output = forked(checkout, run)
    assert status == 0 and ("the lens was never used" in output) != used


@pytest.mark.parametrize("entry", ["launcher", "one line"])
def test_packages_at_the_top_of_a_checkout_have_the_name_dot(entry: str, checkout: Path) -> None:
    script = checkout / "host/tools/train.py"
    script.parent.mkdir()
    text = (TRAIN if entry == "launcher" else (checkout / "tools/patched.py").read_text()).replace(
        "from host.", "from "
    )
    script.write_text(
        text.replace(
            "cfg.freeze()", "cfg.freeze()\n    sys.argv += ['--', distiller_dict['KD'].__module__]"
        )
    )

    def run() -> None:
        for name in [name for name in sys.modules if name == "host" or name.startswith("host.")]:
            del sys.modules[name]
        if entry == "launcher":
            launch(["--host", ".", "--djip-lens", "lens.safetensors", str(script)])
        else:
            sys.path.insert(0, str(checkout / "host"))
            run_script(str(script), ["--djip-lens", "lens.safetensors"])

    status, output = forked(checkout, run)
    assert status == 0 and "changed True" in output and "'distillers'" in output, output


def test_a_host_without_a_project_is_told_to_name_its_folder(checkout: Path) -> None:
    path = checkout / "host/engine/cfg.py"
    path.write_text(CFG.replace('"PROJECT": "project"', '"SEED": 1'))
    (checkout / "tools/train.py").write_text(TRAIN.replace("{cfg.EXPERIMENT.PROJECT}", "own"))
    status, output = launched(checkout, "--djip-lens", "identity", "tools/train.py")
    assert status == 2 and "no EXPERIMENT.PROJECT" in output and not (checkout / "output").exists()
    assert (
        launched(
            checkout, "--djip-lens", "identity", "--no-workaround", "folders", "tools/train.py"
        )[0]
        == 0
    )


def test_wandb_is_off_unless_its_workaround_is(checkout: Path) -> None:
    assert "wandb False" in launched(checkout, "tools/train.py")[1]
    assert (
        "wandb True"
        in launched(
            checkout, "--no-workaround", "wandb", "--no-workaround", "folders", "tools/train.py"
        )[1]
    )


def test_what_stands_in_for_wandb_can_be_looked_for(checkout: Path) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    text = "from importlib.util import find_spec\nimport wandb\nprint(find_spec('wandb').name)"
    status, output = scripted(checkout, text)
    assert status == 0, output


def test_a_finished_run_is_not_written_over_unless_the_workaround_is_off(checkout: Path) -> None:
    assert launched(checkout, "tools/train.py")[0] == 0
    status, output = launched(checkout, "tools/train.py")
    assert status == 2 and "output/project/name holds a run already" in output
    assert launched(checkout, "tools/train.py", "--resume")[0] == 0
    assert launched(checkout, "--no-workaround", "folders", "tools/train.py")[0] == 0


def test_a_lens_never_writes_among_the_plain_runs(checkout: Path) -> None:
    path = checkout / "tools/train.py"
    path.write_text(TRAIN.replace("cfg.freeze()", "pass"))
    status, output = launched(checkout, "--djip-lens", "identity", "tools/train.py")
    assert status == 2 and "among runs without djip-identity" in output
    assert not (checkout / "output").exists()


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="the fault is there on a machine without a GPU only"
)
def test_cuda_means_cpu_where_there_is_no_gpu(checkout: Path) -> None:
    text = (
        "import torch\nx = torch.zeros(2)\n"
        "print(x.cuda(non_blocking=True) is x, torch.nn.Linear(1, 1).cuda().weight.device)"
    )
    assert "True cpu" in scripted(checkout, text)[1]
    (checkout / "tools/own.py").write_text(text)
    assert launched(checkout, "--no-workaround", "cpu", "tools/own.py")[0] == 1


def test_a_learning_rate_that_numpy_computed_can_be_resumed(checkout: Path) -> None:
    torch.save({"lr": 0.05 * np.float64(0.1)}, checkout / "latest_state")
    text = "import torch\nprint('lr', torch.load('latest_state', weights_only=True)['lr'])"
    assert "lr 0.005" in scripted(checkout, text)[1]
    assert launched(checkout, "--no-workaround", "resume", "tools/own.py")[0] == 1


def test_a_script_imports_its_own_checkout(checkout: Path, tmp_path: Path) -> None:
    shadow = tmp_path / "installed" / "host"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("")
    (checkout / "tools/own.py").write_text("import host\nprint(host.__file__)")

    def run(*flags: str) -> tuple[int, str]:
        def shadowed() -> None:
            sys.path.insert(0, str(shadow.parent))
            launch(["--host", "host", *flags, str(checkout / "tools/own.py")])

        return forked(tmp_path, shadowed)

    status, output = run()
    assert status == 0 and str(checkout / "host/__init__.py") in output and "not from" in output
    assert str(shadow / "__init__.py") in run("--no-workaround", "path")[1]


def test_missing_scipy_stops_and_says_what_to_do(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "scipy" else find(name, *rest),
    )
    assert launched(checkout, "tools/train.py")[0] == 0  # this host does not use it
    (checkout / "host/distillers/OFD.py").write_text("from scipy.stats import norm\n")
    status, output = launched(checkout, "tools/train.py")
    assert status == 2 and "pip install scipy" in output
    assert (
        launched(
            checkout, "--no-workaround", "scipy", "--no-workaround", "folders", "tools/train.py"
        )[0]
        == 0
    )


def test_every_workaround_has_a_fault_and_a_name_of_its_own() -> None:
    assert (
        len({workaround.name for workaround in WORKAROUNDS})
        == len(WORKAROUNDS)
        == len({workaround.fault for workaround in WORKAROUNDS})
    )


def test_the_documentation_lists_every_workaround() -> None:
    page = (Path(__file__).parents[2] / "docs" / "hosts.md").read_text()
    text = page.partition("## Workarounds")[2].partition("\n## ")[0]
    listed = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert listed == [workaround.name for workaround in WORKAROUNDS]
