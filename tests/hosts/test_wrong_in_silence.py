"""What a host would otherwise do wrong without a word, or end with a traceback: one line each."""

import argparse
import importlib
import inspect
import os
import sys
import types
from pathlib import Path

import pytest
import tensorboardX  # noqa: F401  (here once, not in every fork)
import torch
from helpers.forks import forked
from tiny_host import launched, write_checkout
from torch import nn
from yacs.config import CfgNode

from djip_ext import JPEGLens
from djip_ext.hosts.activation import add_flags
from djip_ext.hosts.extra_distillers import add_missing
from djip_ext.hosts.registry import takes_teacher
from djip_ext.launch import main as launch
from djip_ext.launch import run_script
from djip_ext.lens.io import lens_id, weight_hash
from djip_ext.lens.normalisation import NORMALISATIONS

LENS = JPEGLens(40.0, window=5)
BY_HAND = f"lens {lens_id(LENS)} was made by hand or by another program"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path)


def refusal(output: str) -> str:
    """The one line that a refused run ends with."""
    assert "Traceback" not in output and output.count("error: ") == 1, output
    return next(line for line in output.splitlines() if line.startswith("error: "))


def fitted_lens(checkout: Path, mean: tuple[float, ...] | None = None) -> str:
    """A lens that knows the weights of the host's teacher."""
    scope: dict[str, object] = {}
    exec((checkout / "host/teachers.py").read_text(), scope)
    lens = JPEGLens(40.0, window=5)
    lens.metadata = {
        "teacher_hash": weight_hash(scope["teacher"]()),
        "teacher": "small",
        "mean": mean or NORMALISATIONS["cifar100"][0],
    }
    lens.save(checkout / "fitted.safetensors")
    return "fitted.safetensors"


def wrap_teacher(checkout: Path, wrapper: str) -> None:
    """Let the host's script hand the registry ``wrapper`` of its teacher."""
    path = checkout / "tools/train.py"
    path.write_text(path.read_text().replace("(teacher(), cfg)", f"({wrapper}, cfg)"))
    teachers = checkout / "host/teachers.py"
    teachers.write_text(
        teachers.read_text()
        + """
class Ensemble(nn.Module):
    def __init__(self, *members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image):
        return sum(member(image) for member in self.members)
"""
    )
    path.write_text(path.read_text().replace("import network,", "import Ensemble, network,"))


def test_a_lens_without_a_fingerprint_is_said_to_be_unchecked(checkout: Path) -> None:
    status, output = launched(checkout, "--djip-lens", "lens.safetensors", "tools/train.py")
    assert status == 0 and output.count(BY_HAND) == 1, output


@pytest.mark.parametrize("argv", [["fitted.safetensors"], ["identity"], ["temperature:2"]])
def test_nothing_is_said_of_what_needs_no_check(argv: list[str], checkout: Path) -> None:
    fitted_lens(checkout)
    status, output = launched(checkout, "--djip-lens", *argv, "tools/train.py")
    assert status == 0 and "by hand" not in output, output


def test_any_teacher_silences_the_check(checkout: Path) -> None:
    flags = ["--djip-any-teacher", "--djip-lens", "lens.safetensors"]
    assert "by hand" not in launched(checkout, *flags, "tools/train.py")[1]


@pytest.mark.parametrize(
    "first, second, reason",
    [
        (["--djip-lens", "lens.safetensors"], ["--djip-lens", "other.safetensors"], "give one"),
        (["--djip-lens", "lens.safetensors"], ["--djip-lens", "identity"], "give one"),
        (["--seed", "1"], ["--djip-lens", "lens.safetensors"], "no lens before the teacher"),
        (["--seed", "1"], ["--djip-seed", "2"], "the launcher's seed is 1"),
        (["--seed", "1"], ["--djip-any-teacher"], "comes too late"),
        (["--djip-lens", "lens.safetensors"], ["--djip-any-teacher"], "comes too late"),
        (["--djip-lens", "lens.safetensors"], ["--djip-lens", "lens.safetensors"], ""),
        (["--djip-lens", "lens.safetensors", "--seed", "1"], ["--djip-seed", "1"], ""),
    ],
)
def test_both_entry_points_at_once_have_to_ask_for_the_same(
    first: list[str], second: list[str], reason: str, checkout: Path
) -> None:
    status, output = launched(checkout, *first, "tools/patched.py", *second)
    if reason:
        assert status != 0 and reason in refusal(output) and not list(checkout.rglob("latest"))
        return
    assert status == 0 and output.count("in front of the teacher") == 1, output
    name = f"djip-{lens_id(LENS)}" + ("/seed-1" if "--seed" in first else "")
    assert f"trained in output/project/{name}/name" in output


def test_a_teacher_that_the_host_has_wrapped_is_the_one_of_the_fit(checkout: Path) -> None:
    lens = fitted_lens(checkout)
    wrap_teacher(checkout, "Ensemble(teacher(), network())")
    status, output = launched(checkout, "--djip-lens", lens, "tools/train.py")
    assert status == 0, output
    assert "fitted for a Sequential, which the host has put into a Ensemble" in output


def test_a_wrapped_teacher_with_other_weights_is_still_refused(checkout: Path) -> None:
    lens = fitted_lens(checkout)
    wrap_teacher(checkout, "Ensemble(network())")
    status, output = launched(checkout, "--djip-lens", lens, "tools/train.py")
    assert status == 2 and "was fitted for small with weights" in refusal(output)


def test_a_wrapped_teacher_with_another_scale_is_still_refused(checkout: Path) -> None:
    lens = fitted_lens(checkout, mean=(0.1, 0.2, 0.3))
    wrap_teacher(checkout, "Ensemble(teacher())")
    status, output = launched(checkout, "--djip-lens", lens, "tools/train.py")
    assert status == 2 and "was fitted with mean (0.1, 0.2, 0.3)" in refusal(output)


class Both:
    def __init__(self, student: nn.Module, teacher: nn.Module, cfg: object) -> None: ...


class Alone:
    def __init__(self, student: nn.Module) -> None: ...


def with_configuration(student: nn.Module, cfg: object) -> None: ...


def with_network(model_s: nn.Module, model_t: nn.Module) -> None: ...


def anything(*args: object, **kwargs: object) -> None: ...


def any_rest(student: nn.Module, teacher: nn.Module, *args: object) -> None: ...


@pytest.mark.parametrize(
    "name, build, takes",
    [
        ("KD", Both, True),
        ("SCRATCH", Alone, False),
        ("LABELS", with_configuration, False),
        ("KD", with_network, True),
        ("KD", any_rest, True),
        ("KD", anything, True),
        ("NONE", anything, False),
        ("NONE", Both, True),
    ],
)
def test_the_signature_says_whether_an_entry_takes_a_teacher(
    name: str, build: object, takes: bool
) -> None:
    assert takes_teacher(name, build) is takes


@pytest.mark.parametrize("kind", ["NONE", "LABELS"])
@pytest.mark.parametrize("lens", ["lens.safetensors", "identity"])
def test_a_lens_for_a_distiller_without_a_teacher_is_refused_before_training(
    kind: str, lens: str, checkout: Path
) -> None:
    status, output = launched(checkout, "--djip-lens", lens, "tools/train.py", "--type", kind)
    assert status == 2 and f"DISTILLER.TYPE {kind} takes no teacher" in refusal(output)
    assert not list(checkout.rglob("latest"))
    assert launched(checkout, "tools/train.py", "--type", kind)[0] == 0


def test_in_python_a_distiller_without_a_teacher_is_built_as_ever(checkout: Path) -> None:
    def run() -> None:
        sys.path.insert(0, str(checkout))
        from djip_ext import install

        assert "of 7 distillers" in install("identity", "host")  # KD, and the six added
        registry = importlib.import_module("host.distillers").distiller_dict
        student = nn.Flatten()
        assert registry["NONE"](student).student is student
        assert registry["LABELS"](student, "cfg").student is student
        assert list(inspect.signature(registry["KD"]).parameters) == ["student", "teacher", "cfg"]

    status, output = forked(checkout, run)
    assert status == 0, output


@pytest.mark.parametrize("module, pretrains", [("host.distillers", False), ("djip_ext.x", True)])
def test_only_our_own_methods_are_pretrained(
    module: str, pretrains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distiller:
        called = False

        def pretrain(self, loader: object) -> None:
            self.called = True

    Distiller.__module__ = module

    class BaseTrainer:
        distiller, train_loader = Distiller(), ()

        def train(self, resume: bool = False) -> None: ...

    engine = {"cfg": {"CFG": CfgNode({})}, "trainer": {"BaseTrainer": BaseTrainer}}
    for name in ("tiny", "tiny.engine"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, contents in engine.items():
        part = types.ModuleType(f"tiny.engine.{name}")
        part.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, part.__name__, part)
    remove = add_missing("tiny", {})
    BaseTrainer().train()
    remove()
    assert BaseTrainer.distiller.called is pretrains


@pytest.mark.parametrize("logs", [True, False])
def test_torchrun_on_a_script_that_does_not_join_is_refused_before_training(
    logs: bool, checkout: Path
) -> None:
    path = checkout / "tools/train.py"
    if not logs:
        path.write_text(path.read_text().replace("SummaryWriter(f", "str(f"))

    def run(*flags: str) -> tuple[int, str]:
        def second_of_two() -> None:
            os.environ |= {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
            launch(["--host", "host", *flags, "tools/train.py"])

        return forked(checkout, second_of_two)

    status, output = run()
    assert status == 2 and "2 processes were started" in refusal(output)
    assert not list(checkout.rglob("latest")) and not list(checkout.rglob("*tfevents*"))
    assert run("--no-workaround", "torchrun")[0] == 0


def test_resuming_without_a_checkpoint_is_one_line(checkout: Path) -> None:
    status, output = launched(checkout, "tools/train.py", "--resume")
    assert status == 2 and "finds no checkpoint in output/project/name" in refusal(output)
    assert launched(checkout, "tools/train.py")[0] == 0
    assert launched(checkout, "tools/train.py", "--resume")[0] == 0


def test_a_checkpoint_of_another_place_may_be_resumed(checkout: Path) -> None:
    path = checkout / "tools/train.py"
    text = path.read_text().replace('"--resume", action="store_true"', '"--resume"')
    path.write_text(text.replace('torch.load(f"{folder}/latest")', "torch.load(args.resume)"))
    assert launched(checkout, "--seed", "1", "tools/train.py")[0] == 0
    named = "output/project/seed-1/name/latest"
    assert launched(checkout, "--seed", "2", "tools/train.py", "--resume", named)[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine without a GPU only")
def test_memory_statistics_of_a_gpu_do_nothing_without_one(checkout: Path) -> None:
    (checkout / "tools/own.py").write_text(
        "import torch\ntorch.cuda.reset_peak_memory_stats()\ntorch.cuda.synchronize()\n"
        "print('peak', torch.cuda.max_memory_allocated())\n"
    )
    status, output = launched(checkout, "tools/own.py")
    assert status == 0 and "peak 0" in output


def test_the_former_names_of_the_flags_are_taken_and_not_shown() -> None:
    for prefix in ("", "djip-"):
        parser = argparse.ArgumentParser()
        add_flags(parser, prefix)
        assert "cure" not in parser.format_help()
        flags = parser.parse_args([f"--{prefix}no-cure", "cpu", f"--{prefix}no-workaround", "path"])
        assert flags.no_workaround == ["cpu", "path"]
        assert parser.parse_args([]).no_workaround == []


def test_the_added_line_ends_in_one_line_too(checkout: Path) -> None:
    def run() -> None:
        sys.path.insert(0, str(checkout))
        run_script("tools/patched.py", ["--djip-lens", "identity", "--type", "NONE"])

    def unlaunched() -> None:
        try:
            run()
        except Exception as error:  # as the interpreter does at the end of a script
            sys.excepthook(type(error), error, error.__traceback__)
            raise SystemExit(1) from None

    status, output = forked(checkout, unlaunched)
    assert status == 1 and "DISTILLER.TYPE NONE takes no teacher" in refusal(output)
