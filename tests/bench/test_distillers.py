"""Every distiller against a slow float64 reference, and against the surface that trainers rely on."""

import copy
import importlib
import math
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers import Distiller, distiller_defaults, distiller_dict
from djip_ext.bench.distillers.at import at_loss
from djip_ext.bench.distillers.dkd import dkd_loss, warm_up
from djip_ext.bench.distillers.kd import kd_loss
from djip_ext.bench.distillers.rkd import rkd_angle_loss, rkd_distance_loss
from djip_ext.bench.distillers.sp import sp_loss
from djip_ext.bench.models import cifar_model_dict

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other

BATCH, CLASSES, SIDE = 4, 5, 16
TARGET = torch.tensor([0, 4, 2, 2])
FROM_MDISTILLER = ["KD", "DKD", "AT", "SP", "RKD"]
METHODS = [name for name in distiller_dict if name != "NONE"]

every_method = pytest.mark.parametrize("name", METHODS)


# --- references: one number at a time, float64, in the order of the papers ----------------------------------------


def probabilities(row: Tensor) -> list[Tensor]:
    powers = [value.exp() for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def mean(values: list[Tensor]) -> Tensor:
    return sum(values) / len(values)


def length(values: list[Tensor]) -> Tensor:
    return sum(value**2 for value in values) ** 0.5


def unit(values: list[Tensor]) -> list[Tensor]:
    size = length(values)
    return [value / size for value in values] if size > 0 else values


def huber(a: Tensor, b: Tensor) -> Tensor:
    gap = abs(a - b)
    return gap**2 / 2 if gap < 1 else gap - 0.5


def kd_reference(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    rows = zip(z_t / temperature, z_s / temperature)
    return temperature**2 * mean([divergence(probabilities(t), probabilities(s)) for t, s in rows])


def dkd_reference(z_s: Tensor, z_t: Tensor, alpha: float, beta: float, temperature: float) -> Tensor:
    losses = []
    for s, t, y in zip(z_s / temperature, z_t / temperature, TARGET.tolist()):
        p_s, p_t = probabilities(s), probabilities(t)
        rest_s = [p for i, p in enumerate(p_s) if i != y]
        rest_t = [p for i, p in enumerate(p_t) if i != y]
        tckd = divergence([p_t[y], sum(rest_t)], [p_s[y], sum(rest_s)])
        nckd = divergence([p / sum(rest_t) for p in rest_t], [p / sum(rest_s) for p in rest_s])
        losses.append(alpha * tckd + beta * nckd)
    return temperature**2 * mean(losses)


def pooled_to(f: Tensor, side: int) -> list[list[list[Tensor]]]:
    """One image's map ``(C, H, W)`` as nested lists, averaged over square blocks."""
    block = f.shape[1] // side
    cells = range(block)
    return [
        [[mean([c[block * i + u, block * j + v] for u in cells for v in cells]) for j in range(side)] for i in range(side)]
        for c in f
    ]


def attention_reference(f: Tensor, side: int, p: int) -> list[Tensor]:
    channels = pooled_to(f, side)
    return unit([mean([c[i][j] ** p for c in channels]) for i in range(side) for j in range(side)])


def at_reference(feats_s: list[Tensor], feats_t: list[Tensor], p: int) -> Tensor:
    total = 0
    for f_s, f_t in zip(feats_s, feats_t):
        side = min(f_s.shape[2], f_t.shape[2])
        maps = [(attention_reference(s, side, p), attention_reference(t, side, p)) for s, t in zip(f_s, f_t)]
        total = total + mean([(a - b) ** 2 for q_s, q_t in maps for a, b in zip(q_s, q_t)])
    return total


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a.flatten(), b.flatten(), strict=True))


def sp_reference(f_s: Tensor, f_t: Tensor) -> Tensor:
    g_s = [unit([dot(a, b) for b in f_s]) for a in f_s]
    g_t = [unit([dot(a, b) for b in f_t]) for a in f_t]
    return mean([(s - t) ** 2 for row_s, row_t in zip(g_s, g_t) for s, t in zip(row_s, row_t)])


def relative_distances_reference(f: Tensor, squared: bool) -> list[Tensor]:
    pairs = [(i, j) for i in range(len(f)) for j in range(len(f))]
    power = 2 if squared else 1
    d = [f.new_zeros(()) if i == j else length(list(f[i] - f[j])) ** power for i, j in pairs]
    scale = mean([value for value in d if value > 0])
    return [value / scale for value in d]


def rkd_distance_reference(f_s: Tensor, f_t: Tensor, squared: bool) -> Tensor:
    pairs = zip(relative_distances_reference(f_s, squared), relative_distances_reference(f_t, squared), strict=True)
    return mean([huber(s, t) for s, t in pairs])


def cosines_reference(f: Tensor) -> list[Tensor]:
    cosines = []
    for i in range(len(f)):
        e = [[f.new_zeros(())] * f.shape[1] if j == i else unit(list(f[j] - f[i])) for j in range(len(f))]
        cosines += [sum(x * y for x, y in zip(a, b)) for a in e for b in e]
    return cosines


def rkd_angle_reference(f_s: Tensor, f_t: Tensor) -> Tensor:
    return mean([huber(s, t) for s, t in zip(cosines_reference(f_s), cosines_reference(f_t), strict=True)])


# --- the losses ---------------------------------------------------------------------------------------------------


def noise(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logits_pair() -> tuple[Tensor, Tensor]:
    return noise(BATCH, CLASSES, seed=0, scale=3), noise(BATCH, CLASSES, seed=1, scale=3)


def pooled_pair() -> tuple[Tensor, Tensor]:
    return noise(BATCH, 3, seed=2), noise(BATCH, 6, seed=3)


def map_pair() -> tuple[Tensor, Tensor]:
    return noise(BATCH, 3, 4, 4, seed=4), noise(BATCH, 2, 2, 2, seed=5)


# name: (inputs of student and teacher, loss, reference)
LOSSES: dict[str, tuple[Callable, Callable, Callable]] = {
    "kd": (logits_pair, lambda s, t: kd_loss(s, t, 4.0), lambda s, t: kd_reference(s, t, 4.0)),
    "dkd": (
        logits_pair,
        lambda s, t: dkd_loss(s, t, TARGET, 1.0, 8.0, 4.0),
        lambda s, t: dkd_reference(s, t, 1.0, 8.0, 4.0),
    ),
    "dkd, target part only": (
        logits_pair,
        lambda s, t: dkd_loss(s, t, TARGET, 1.0, 0.0, 1.0),
        lambda s, t: dkd_reference(s, t, 1.0, 0.0, 1.0),
    ),
    "at, student larger": (map_pair, lambda s, t: at_loss([s], [t], 2), lambda s, t: at_reference([s], [t], 2)),
    "at, teacher larger": (
        lambda: map_pair()[::-1],
        lambda s, t: at_loss([s], [t], 4),
        lambda s, t: at_reference([s], [t], 4),
    ),
    "at, stages of the shorter list": (
        map_pair,
        lambda s, t: at_loss([s, s.flip(0)], [t, t, t], 2),
        lambda s, t: at_reference([s, s.flip(0)], [t, t], 2),
    ),
    "sp": (map_pair, sp_loss, sp_reference),
    "rkd distance": (pooled_pair, rkd_distance_loss, lambda s, t: rkd_distance_reference(s, t, squared=False)),
    "rkd squared distance": (
        pooled_pair,
        lambda s, t: rkd_distance_loss(s, t, squared=True),
        lambda s, t: rkd_distance_reference(s, t, squared=True),
    ),
    "rkd angle": (pooled_pair, rkd_angle_loss, rkd_angle_reference),
}
every_loss = pytest.mark.parametrize("case", LOSSES)


def value_and_gradient(loss: Callable, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0]


@every_loss
def test_loss_and_gradient_equal_the_slow_reference(case: str) -> None:
    inputs, loss, reference = LOSSES[case]
    value, gradient = value_and_gradient(loss, *inputs())
    expected_value, expected_gradient = value_and_gradient(reference, *inputs())
    assert value.shape == ()
    assert expected_value > 1e-4
    assert expected_gradient.abs().max() > 1e-5
    torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-10)


@every_loss
def test_loss_under_autocast_is_the_loss_in_float32(case: str) -> None:
    inputs, loss, _ = LOSSES[case]
    student, teacher = (x.bfloat16() for x in inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = loss(student, teacher)
    assert low.dtype == torch.float32
    assert torch.equal(low, loss(student.float(), teacher.float()))


@pytest.mark.parametrize("case", [case for case, (inputs, _, _) in LOSSES.items() if inputs()[0].ndim == 4])
def test_loss_of_channels_last_maps_is_the_same(case: str) -> None:
    inputs, loss, _ = LOSSES[case]
    student, teacher = inputs()
    strided = [x.contiguous(memory_format=torch.channels_last) for x in (student, teacher)]
    torch.testing.assert_close(loss(*strided), loss(student, teacher), rtol=1e-12, atol=0)


def test_dkd_stays_finite_where_probabilities_underflow() -> None:
    z_s = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0]], requires_grad=True)
    z_t = -z_s.detach()
    loss = dkd_loss(z_s, z_t, torch.tensor([0, 0]), 1.0, 1.0, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert loss > 100
    assert z_s.grad.isfinite().all()


def test_dkd_warms_up_linearly() -> None:
    assert [warm_up(epoch, 20) for epoch in (1, 10, 20, 240)] == [0.05, 0.5, 1.0, 1.0]


# --- the surface --------------------------------------------------------------------------------------------------


def build(name: str, student: str = "resnet8", teacher: str = "wrn_16_2") -> Distiller:
    torch.manual_seed(0)
    networks = [cifar_model_dict[kind][0](num_classes=CLASSES) for kind in (student, teacher)]
    return distiller_dict[name](*networks, CfgNode(copy.deepcopy(distiller_defaults)))


def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randn(BATCH, 3, SIDE, SIDE, generator=generator), "target": TARGET, "epoch": 10}


@every_method
def test_teacher_stays_in_eval_mode_while_the_student_trains(name: str) -> None:
    distiller = build(name).train()
    assert distiller.student.training
    assert not any(module.training for module in distiller.teacher.modules())
    assert not distiller.eval().student.training


@every_method
def test_a_training_step_reaches_the_student_and_leaves_the_teacher(name: str) -> None:
    distiller = build(name).train()
    before = copy.deepcopy(distiller.teacher.state_dict())
    logits, losses = distiller(**batch())
    assert logits.shape == (BATCH, CLASSES)
    assert set(losses) == {"loss_ce", "loss_kd"}
    sum(losses.values()).backward()
    assert all(loss.isfinite() and loss.shape == () for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in distiller.student.parameters())
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in distiller.teacher.state_dict().items())


@every_method
def test_the_distillation_loss_alone_moves_the_student(name: str) -> None:
    distiller = build(name).train()
    _, losses = distiller(**batch())
    losses["loss_kd"].backward()
    assert distiller.student.conv1.weight.grad.abs().max() > 0


@every_method
def test_eval_mode_returns_the_logits_of_the_student(name: str) -> None:
    distiller = build(name).eval()
    image = batch()["image"]
    assert torch.equal(distiller(image=image), distiller.student(image)[0])


@every_method
def test_learnable_parameters_are_all_but_the_teachers(name: str) -> None:
    distiller = build(name)
    learnable = distiller.get_learnable_parameters()
    ids = [id(p) for p in learnable]
    assert isinstance(learnable, list)
    assert len(set(ids)) == len(ids)
    assert {id(p) for p in distiller.student.parameters()} <= set(ids)
    assert not {id(p) for p in distiller.teacher.parameters()} & set(ids)


@every_method
def test_a_step_under_autocast_has_float32_losses_near_the_exact_ones(name: str) -> None:
    distiller = build(name).train()
    _, exact = distiller(**batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, losses = distiller(**batch())
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[key], rtol=0.25, atol=0.05)


class PlainTeacher(nn.Module):
    """A teacher that is no model of the benchmark."""

    def forward(self, image: Tensor) -> tuple[Tensor, dict]:
        maps = [F.avg_pool2d(image, 2**i).repeat(1, 3, 1, 1) for i in range(4)]
        pooled = maps[-1].mean(dim=(2, 3))
        return pooled[:, :CLASSES], {"feats": maps, "preact_feats": maps, "pooled_feat": pooled}


@pytest.mark.parametrize("name", FROM_MDISTILLER)
def test_any_module_with_logits_and_features_can_teach(name: str) -> None:
    student = build(name).student
    cfg = CfgNode(copy.deepcopy(distiller_defaults))
    _, losses = distiller_dict[name](student, PlainTeacher(), cfg).train()(**batch())
    assert losses["loss_kd"] > 0


# what each class makes of its networks and its configuration, by the pure functions
EXPECTED: dict[str, Callable] = {
    "KD": lambda s, t: 0.9 * kd_loss(s[0], t[0], 4),
    "DKD": lambda s, t: 0.5 * dkd_loss(s[0], t[0], TARGET, 1, 8, 4),  # epoch 10 of 20 warm-up epochs
    "AT": lambda s, t: 1000 * at_loss(s[1]["feats"][1:], t[1]["feats"][1:], 2),
    "SP": lambda s, t: 3000 * sp_loss(s[1]["feats"][-1], t[1]["feats"][-1]),
    "RKD": lambda s, t: 25 * rkd_distance_loss(s[1]["pooled_feat"], t[1]["pooled_feat"])
    + 50 * rkd_angle_loss(s[1]["pooled_feat"], t[1]["pooled_feat"]),
}
CE_WEIGHT = {"KD": 0.1}


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_are_weighted_as_published(name: str) -> None:
    distiller = build(name).train()
    _, losses = distiller(**batch())
    image = batch()["image"]
    student, teacher = distiller.student(image), distiller.teacher(image)
    torch.testing.assert_close(losses["loss_kd"], EXPECTED[name](student, teacher))
    torch.testing.assert_close(losses["loss_ce"], CE_WEIGHT.get(name, 1.0) * F.cross_entropy(student[0], TARGET))


@pytest.mark.parametrize("name", ["KD", "DKD", "AT", "SP", "RKD"])
def test_methods_without_extra_modules_add_no_parameters(name: str) -> None:
    distiller = build(name)
    assert distiller.get_extra_parameters() == 0
    assert len(distiller.get_learnable_parameters()) == len(list(distiller.student.parameters()))


def test_vanilla_trains_on_the_labels_alone() -> None:
    torch.manual_seed(0)
    student = cifar_model_dict["resnet8"][0](num_classes=CLASSES)
    vanilla = distiller_dict["NONE"](student)
    logits, losses = vanilla.train()(**batch())
    assert set(losses) == {"ce"}
    assert torch.equal(losses["ce"], F.cross_entropy(logits, TARGET))
    image = batch()["image"]
    assert torch.equal(vanilla.eval()(image=image), student(image)[0])
    assert [id(p) for p in vanilla.get_learnable_parameters()] == [id(p) for p in student.parameters()]
    assert vanilla.get_extra_parameters() == 0


def test_training_mode_must_be_boolean() -> None:
    with pytest.raises(ValueError, match="boolean"):
        build("KD").train("yes")


def test_every_method_but_vanilla_has_defaults() -> None:
    assert set(distiller_defaults) == set(METHODS)


# --- against mdistiller itself ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host() -> Iterator[Callable[[str], types.ModuleType]]:
    """Imports a module of mdistiller by its dotted name, without its packages' own imports (scipy, wandb)."""
    root = os.environ.get("MDISTILLER_ROOT")
    if not root:
        pytest.skip("MDISTILLER_ROOT names no checkout of mdistiller")
    for package in ("distillers", "engine"):
        module = types.ModuleType(f"host_{package}")
        module.__path__ = [str(Path(root) / "mdistiller" / package)]
        sys.modules[module.__name__] = module
    yield lambda name: importlib.import_module(f"host_{name}")


@pytest.mark.parametrize("name", ["KD", "DKD", "AT", "SP", "RKD"])
def test_defaults_are_those_of_mdistiller(name: str, host: Callable) -> None:
    assert CfgNode(copy.deepcopy(distiller_defaults[name])) == host("engine.cfg").CFG[name]


HOST_MODULES = {"KD": "KD", "DKD": "DKD", "AT": "AT", "SP": "SP", "RKD": "RKD"}


@pytest.mark.parametrize("student", ["resnet8", "vgg8"])
@pytest.mark.parametrize("name", HOST_MODULES)
def test_losses_and_gradients_are_those_of_mdistiller(name: str, student: str, host: Callable) -> None:
    ours = build(name, student).train()
    host_class = getattr(host(f"distillers.{HOST_MODULES[name]}"), HOST_MODULES[name])
    theirs = host_class(copy.deepcopy(ours.student), copy.deepcopy(ours.teacher), host("engine.cfg").CFG).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mdistiller's use of size_average
        results = [distiller(**batch()) for distiller in (ours, theirs)]
    (logits, losses), (expected_logits, expected) = results
    torch.testing.assert_close(logits, expected_logits)
    assert list(losses) == list(expected)
    for key in expected:
        torch.testing.assert_close(losses[key], expected[key].reshape(()), rtol=1e-4, atol=1e-6)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradient, expected_gradient = (
        torch.cat([p.grad.flatten() for p in distiller.student.parameters()]) for distiller in (ours, theirs)
    )
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()
    assert ours.get_extra_parameters() == theirs.get_extra_parameters()
    assert len(ours.get_learnable_parameters()) == len(theirs.get_learnable_parameters())
