"""What a benchmark and a lens owe each other, for every distiller of the benchmark.

Runs against the embedded benchmark and, when MDISTILLER_ROOT names a checkout of mdistiller or of
a fork, against that one too (MDISTILLER_PACKAGE: its package, ``mdistiller`` unless given).  Where
a host fails without a lens, it has to fail alike with one.
"""

import copy
import importlib
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djip_ext import DJIPError, JPEGLens, install, uninstall
from djip_ext.bench.distillers import distiller_dict, methods
from djip_ext.hosts.extra_distillers import ADDITIONS
from djip_ext.hosts.registry import (
    find_registry,
    put_behind,
    takes_teacher,
    teachers_behind_lens,
)
from djip_ext.hosts.seeding import seed
from djip_ext.teacher import FINGERPRINT, DJIPTeacher

EMBEDDED = "djip_ext.bench"
ROOT = os.environ.get("MDISTILLER_ROOT")
PACKAGES = [EMBEDDED] + ([os.environ.get("MDISTILLER_PACKAGE", "mdistiller")] if ROOT else [])
PAIRS = {
    "resnet20-resnet8": ("resnet20", "resnet8"),
    "wrn_16_2-wrn_16_1": ("wrn_16_2", "wrn_16_1"),
    "vgg8-ShuffleV2": ("vgg8", "ShuffleV2"),
}
LENS, OTHER_LENS = JPEGLens(40.0, window=5), JPEGLens(20.0, window=5)

IMAGE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BATCH = {
    "image": IMAGE,
    "target": torch.tensor([3, 1, 4, 1]),
    "index": torch.arange(4),
    "contrastive_index": torch.tensor([[0, 5, 6], [1, 7, 4], [2, 5, 7], [3, 6, 4]]),
    "epoch": 1,
}

if ROOT:
    sys.path.insert(0, ROOT)
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))


def kinds() -> list[Any]:
    """Every distiller of every package, additions to a host included.

    Of the embedded benchmark those that hosts have too: its rivals, attacks and defences, of which
    some have no teacher or need a pass over the data first, have tests of their own.
    """
    found = []
    of_our_own = set(distiller_dict) - set(methods)
    for package in PACKAGES:
        install("identity", package)
        found += [
            pytest.param(package, kind, id=f"{package}-{kind}")
            for kind in find_registry(package)
            if kind != "NONE" and kind not in of_our_own
        ]
        uninstall(package)
    return found


every_package = pytest.mark.parametrize("package", PACKAGES)
every_distiller = pytest.mark.parametrize("package, kind", kinds())
every_pair = pytest.mark.parametrize("pair", PAIRS)


@pytest.fixture(autouse=True)
def hosts_as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU ``.cuda()`` is the identity; afterwards every registry is as it was."""
    if not torch.cuda.is_available():
        for kind in (Tensor, nn.Module):
            monkeypatch.setattr(kind, "cuda", lambda self, *args, **kwargs: self)
    yield
    for package in PACKAGES:
        uninstall(package)


@dataclass
class Step:
    """A distiller after one training step, or the type of the error that kept it from one."""

    distiller: Any = None
    logits: Any = None
    losses: Any = None
    moved_statistics: bool = False
    error: type[BaseException] | None = None


def networks(package: str, pair: str) -> tuple[nn.Module, nn.Module]:
    """Student and teacher, the same weights every time."""
    models = importlib.import_module(f"{package}.models").cifar_model_dict
    torch.manual_seed(0)
    teacher, student = (models[name][0](num_classes=5) for name in PAIRS[pair])
    return student, teacher.eval()


def configuration(package: str, student: nn.Module, teacher: nn.Module) -> Any:
    """The package's defaults, with the channels of this pair where a method wants to be told."""
    cfg = importlib.import_module(f"{package}.engine.cfg").CFG.clone()
    with torch.no_grad():
        features = [copy.deepcopy(network).eval()(IMAGE[:1])[1] for network in (student, teacher)]
    cfg.CRD.NCE.K = 2
    (cfg.CRD.FEAT.STUDENT_DIM, cfg.CRD.FEAT.TEACHER_DIM) = (
        f["pooled_feat"].shape[1] for f in features
    )
    if "REVIEWKD" in cfg:
        nodes = (("IN_CHANNELS", "SHAPES"), ("OUT_CHANNELS", "OUT_SHAPES"))
        for f, (channels, shapes) in zip(features, nodes, strict=True):
            cfg.REVIEWKD[channels] = [m.shape[1] for m in f["feats"][1:]] + [
                f["pooled_feat"].shape[1]
            ]
            cfg.REVIEWKD[shapes] = [1] + [m.shape[2] for m in f["feats"][:0:-1]]
    if "FT" in cfg:
        cfg.FT.PRETRAIN.EPOCHS = 1
    return cfg


def build(package: str, kind: str, pair: str) -> nn.Module:
    """A fresh distiller, ready to train."""
    student, teacher = networks(package, pair)
    cfg = configuration(package, student, teacher)
    seed(1)
    distiller = find_registry(package)[kind](student, teacher, cfg, *([8] if kind == "CRD" else []))
    if hasattr(distiller, "pretrain"):
        distiller.pretrain([(IMAGE,)])
    return distiller.train()


def training_step(distiller: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    seed(2)
    logits, losses = distiller(**BATCH)
    sum(loss.mean() for loss in losses.values()).backward()
    return logits, losses


def step(package: str, kind: str, pair: str, lens: JPEGLens | str | None) -> Step:
    """One training step with ``lens`` (None: untouched) and then a registry as it was."""
    if lens is not None or kind in ADDITIONS:
        install("identity" if lens is None else lens, package)
    try:
        distiller = build(package, kind, pair)
        logits, losses = training_step(distiller)
    except Exception as error:
        return Step(error=type(error))
    finally:
        uninstall(package)
    before, after = networks(package, pair)[1].state_dict(), distiller.teacher.state_dict()
    return Step(
        distiller,
        logits,
        losses,
        any(not torch.equal(value, after[key]) for key, value in before.items()),
    )


def works(package: str, kind: str, pair: str = "resnet20-resnet8") -> nn.Module:
    """A distiller with LENS; skips what the host itself cannot do on this pair."""
    plain = step(package, kind, pair, None)
    if plain.error and package != EMBEDDED:
        pytest.skip(f"fails without a lens: {plain.error.__name__}")
    return step(package, kind, pair, LENS).distiller


@every_pair
@every_distiller
def test_plain_identity_and_lens_give_the_same_passes(package: str, kind: str, pair: str) -> None:
    plain, identity, lens = (step(package, kind, pair, arm) for arm in (None, "identity", LENS))
    assert plain.error == identity.error == lens.error
    if plain.error:
        assert package != EMBEDDED or (kind, pair) in [("FITNET", "vgg8-ShuffleV2")]
        return
    assert plain.losses.keys() == identity.losses.keys() == lens.losses.keys()
    assert all(
        p.grad is None for arm in (identity, lens) for p in arm.distiller.teacher.parameters()
    )
    with torch.no_grad():
        assert not torch.equal(
            lens.distiller.teacher(IMAGE)[0], identity.distiller.teacher(IMAGE)[0]
        )
    if (
        plain.moved_statistics
    ):  # FitNet, VID and OFD of mdistiller run a bare teacher in training mode
        assert package != EMBEDDED
        return
    assert torch.equal(plain.logits, identity.logits)
    for name, loss in plain.losses.items():
        torch.testing.assert_close(loss, identity.losses[name], rtol=0, atol=0, equal_nan=True)
    own = plain.distiller.student.named_parameters()
    others = identity.distiller.student.parameters()
    for (name, p), q in zip(own, others, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0, equal_nan=True, msg=name)


@every_distiller
def test_a_checkpoint_resumes_with_the_same_lens_only(package: str, kind: str) -> None:
    distiller = works(package, kind)
    saved = copy.deepcopy(distiller.state_dict())
    bare = step(package, kind, "resnet20-resnet8", None).distiller
    if kind not in ADDITIONS:
        assert saved.keys() - bare.state_dict().keys() == {f"teacher.{FINGERPRINT}"}
        with pytest.raises(RuntimeError, match=FINGERPRINT):
            bare.load_state_dict(saved)
        with pytest.raises(RuntimeError, match="without a lens"):
            distiller.load_state_dict(bare.state_dict())
    with pytest.raises(RuntimeError, match="another lens"):
        step(package, kind, "resnet20-resnet8", OTHER_LENS).distiller.load_state_dict(saved)
    same = step(package, kind, "resnet20-resnet8", LENS).distiller
    with torch.no_grad():
        for p in same.student.parameters():
            p.zero_()
    same.load_state_dict(saved)
    assert all(
        torch.equal(value, saved[key])
        for key, value in same.state_dict().items()
        if isinstance(value, Tensor)
    )


@every_distiller
def test_a_copy_takes_the_same_step(package: str, kind: str) -> None:
    works(package, kind)
    if kind not in ADDITIONS:
        try:
            copy.deepcopy(build(package, kind, "resnet20-resnet8"))
        except RuntimeError as error:
            assert package != EMBEDDED
            pytest.skip(f"cannot be copied without a lens: {error}")
    install(LENS, package)
    distiller = build(
        package, kind, "resnet20-resnet8"
    )  # not after a step, when mdistiller's CRD holds a buffer with a graph
    twin = copy.deepcopy(distiller)
    (logits, losses), (twin_logits, twin_losses) = training_step(distiller), training_step(twin)
    assert torch.equal(logits, twin_logits)
    for name in losses:
        torch.testing.assert_close(losses[name], twin_losses[name], rtol=0, atol=0, equal_nan=True)


def replicate(network: nn.Module) -> nn.Module:
    """What torch.nn.DataParallel makes of a network on every GPU.

    The parameters of such a shell are plain tensors.
    """
    shells = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, shell in shells.items():
        for name, child in module._modules.items():
            setattr(shell, name, None if child is None else shells[child])
        for name, parameter in module._parameters.items():
            setattr(shell, name, None if parameter is None else parameter.detach())
        for name, buffer in module._buffers.items():
            setattr(shell, name, None if buffer is None else buffer.clone())
    return shells[network]


@every_distiller
def test_a_data_parallel_replica_sees_through_the_lens(package: str, kind: str) -> None:
    teacher = works(package, kind).teacher
    replica = replicate(teacher)
    assert not list(replica.parameters())
    with torch.no_grad():
        assert torch.equal(replica(IMAGE)[0], teacher(IMAGE)[0])


@every_package
def test_installing_is_exactly_undone(package: str) -> None:
    cfg = importlib.import_module(f"{package}.engine.cfg").CFG
    registry, nodes = find_registry(package), list(cfg)
    before = list(registry.items())
    install("identity", package)
    install(LENS, package)
    assert find_registry(package) is registry
    assert (
        all((registry[name] is value) != takes_teacher(name, value) for name, value in before)
        and registry["NONE"] is dict(before)["NONE"]
    )
    assert set(ADDITIONS) <= registry.keys() and set(ADDITIONS) <= set(cfg)
    uninstall(package)
    uninstall(package)
    assert find_registry(package) is registry and list(cfg) == nodes
    assert [(name, id(value)) for name, value in registry.items()] == [
        (name, id(value)) for name, value in before
    ]


@every_package
def test_installing_again_replaces_the_lens(package: str) -> None:
    install(LENS, package)
    install(OTHER_LENS, package)
    distiller = build(package, "KD", "resnet20-resnet8")
    assert isinstance(distiller.teacher, DJIPTeacher)
    assert torch.equal(distiller.teacher.djip_lens.q, OTHER_LENS.q)
    assert teachers_behind_lens(package) == 1


@every_package
def test_a_lens_for_other_data_is_refused(package: str) -> None:
    lens = JPEGLens(4.0)
    lens.metadata["dataset"] = "imagenet"
    install(lens, package)
    with pytest.raises(DJIPError, match="fitted on imagenet, this run is on cifar100"):
        build(package, "KD", "resnet20-resnet8")


def test_a_lens_fitted_with_a_host_keeps_the_scale_that_it_found_there() -> None:
    """A fork may normalise a data set as no other does.

    A lens from elsewhere gets the usual scale, and says when that is not its own.
    """
    own = {"dataset": "tiny_imagenet", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    lens, cfg = (
        JPEGLens(4.0),
        types.SimpleNamespace(DATASET=types.SimpleNamespace(TYPE="tiny_imagenet")),
    )
    lens.metadata = own | {"host": "fork"}
    assert put_behind(nn.Identity(), lens, cfg).djip_normalisation.mean == tuple(own["mean"])
    lens.metadata = own
    with pytest.raises(DJIPError, match="fitted with mean"):
        put_behind(nn.Identity(), lens, cfg)


def test_the_scale_of_another_data_set_is_not_taken() -> None:
    lens = JPEGLens(40.0, window=5)
    lens.metadata = {"dataset": "cifar100", "mean": (0.5, 0.5, 0.5), "std": (0.1, 0.1, 0.1)}
    cfg = types.SimpleNamespace(DATASET=types.SimpleNamespace(TYPE="flowers"))
    with pytest.raises(DJIPError, match=r"cfg.BENCH.MEAN and cfg.BENCH.STD, or wrap"):
        put_behind(nn.Identity(), lens, cfg, any_teacher=True)
    cfg.BENCH = types.SimpleNamespace(MEAN=(0.1, 0.2, 0.3), STD=(0.2, 0.2, 0.2))
    put_behind(nn.Identity(), lens, cfg, any_teacher=True)
    put_behind(nn.Identity(), lens, types.SimpleNamespace(), any_teacher=True)  # no data set named


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The registry of a host of its own, whose distillers are what they were built with."""
    distillers = types.ModuleType("tiny.distillers")
    distillers.distiller_dict = {
        "KD": lambda *args, **kwargs: (args, kwargs),
        "NONE": lambda student: student,
    }
    for module in (types.ModuleType("tiny"), distillers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    install("identity", "tiny")
    yield distillers.distiller_dict
    uninstall("tiny")


def test_a_distiller_without_a_teacher_is_built_as_ever(registry: dict[str, Any]) -> None:
    assert registry["KD"]("student", "cfg") == (("student", "cfg"), {})
    assert teachers_behind_lens("tiny") == 0


@pytest.mark.parametrize("keywords", [False, True])
def test_whatever_follows_the_teacher_is_passed_on(
    keywords: bool, registry: dict[str, Any]
) -> None:
    teacher, cfg = nn.Flatten(), types.SimpleNamespace()
    (args, kwargs) = (
        registry["KD"]("student", teacher, cfg=cfg, num_data=7)
        if keywords
        else registry["KD"]("student", teacher, cfg, 7)
    )
    assert args[1].djip_teacher is teacher and teachers_behind_lens("tiny") == 1
    assert (args[2:], kwargs) == (((), {"cfg": cfg, "num_data": 7}) if keywords else ((cfg, 7), {}))


def test_a_teacher_without_a_cfg_is_refused(registry: dict[str, Any]) -> None:
    student, teacher, cfg = nn.Flatten(), nn.Flatten(), types.SimpleNamespace()
    for args, kwargs in [
        ((student, teacher), {}),
        ((student, teacher), {"config": cfg}),
        ((), {"model_s": student, "model_t": teacher}),
    ]:
        with pytest.raises(DJIPError, match="without a cfg in the third place; wrap the teacher"):
            registry["KD"](*args, **kwargs)
    wrapped = DJIPTeacher(teacher, "identity", (0.5,) * 3, (0.5,) * 3)
    assert registry["KD"](student, wrapped) == ((student, wrapped), {})
    assert registry["KD"](student, cfg) == ((student, cfg), {})


def test_several_teachers_are_refused(registry: dict[str, Any]) -> None:
    with pytest.raises(DJIPError, match="the teacher is a list"):
        registry["KD"]("student", [nn.Flatten(), nn.Flatten()], types.SimpleNamespace())
    teacher, cfg = nn.Linear(2, 2), types.SimpleNamespace()
    for args, keywords, place in [
        (("student", teacher, teacher, cfg), {}, "the third place"),
        (("student", teacher, cfg), {"teacher2": teacher}, "teacher2"),
    ]:
        with pytest.raises(DJIPError, match=rf"several teachers \(a Linear in {place}\)"):
            registry["KD"](*args, **keywords)
    args, keywords = registry["KD"]("student", teacher, cfg, teacher_proj=teacher)
    assert isinstance(args[1], DJIPTeacher) and keywords == {"teacher_proj": teacher}


def test_what_is_no_lens_leaves_the_registry_as_it_was(registry: dict[str, Any]) -> None:
    before = dict(registry)
    with pytest.raises(DJIPError, match="lens is None; give a JPEGLens"):
        install(None, "tiny")  # type: ignore[arg-type]
    assert registry == before and teachers_behind_lens("tiny") == 0


def test_a_missing_package_is_named() -> None:
    with pytest.raises(DJIPError, match="cannot import no_such_host.distillers"):
        install("identity", "no_such_host")


@pytest.mark.parametrize("contents", [{}, {"distiller_dict": {}}, {"distiller_dict": [1]}])
def test_a_missing_registry_is_named(contents: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("seamless.distillers")
    module.__dict__.update(contents, __file__="seamless/distillers.py")
    monkeypatch.setitem(sys.modules, "seamless", types.ModuleType("seamless"))
    monkeypatch.setitem(sys.modules, "seamless.distillers", module)
    with pytest.raises(DJIPError, match=r"seamless/distillers.py\) has no distiller_dict"):
        install("identity", "seamless")
