"""The generated configurations: current, the published recipe, and each builds and learns."""

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.distillers import distiller_dict, methods
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import build_distiller, build_model
from djip_ext.bench.engine.trainer import trainer_dict
from djip_ext.bench.models import cifar_model_dict
from djip_ext.experiments.cost import random_teacher

ROOT = Path(__file__).parents[2]
METHODS = list(methods)


def _writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write", ROOT / "configs" / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITER = _writer()
PAIRS = list(WRITER.CIFAR_PAIRS)


def config(pair: str, method: str) -> str:
    return str(ROOT / "configs" / "cifar100" / method.lower() / f"{pair}.yaml")


def test_the_files_are_what_write_py_says() -> None:
    assert WRITER.stale() == []


def test_files_that_are_not_current_are_named(tmp_path: Path) -> None:
    for name, content in WRITER.compose().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "cifar100/kd/vgg13_vgg8.yaml").write_text("changed by hand")
    (tmp_path / "cifar100/at/vgg13_vgg8.yaml").unlink()
    (tmp_path / "cifar100/old.yaml").write_text(WRITER.HEADER + "no longer written")
    assert sorted(WRITER.stale(tmp_path)) == [
        "cifar100/at/vgg13_vgg8.yaml",
        "cifar100/kd/vgg13_vgg8.yaml",
        "cifar100/old.yaml",
    ]


@pytest.mark.parametrize("pair", PAIRS)
def test_every_method_of_a_pair_has_the_published_recipe(pair: str) -> None:
    for method in METHODS:
        cfg = load_cfg(config(pair, method))
        solver = cfg.SOLVER
        assert (method, "cifar100") == (cfg.DISTILLER.TYPE, cfg.DATASET.TYPE)
        assert (solver.EPOCHS, solver.BATCH_SIZE, solver.MOMENTUM, solver.WEIGHT_DECAY) == (
            240,
            64,
            0.9,
            0.0005,
        )
        assert (solver.LR_DECAY_STAGES, solver.LR_DECAY_RATE) == ([150, 180, 210], 0.1)
        assert (
            0.01 if cfg.DISTILLER.STUDENT in ("MobileNetV2", "ShuffleV1", "ShuffleV2") else 0.05
        ) == solver.LR


@pytest.mark.parametrize(
    "method, weights",
    [
        ("KD", [4, 0.1, 0.9]),
        ("DIST", [4, 1, 2, 2]),
        ("LSKD", ["KD", 2, 0.1, 9]),
        ("CC", [128, 1, 0.02]),
        ("RKD", [25, 50, 1, 1]),
        ("AT", [2, 1, 1000]),
        ("SP", [1, 3000]),
        ("FITNET", [2, 1, 100]),
        ("FT", [0.5, 1, 200]),
        ("CRD", [1, 0.8, 16384, 0.5, 0.07, 256, 256]),
        ("ITRD", [1.01, 1, 2, 1]),
        ("DKD", [1, 1, 8, 4, 20]),
    ],
)
def test_the_weights_are_the_published_ones(method: str, weights: list[float]) -> None:
    def leaves(node: dict) -> list:
        return [
            leaf
            for value in node.values()
            for leaf in (leaves(value) if isinstance(value, dict) else [value])
        ]

    assert (
        leaves(yaml.safe_load(Path(config("res32x4_res8x4", method)).read_text())[method])
        == weights
    )


def test_the_weights_of_a_pair_are_those_that_docs_distillers_lists() -> None:
    rows = re.findall(
        r"^\| (\w+) - (\w+) \|" + r" ?([\d.]*) \|" * 5,
        (ROOT / "docs" / "distillers.md").read_text(),
        flags=re.MULTILINE,
    )
    listed = {(teacher, student): numbers for teacher, student, *numbers in rows}
    assert len(listed) == len(PAIRS)
    for pair in PAIRS:
        wttm, itrd, dkd = (load_cfg(config(pair, method)) for method in ("WTTM", "ITRD", "DKD"))
        ours = [
            wttm.WTTM.GAMMA,
            wttm.WTTM.LOSS.KD_WEIGHT,
            itrd.ITRD.ALPHA,
            itrd.ITRD.LOSS.MUTUAL_WEIGHT,
            dkd.DKD.BETA,
        ]
        for number, published in zip(
            ours, listed[dkd.DISTILLER.TEACHER, dkd.DISTILLER.STUDENT], strict=True
        ):
            assert published == "" or number == float(published)


def networks(pair: str) -> tuple[nn.Module, nn.Module]:
    """Teacher and student with random weights.

    The teacher has the statistics of noise, without which a deep one's numbers explode.
    """
    teacher, student, _ = WRITER.CIFAR_PAIRS[pair]
    return random_teacher(
        load_cfg(config(pair, "KD"), ["BENCH.DEVICE", "cpu"]), make_synthetic(1, 0)
    ), build_model(student, 20)


def distiller_of(
    pair: str, method: str, teacher: nn.Module, student: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> tuple[nn.Module, CfgNode]:
    """The method on the given networks, as a run builds it.

    With sixteen negatives for CRD and one epoch of pretraining for FT.
    """
    monkeypatch.setitem(
        cifar_model_dict, WRITER.CIFAR_PAIRS[pair][1], (lambda num_classes: student, None)
    )
    cfg = load_cfg(
        config(pair, method), ["BENCH.DEVICE", "cpu", "CRD.NCE.K", 16, "FT.PRETRAIN.EPOCHS", 1]
    )
    return build_distiller(cfg, teacher, 8, 20), cfg


@pytest.mark.parametrize("pair", PAIRS)
def test_every_method_of_a_pair_builds(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = networks(pair)
    for method in METHODS:
        distiller, cfg = distiller_of(pair, method, teacher, student, monkeypatch)
        assert type(distiller) is distiller_dict[method] and cfg.SOLVER.TRAINER in trainer_dict


def step(distiller: nn.Module, cfg: CfgNode, count: int, size: int) -> dict[str, torch.Tensor]:
    """The losses of a training step on ``count`` images of noise, which is taken."""
    index = torch.arange(count)
    contrast = torch.cat([index[:, None], torch.randint(count, 8, (count, 16))], dim=1)
    batch = {
        "image": torch.randn(count, 3, size, size),
        "target": index,
        "index": index,
        "contrastive_index": contrast,
        "epoch": 1,
    }
    if hasattr(distiller, "pretrain"):
        distiller.pretrain([(batch["image"],)])
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=cfg.SOLVER.LR)
    _, losses = distiller.train()(**batch)
    sum(losses.values()).backward()
    optimizer.step()
    return losses


@pytest.mark.parametrize("pair", WRITER.IMAGENET_PAIRS)
def test_every_method_of_an_imagenet_pair_takes_a_step(pair: str) -> None:
    names = WRITER.IMAGENET_PAIRS[pair][0]
    if names[0].startswith("timm:"):
        pytest.importorskip("timm")
    files = sorted((ROOT / "configs" / "imagenet" / pair).glob("*.yaml"))
    teacher = build_model(names[0], 10, "imagenet").eval()
    size = 224 if names[0].startswith("timm:") else 64
    for file in files:
        cfg = load_cfg(str(file), ["BENCH.DEVICE", "cpu", "CRD.NCE.K", 16])
        assert (cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT, cfg.DISTILLER.TYPE.lower()) == (
            *names,
            file.stem,
        )
        distiller = build_distiller(cfg, teacher, 8, 10)
        assert all(torch.isfinite(loss) for loss in step(distiller, cfg, 2, size).values())
    assert len(files) >= 4


EVERY = (
    "DJIP_TEST_EVERY_CONFIG" in os.environ
)  # some minutes; by default each pair and each method takes a step once
STEPS = [(p, m) for i, p in enumerate(PAIRS) for j, m in enumerate(METHODS) if EVERY or i == j]


@pytest.mark.parametrize("pair, method", STEPS)
def test_one_step_moves_the_student(
    pair: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distiller, cfg = distiller_of(pair, method, *networks(pair), monkeypatch)
    before = [parameter.detach().clone() for parameter in distiller.student.parameters()]
    assert all(torch.isfinite(loss) for loss in step(distiller, cfg, 4, 32).values())
    assert any(
        not torch.equal(old, new)
        for old, new in zip(before, distiller.student.parameters(), strict=True)
    )
