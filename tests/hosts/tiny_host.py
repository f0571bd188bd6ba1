"""A benchmark of a few lines, laid out as mdistiller is, whose train.py seeds itself."""

from pathlib import Path

from helpers.forks import forked

from djip_ext import JPEGLens
from djip_ext.launch import main as launch

DISTILLERS = """
import torch
from torch import nn

class Vanilla(nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, image):
        return self.student(image).square().mean()

class Labels(Vanilla):
    def __init__(self, student, cfg):
        super().__init__(student)

class KD(nn.Module):
    def __init__(self, student, teacher, cfg):
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, image):
        with torch.no_grad():
            target = self.teacher(image)
        return (self.student(image) - target).square().mean()

distiller_dict = {"NONE": Vanilla, "LABELS": Labels, "KD": KD}
"""
CFG = """
from yacs.config import CfgNode
CFG = CfgNode({
    "EXPERIMENT": {"PROJECT": "project"},
    "DATASET": {"TYPE": "cifar100"},
    "DISTILLER": {"TYPE": "KD"},
})
"""
TRAIN = """
import argparse
import os
import random
import numpy as np
import torch
from torch import nn
from tensorboardX import SummaryWriter
from host.distillers import distiller_dict
from host.engine.cfg import CFG as cfg
from host.teachers import network, teacher

def setup_seed(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--type", default="KD")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    setup_seed(args.seed)
    cfg.freeze()
    folder = f"output/{cfg.EXPERIMENT.PROJECT}/name"
    student = network()
    extra = {"NONE": (), "LABELS": (cfg,)}.get(args.type, (teacher(), cfg))
    distiller = distiller_dict[args.type](student, *extra)
    os.makedirs(folder, exist_ok=True)
    SummaryWriter(f"{folder}/train.events")
    if args.resume:
        student.load_state_dict(torch.load(f"{folder}/latest"))
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        distiller(torch.randn(4, 3, 8, 8)).backward()
        optimizer.step()
    torch.save(student.state_dict(), f"{folder}/latest")
    print("trained in", folder)
"""
TEACHERS = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

def teacher():
    net = network()
    generator = torch.Generator().manual_seed(9)
    nn.init.normal_(net[1].weight, generator=generator)
    nn.init.zeros_(net[1].bias)
    return net
"""


def write_checkout(folder: Path) -> Path:
    """Write the host's checkout with two lenses made by hand into ``folder``."""
    files = {
        "host/__init__.py": "",
        "host/distillers/__init__.py": DISTILLERS,
        "host/engine/__init__.py": "",
        "host/engine/cfg.py": CFG,
        "host/teachers.py": TEACHERS,
        "tools/train.py": TRAIN,
        "tools/patched.py": TRAIN.replace(
            "distiller_dict\nfrom", "distiller_dict\nimport djip_ext.autoload\nfrom", 1
        ),
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    JPEGLens(40.0, window=5).save(folder / "lens.safetensors")
    JPEGLens(20.0, window=5).save(folder / "other.safetensors")
    return folder


def launched(folder: Path, *argv: str) -> tuple[int, str]:
    """Exit status and output of the launcher in a child process."""
    return forked(folder, lambda: launch(["--host", "host", *argv]))
