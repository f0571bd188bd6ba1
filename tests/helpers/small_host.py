"""A copy of a checkout made small: few images, a teacher of random weights, a lens, one epoch."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from djip_ext import JPEGLens
from djip_ext.bench.models import cifar_model_dict

TEACHER, STUDENT = "resnet56", "resnet20"
WIDTHS = [16, 32, 64, 64]  # of both alike, with the pooled feature
SHARED = {
    "EXPERIMENT": {"PROJECT": "hosts"},
    "DATASET": {"TYPE": "cifar100", "NUM_WORKERS": 0, "TEST": {"BATCH_SIZE": 50}},
    "DISTILLER": {"TEACHER": TEACHER, "STUDENT": STUDENT},
    "SOLVER": {"BATCH_SIZE": 10, "EPOCHS": 1, "LR": 0.05},
}
NODES = {
    "CRD": {"FEAT": {"STUDENT_DIM": 64, "TEACHER_DIM": 64}, "NCE": {"K": 50}},
    "REVIEWKD": {
        "IN_CHANNELS": WIDTHS,
        "OUT_CHANNELS": WIDTHS,
        "SHAPES": [1, 8, 16, 32],
        "OUT_SHAPES": [1, 8, 16, 32],
        "MAX_MID_CHANNEL": 64,
    },
    "FT": {"PRETRAIN": {"EPOCHS": 1}},
}


def prepare(checkout: Path, copy: Path, data: Path) -> Path:
    """A copy of the checkout with a subset of CIFAR-100, a teacher and a lens beside it."""
    shutil.copytree(
        checkout, copy, ignore=shutil.ignore_patterns(".git", "data", "download_ckpts", "output")
    )
    folder = copy / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    shutil.copy(data / "cifar-100-python" / "meta", folder)
    for part, size in (("train-20", 20), ("train-100", 100), ("test", 10)):
        entry = pickle.loads(
            (data / "cifar-100-python" / part.partition("-")[0]).read_bytes(), encoding="latin1"
        )
        first = [entry["fine_labels"].index(label) for label in range(size)]
        subset = {
            "data": entry["data"][first],
            "fine_labels": [entry["fine_labels"][i] for i in first],
        }
        (folder / part).write_bytes(pickle.dumps(subset))
    weights = (
        copy / "download_ckpts" / "cifar_teachers" / f"{TEACHER}_vanilla" / "ckpt_epoch_240.pth"
    )
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    teacher = cifar_model_dict[TEACHER][0](num_classes=100)
    for module in teacher.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = (
                None  # a plain mean: one pass then gives statistics under which images differ
            )
    images = torch.from_numpy(entry["data"][:50]).view(-1, 3, 32, 32).float()
    with torch.no_grad():
        teacher((images - 127.5) / 64)
    torch.save({"model": teacher.state_dict()}, weights)
    JPEGLens(12.0, window=5).save(copy / "lens.safetensors")
    return copy


def train_set(host: Path, size: int) -> None:
    folder = host / "data" / "cifar-100-python"
    shutil.copy(folder / f"train-{size}", folder / "train")


def configurations(host: Path, cfg: Any) -> dict[str, str]:
    """Distiller -> the first of the host's files that ``cfg`` accepts; CIFAR-100 before others."""
    found: dict[str, str] = {}
    for path in sorted(
        (host / "configs").glob("**/*.yaml"), key=lambda path: ("cifar100" not in path.parts, path)
    ):
        node = yaml.safe_load(path.read_text()) or {}
        kind = node.get("DISTILLER", {}).get("TYPE")
        if kind in found or "DOT" in node.get("SOLVER", {}) or "imagenet" in str(path):
            continue
        try:
            cfg.clone().merge_from_file(str(path))
        except (KeyError, ValueError, AssertionError):
            continue
        found[kind] = str(path)
    return found


def configuration(host: Path, kind: str) -> dict:
    """The host's own YAML for this distiller, where it has one, for our pair and one epoch."""
    found = json.loads((host / "configurations.json").read_text())
    merged = yaml.safe_load(Path(found[kind]).read_text()) if kind in found else {}
    tag = f"{kind.lower()},res56,res20"  # in the form that one of the forks asserts
    own = {
        "EXPERIMENT": {"NAME": kind, "TAG": tag},
        "DISTILLER": {"TYPE": kind},
        **({kind: NODES[kind]} if kind in NODES else {}),
    }
    solver = (
        {"SOLVER": {"BATCH_SIZE": 50, **({"TRAINER": "crd"} if kind == "CRD" else {})}}
        if "CRD" in kind
        else {}
    )
    for layer in (SHARED, own, solver):
        merged = overlaid(merged, layer)
    return merged


def overlaid(under: dict, over: dict) -> dict:
    both = {
        key: overlaid(under[key], value) if isinstance(value, dict) and key in under else value
        for key, value in over.items()
    }
    return {**under, **both}
