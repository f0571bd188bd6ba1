"""Every script under examples/ runs, is short, and has a section in docs/frameworks.md."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from djip_ext import JPEGLens
from djip_ext.lens.io import lens_id

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
LONGEST = 60
NEEDS = {
    "plain_pytorch": [],
    "torchdistill_kd": ["torchdistill"],
    "timm_task": ["timm.task"],
    "hf_trainer": ["transformers", "accelerate"],
    "lightning_module": ["lightning"],
}

# The surface of RepDistiller's train_student.py that the launcher touches.
TRAIN_STUDENT = """
import argparse
import torch


def load_teacher(model_path, n_cls):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, n_cls))
    network.load_state_dict(torch.load(model_path)["model"])
    return network


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--path_t")
    parser.add_argument("--distill")
    parser.add_argument("--trial")
    opt = parser.parse_args()
    teacher = load_teacher(opt.path_t, 5)
    teacher.train()
    images = torch.linspace(-2, 2, 192).reshape(1, 3, 8, 8)
    print(opt.distill, opt.trial, teacher.training, teacher(images).tolist()[0])
"""


def run(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    for module in NEEDS[name]:
        pytest.importorskip(module)
    last = run(name, tmp_path).strip().splitlines()[-1]
    found = re.fullmatch(r"lens [0-9a-f]{8}, loss ([\d.]+)", last)
    assert found is not None, last
    assert 0 < float(found[1]) < 50 and math.isfinite(float(found[1]))


def test_repdistiller_s_script_runs_untouched(tmp_path: Path) -> None:
    import torch

    (tmp_path / "train_student.py").write_text(TRAIN_STUDENT)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64, 5))
    torch.save({"model": network.state_dict()}, tmp_path / "teacher.pth")
    lens = JPEGLens(q=60.0, kappa=5.0)
    lens.save(tmp_path / "lens.safetensors")
    arguments = ["--path_t", "teacher.pth", "--distill", "kd", "--trial", "7", "--djip-lens"]
    plain = run("repdistiller", tmp_path, *arguments, "identity").splitlines()[-1]
    seen = run("repdistiller", tmp_path, *arguments, "lens.safetensors").splitlines()[-1]
    assert plain.startswith("kd 7_djip-identity False [")
    assert seen.startswith(f"kd 7_djip-{lens_id(lens)} False [")
    images = torch.linspace(-2, 2, 192).reshape(1, 3, 8, 8)
    expected = str(network(images).tolist()[0])
    assert plain.endswith(expected) and not seen.endswith(expected)


def test_examples_are_short_and_documented() -> None:
    guide = (ROOT / "docs" / "frameworks.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= LONGEST, path
        assert f"examples/{path.name}" in guide or path.name == "tiny.py", path
