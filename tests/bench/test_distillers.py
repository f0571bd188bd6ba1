"""Every distiller against a slow float64 reference, and the surface that trainers rely on."""

import copy
import functools
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
from helpers.slow_losses import (
    at_reference,
    cc_reference,
    dist_reference,
    dkd_reference,
    ft_reference,
    itrd_correlation_reference,
    itrd_mutual_reference,
    kd_reference,
    nce_reference,
    rkd_angle_reference,
    rkd_distance_reference,
    sp_reference,
    standardised_reference,
    wttm_reference,
)
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers import Distiller, distiller_defaults, distiller_dict, methods
from djip_ext.bench.distillers._probe import probe
from djip_ext.bench.distillers.at import at_loss
from djip_ext.bench.distillers.cc import cc_loss
from djip_ext.bench.distillers.crd import ContrastMemory, nce_loss
from djip_ext.bench.distillers.dist import dist_loss
from djip_ext.bench.distillers.dkd import dkd_loss, warm_up
from djip_ext.bench.distillers.fitnet import ConvReg
from djip_ext.bench.distillers.ft import FT, Paraphraser, ft_loss
from djip_ext.bench.distillers.itrd import itrd_correlation_loss, itrd_mutual_loss
from djip_ext.bench.distillers.kd import kd_loss
from djip_ext.bench.distillers.lskd import standardise
from djip_ext.bench.distillers.rivals import adversarial_losses
from djip_ext.bench.distillers.rkd import rkd_angle_loss, rkd_distance_loss
from djip_ext.bench.distillers.sp import sp_loss
from djip_ext.bench.distillers.wttm import wttm_loss
from djip_ext.bench.models import cifar_model_dict
from djip_ext.errors import DJIPError

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other

BATCH, CLASSES, SIDE = 4, 5, 16
NUM_DATA = 9
TARGET = torch.tensor([0, 4, 2, 2])
INDEX = torch.tensor([7, 0, 3, 5])
CONTRASTIVE_INDEX = torch.tensor([[7, 1, 2, 8], [0, 2, 4, 6], [3, 8, 7, 6], [5, 1, 1, 2]])
FROM_MDISTILLER = ["KD", "DKD", "AT", "SP", "RKD", "FITNET", "CRD"]
METHODS = list(methods)

every_method = pytest.mark.parametrize("name", METHODS)


# --- the losses ---


def noise(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def logits_pair() -> tuple[Tensor, Tensor]:
    return noise(BATCH, CLASSES, seed=0, scale=3), noise(BATCH, CLASSES, seed=1, scale=3)


def pooled_pair() -> tuple[Tensor, Tensor]:
    return noise(BATCH, 3, seed=2), noise(BATCH, 6, seed=3)


def map_pair() -> tuple[Tensor, Tensor]:
    return noise(BATCH, 3, 4, 4, seed=4), noise(BATCH, 2, 2, 2, seed=5)


def embedded_pair() -> tuple[Tensor, Tensor]:
    return noise(BATCH, 3, seed=6), noise(BATCH, 3, seed=7)


# name: (inputs of student and teacher, loss, reference)
LOSSES: dict[str, tuple[Callable, Callable, Callable]] = {
    "kd": (logits_pair, lambda s, t: kd_loss(s, t, 4.0), lambda s, t: kd_reference(s, t, 4.0)),
    "dkd": (
        logits_pair,
        lambda s, t: dkd_loss(s, t, TARGET, 1.0, 8.0, 4.0),
        lambda s, t: dkd_reference(s, t, TARGET, 1.0, 8.0, 4.0),
    ),
    "dkd, target part only": (
        logits_pair,
        lambda s, t: dkd_loss(s, t, TARGET, 1.0, 0.0, 1.0),
        lambda s, t: dkd_reference(s, t, TARGET, 1.0, 0.0, 1.0),
    ),
    "at, student larger": (
        map_pair,
        lambda s, t: at_loss([s], [t], 2),
        lambda s, t: at_reference([s], [t], 2),
    ),
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
    "rkd distance": (
        pooled_pair,
        rkd_distance_loss,
        lambda s, t: rkd_distance_reference(s, t, squared=False),
    ),
    "rkd squared distance": (
        pooled_pair,
        lambda s, t: rkd_distance_loss(s, t, squared=True),
        lambda s, t: rkd_distance_reference(s, t, squared=True),
    ),
    "rkd angle": (pooled_pair, rkd_angle_loss, rkd_angle_reference),
    "dist": (
        logits_pair,
        lambda s, t: dist_loss(s, t, 2.0, 3.0, 4.0),
        lambda s, t: dist_reference(s, t, 2.0, 3.0, 4.0),
    ),
    "wttm": (
        logits_pair,
        lambda s, t: wttm_loss(s, t, 0.2),
        lambda s, t: wttm_reference(s, t, 0.2),
    ),
    "lskd": (
        logits_pair,
        lambda s, t: kd_loss(standardise(s), standardise(t), 2.0),
        lambda s, t: kd_reference(standardised_reference(s), standardised_reference(t), 2.0),
    ),
    "cc": (embedded_pair, cc_loss, cc_reference),
    "ft, student larger": (map_pair, ft_loss, ft_reference),
    "ft, teacher larger": (lambda: map_pair()[::-1], ft_loss, ft_reference),
    "itrd correlation": (
        embedded_pair,
        lambda s, t: itrd_correlation_loss(s, t, 1.01),
        lambda s, t: itrd_correlation_reference(s, t, 1.01),
    ),
    "itrd mutual": (pooled_pair, itrd_mutual_loss, itrd_mutual_reference),
    "crd": (
        lambda: tuple(x.exp() for x in logits_pair()),
        lambda s, t: nce_loss(s, 50),
        lambda s, t: nce_reference(s, 50),
    ),
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
    assert abs(expected_value) > 1e-4
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


@pytest.mark.parametrize(
    "case", [case for case, (inputs, _, _) in LOSSES.items() if inputs()[0].ndim == 4]
)
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


def test_no_warm_up_is_full_weight_at_once() -> None:
    assert warm_up(1, 0) == 1.0


def test_dist_is_zero_for_the_teacher_itself_and_large_for_its_opposite() -> None:
    z = logits_pair()[1]
    assert abs(dist_loss(z, z, 1.0, 1.0, 1.0)) < 1e-3
    assert dist_loss(-z, z, 1.0, 1.0, 1.0) > 1


@pytest.mark.parametrize(
    "loss",
    [
        cc_loss,
        rkd_distance_loss,
        functools.partial(rkd_distance_loss, squared=True),
        rkd_angle_loss,
        functools.partial(itrd_correlation_loss, alpha=1.01),
        itrd_mutual_loss,
    ],
)
def test_an_image_alone_has_nothing_to_be_compared_with(loss: Callable) -> None:
    """As the last of an epoch's batches may be; larger ones: see the slow references."""
    f_s, f_t = (f[:1].requires_grad_() for f in embedded_pair())
    value = loss(f_s, f_t)
    value.backward()
    assert value == 0 and torch.equal(f_s.grad, torch.zeros_like(f_s))


def test_standardised_logits_forget_shift_and_scale() -> None:
    z = logits_pair()[0]
    torch.testing.assert_close(standardise(5 * z - 3), standardise(z), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(standardise(z).std(dim=1), torch.ones(BATCH, dtype=z.dtype))


def test_itrd_counts_a_dead_feature_as_uncorrelated() -> None:
    f_s, f_t = embedded_pair()
    f_t[:, 1] = 0.5
    f_s.requires_grad_()
    loss = itrd_correlation_loss(f_s, f_t, 1.0)
    loss.backward()
    alive = [0, 2]
    expected = (2 ** itrd_correlation_reference(f_s[:, alive], f_t[:, alive], 1.0) + 1).log2()
    torch.testing.assert_close(loss, expected)
    assert f_s.grad.isfinite().all()
    assert not f_s.grad[:, 1].any()


def test_contrast_memory_scores_against_the_other_network_and_remembers() -> None:
    torch.manual_seed(0)
    memory = ContrastMemory(dim=3, num_data=NUM_DATA, temperature=0.5, momentum=0.75)
    old = {"s": memory.memory_s.tolist(), "t": memory.memory_t.tolist()}
    z = None
    for step in range(2):
        v = {
            side: F.normalize(noise(BATCH, 3, seed=2 * step + k)).float()
            for k, side in enumerate("st")
        }
        scores = dict(zip("st", memory(v["s"], v["t"], INDEX, CONTRASTIVE_INDEX), strict=True))
        raw = {
            side: [
                [
                    math.exp(
                        sum(x * y for x, y in zip(v[side][b].tolist(), old[other][i], strict=True))
                        / 0.5
                    )
                    for i in row
                ]
                for b, row in enumerate(CONTRASTIVE_INDEX.tolist())
            ]
            for side, other in ("st", "ts")
        }
        if z is None:  # set by the first batch, kept by the second
            z = {side: NUM_DATA * sum(map(sum, rows)) / (BATCH * 4) for side, rows in raw.items()}
        for side in "st":
            torch.testing.assert_close(scores[side], torch.tensor(raw[side]) / z[side])
            for b, i in enumerate(INDEX.tolist()):
                mixed = [
                    0.75 * o + 0.25 * n
                    for o, n in zip(old[side][i], v[side][b].tolist(), strict=True)
                ]
                size = math.hypot(*mixed)
                old[side][i] = [x / size for x in mixed]
        torch.testing.assert_close(memory.memory_s, torch.tensor(old["s"]))
        torch.testing.assert_close(memory.memory_t, torch.tensor(old["t"]))


# --- the surface ---


POOLED = {"resnet8": 64, "resnet20": 64, "vgg8": 512, "wrn_16_2": 128}


def config(student: str, teacher: str) -> CfgNode:
    cfg = CfgNode(copy.deepcopy(distiller_defaults))
    cfg.CRD.FEAT.STUDENT_DIM, cfg.CRD.FEAT.TEACHER_DIM = POOLED[student], POOLED[teacher]
    cfg.FITNET.INPUT_SIZE = cfg.CC.INPUT_SIZE = cfg.FT.INPUT_SIZE = cfg.ITRD.INPUT_SIZE = (
        SIDE,
        SIDE,
    )
    cfg.FT.PRETRAIN.EPOCHS = 1
    return cfg


def assemble(name: str, student: nn.Module, teacher: nn.Module, cfg: CfgNode) -> Distiller:
    if name == "CRD":
        return distiller_dict[name](student, teacher, cfg, NUM_DATA)
    distiller = distiller_dict[name](student, teacher, cfg)
    if name == "FT":
        distiller.pretrain([(batch()["image"], TARGET)])
    return distiller


def build(
    name: str, student: str = "resnet8", teacher: str = "wrn_16_2", **options: object
) -> Distiller:
    torch.manual_seed(0)
    networks = [cifar_model_dict[kind][0](num_classes=CLASSES) for kind in (student, teacher)]
    cfg = config(student, teacher)
    cfg[name].update(options)
    return assemble(name, *networks, cfg)


def batch() -> dict:
    image = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return {
        "image": image,
        "target": TARGET,
        "epoch": 10,
        "index": INDEX,
        "contrastive_index": CONTRASTIVE_INDEX,
    }


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
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in distiller.student.parameters()
    )
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(
        torch.equal(value, before[key]) for key, value in distiller.teacher.state_dict().items()
    )


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


# modules that a method trains with the student, and all numbers that it keeps, for resnet8 (64) and
# wrn_16_2 (128)
TRAINED = {
    "FITNET": ["conv_reg"],
    "CRD": ["embed_s", "embed_t"],
    "CC": ["embed_s", "embed_t"],
    "FT": ["translator"],
    "ITRD": ["embed"],
}
EXTRA = {
    "FITNET": 32 * 64 + 64 + 2 * 64,  # 1x1 convolution, batch normalisation
    "CRD": (64 + 1) * 128 + (128 + 1) * 128 + 2 * NUM_DATA * 128,
    "CC": (64 + 1) * 128 + (128 + 1) * 128,
    "ITRD": (64 + 1) * 128,
    "FT": 3 * (9 * 64 * 64 + 64)
    + 2 * 3 * 64  # translator 64-64-64-64, with batch normalisation
    + (9 * 128 * 128 + 128)
    + (9 * 128 * 64 + 64)
    + (9 * 64 * 64 + 64)  # encoder 128-128-64-64
    + (9 * 64 * 64 + 64)
    + (9 * 64 * 128 + 128)
    + (9 * 128 * 128 + 128),  # decoder 64-64-128-128
}


@every_method
def test_learnable_parameters_are_the_students_and_the_trained_modules(name: str) -> None:
    distiller = build(name)
    learnable = distiller.get_learnable_parameters()
    trained = [distiller.student, *(getattr(distiller, module) for module in TRAINED.get(name, []))]
    assert isinstance(learnable, list)
    assert [id(p) for p in learnable] == [id(p) for module in trained for p in module.parameters()]


@every_method
def test_extra_parameters_are_counted(name: str) -> None:
    assert build(name).get_extra_parameters() == EXTRA.get(name, 0)


@pytest.mark.parametrize("name", TRAINED)
def test_the_distillation_loss_trains_the_extra_modules(name: str) -> None:
    distiller = build(name).train()
    distiller(**batch())[1]["loss_kd"].backward()
    for module in TRAINED[name]:
        assert all(p.grad is not None for p in getattr(distiller, module).parameters())
        assert any(p.grad.any() for p in getattr(distiller, module).parameters())


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


@every_method
def test_any_module_with_logits_and_features_can_teach(name: str) -> None:
    cfg = config("resnet8", "wrn_16_2")
    cfg.CRD.FEAT.TEACHER_DIM = 9
    cfg.FITNET.HINT_LAYER = 3
    distiller = assemble(name, build(name).student, PlainTeacher(), cfg)
    _, losses = distiller.train()(**batch())
    assert losses["loss_kd"].isfinite()
    assert losses["loss_kd"] != 0


class Seen:
    """One network's outputs, by short names."""

    def __init__(self, output: tuple[Tensor, dict]) -> None:
        self.z, features = output
        self.maps, self.pooled = features["feats"], features["pooled_feat"]


# what each class makes of its networks and its configuration, by the pure functions
EXPECTED: dict[str, Callable[[Distiller, Seen, Seen], Tensor]] = {
    "KD": lambda d, s, t: 0.9 * kd_loss(s.z, t.z, 4),
    "DKD": lambda d, s, t: (
        0.5 * dkd_loss(s.z, t.z, TARGET, 1, 8, 4)
    ),  # epoch 10 of 20 warm-up epochs
    "AT": lambda d, s, t: 1000 * at_loss(s.maps[1:], t.maps[1:], 2),
    "SP": lambda d, s, t: 3000 * sp_loss(s.maps[-1], t.maps[-1]),
    "RKD": lambda d, s, t: (
        25 * rkd_distance_loss(s.pooled, t.pooled) + 50 * rkd_angle_loss(s.pooled, t.pooled)
    ),
    "FITNET": lambda d, s, t: 100 * F.mse_loss(d.conv_reg(s.maps[2]), t.maps[2]),
    "DIST": lambda d, s, t: dist_loss(s.z, t.z, 2, 2, 4),
    "WTTM": lambda d, s, t: 3 * wttm_loss(s.z, t.z, 0.1),
    "LSKD": lambda d, s, t: 9 * kd_loss(standardise(s.z), standardise(t.z), 2),
    "CC": lambda d, s, t: 0.02 * cc_loss(d.embed_s(s.pooled), d.embed_t(t.pooled)),
    "FT": lambda d, s, t: (
        200 * ft_loss(d.translator(s.maps[-1]), d.paraphraser.encoder(t.maps[-1]))
    ),
    "ITRD": lambda d, s, t: (
        2 * itrd_correlation_loss(d.embed(s.pooled), t.pooled, 1.01)
        + itrd_mutual_loss(d.embed(s.pooled), t.pooled)
    ),
}
CE_WEIGHT = {"KD": 0.1, "LSKD": 0.1}


@pytest.mark.parametrize("name", EXPECTED)
def test_losses_are_weighted_as_published(name: str) -> None:
    distiller = build(name).train()
    _, losses = distiller(**batch())
    image = batch()["image"]
    student, teacher = Seen(distiller.student(image)), Seen(distiller.teacher(image))
    torch.testing.assert_close(losses["loss_kd"], EXPECTED[name](distiller, student, teacher))
    torch.testing.assert_close(
        losses["loss_ce"], CE_WEIGHT.get(name, 1.0) * F.cross_entropy(student.z, TARGET)
    )


def test_crd_weighs_the_contrast_of_both_embeddings() -> None:
    distiller = build("CRD").train()
    before = copy.deepcopy(distiller)
    _, losses = distiller(**batch())
    image = batch()["image"]
    v_s = before.embed_s(before.student(image)[1]["pooled_feat"])
    v_t = before.embed_t(before.teacher(image)[1]["pooled_feat"])
    scores_s, scores_t = before.contrast(v_s, v_t, INDEX, CONTRASTIVE_INDEX)
    expected = 0.8 * (nce_loss(scores_s, NUM_DATA) + nce_loss(scores_t, NUM_DATA))
    torch.testing.assert_close(losses["loss_kd"], expected)


def test_lskd_can_standardise_for_dkd() -> None:
    distiller = build("LSKD", BASE="DKD").train()
    _, losses = distiller(**batch())
    image = batch()["image"]
    z_s, z_t = (
        standardise(network(image)[0]) for network in (distiller.student, distiller.teacher)
    )
    torch.testing.assert_close(losses["loss_kd"], 9 * 0.5 * dkd_loss(z_s, z_t, TARGET, 1, 8, 2))
    torch.testing.assert_close(
        losses["loss_ce"], F.cross_entropy(distiller.student(image)[0], TARGET)
    )  # DKD's weight, not KD's 0.1


def test_lskd_refuses_another_base() -> None:
    with pytest.raises(DJIPError, match="LSKD.BASE is 'AT'"):
        build("LSKD", BASE="AT")


def test_itrd_leaves_features_of_one_size_unembedded_in_the_mutual_term() -> None:
    distiller = build("ITRD", teacher="resnet20").train()
    _, losses = distiller(**batch())
    s, t = (Seen(network(batch()["image"])) for network in (distiller.student, distiller.teacher))
    expected = 2 * itrd_correlation_loss(
        distiller.embed(s.pooled), t.pooled, 1.01
    ) + itrd_mutual_loss(s.pooled, t.pooled)
    torch.testing.assert_close(losses["loss_kd"], expected)


@pytest.mark.parametrize(
    ("shape_s", "shape_t"),
    [
        ((3, 8, 8), (5, 4, 4)),
        ((3, 4, 4), (5, 8, 8)),
        ((3, 8, 8), (5, 8, 8)),
        ((3, 8, 8), (5, 3, 3)),
    ],
)
def test_hint_regressor_reaches_the_shape_of_the_teacher(shape_s: tuple, shape_t: tuple) -> None:
    prediction = ConvReg(shape_s, shape_t)(torch.randn(BATCH, *shape_s))
    assert prediction.shape == (BATCH, *shape_t)
    assert prediction.min() == 0


def test_hint_regressor_refuses_a_map_that_is_too_small() -> None:
    with pytest.raises(ValueError, match="HINT_LAYER"):
        ConvReg((3, 2, 2), (5, 8, 8))


def test_probe_disturbs_neither_network_nor_generator() -> None:
    network = cifar_model_dict["resnet8"][0](num_classes=CLASSES).train()
    network.layer2.eval()
    modes = [module.training for module in network.modules()]
    state, generator = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    features = probe(network, (SIDE, SIDE))
    assert [f.shape[1:] for f in features["feats"]] == [
        (16, 16, 16),
        (16, 16, 16),
        (32, 8, 8),
        (64, 4, 4),
    ]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", ["FITNET", "CC", "FT", "ITRD"])
def test_construction_leaves_both_networks_as_they_were(name: str) -> None:
    networks = [
        cifar_model_dict[kind][0](num_classes=CLASSES).train() for kind in ("resnet8", "wrn_16_2")
    ]
    states = [copy.deepcopy(network.state_dict()) for network in networks]
    distiller_dict[name](*networks, config("resnet8", "wrn_16_2"))
    for network, state in zip(networks, states, strict=True):
        assert network.training
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


# --- the pre-training of factor transfer ---


def untrained_ft(epochs: int = 5) -> FT:
    torch.manual_seed(0)
    networks = [cifar_model_dict[kind][0](num_classes=CLASSES) for kind in ("resnet8", "wrn_16_2")]
    cfg = config("resnet8", "wrn_16_2")
    cfg.FT.PRETRAIN.EPOCHS = epochs
    return FT(*networks, cfg)


def test_ft_refuses_to_train_on_an_untrained_paraphraser() -> None:
    with pytest.raises(DJIPError, match="pretrain"):
        untrained_ft().train()(**batch())


def test_ft_pretraining_lowers_the_reconstruction_error_and_touches_the_paraphraser_alone() -> None:
    distiller = untrained_ft()
    before = copy.deepcopy(distiller.state_dict())
    errors = distiller.pretrain([(batch()["image"], TARGET)] * 3)
    assert len(errors) == 5
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
    moved = {
        key.split(".")[0]
        for key, value in distiller.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {"paraphraser", "_extra_state"}


def test_ft_pretraining_is_momentum_descent_on_the_squared_error_of_the_teachers_last_map() -> None:
    distiller = untrained_ft(epochs=3)
    image = batch()["image"]
    twin = copy.deepcopy(distiller.paraphraser)
    velocity = [torch.zeros_like(p) for p in twin.parameters()]
    f_t = distiller.teacher.eval()(image)[1]["feats"][-1].detach()
    expected = []
    for _ in range(3):
        error = ((twin(f_t) - f_t) ** 2).mean()
        expected.append(error.item())
        gradients = torch.autograd.grad(error, list(twin.parameters()))
        with torch.no_grad():
            for p, v, g in zip(twin.parameters(), velocity, gradients, strict=True):
                v.mul_(0.9).add_(g + 0.0005 * p)
                p -= 0.01 * v
    assert distiller.pretrain([(image,)]) == pytest.approx(expected, rel=1e-4)
    for p, q in zip(distiller.paraphraser.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_ft_keeps_the_paraphraser_while_the_student_trains() -> None:
    distiller = untrained_ft(epochs=1)
    distiller.pretrain([(batch()["image"],)])
    for p in distiller.paraphraser.parameters():
        p.grad = None
    sum(distiller.train()(**batch())[1].values()).backward()
    assert all(p.grad is None for p in distiller.paraphraser.parameters())


def test_ft_checkpoint_remembers_the_pretraining() -> None:
    trained = untrained_ft(epochs=1)
    trained.pretrain([(batch()["image"],)])
    resumed = untrained_ft()
    resumed.load_state_dict(trained.state_dict())
    _, losses = resumed.train()(**batch())
    assert torch.equal(losses["loss_kd"], trained.train()(**batch())[1]["loss_kd"])


def test_paraphraser_keeps_the_shape_of_the_map() -> None:
    f_t = torch.randn(BATCH, 6, 4, 4)
    paraphraser = Paraphraser(6, 3)
    assert paraphraser.encoder(f_t).shape == (BATCH, 3, 4, 4)
    assert paraphraser(f_t).shape == f_t.shape


# --- training on the labels ---


def test_vanilla_trains_on_the_labels_alone() -> None:
    torch.manual_seed(0)
    student = cifar_model_dict["resnet8"][0](num_classes=CLASSES)
    vanilla = distiller_dict["NONE"](student)
    logits, losses = vanilla.train()(**batch())
    assert set(losses) == {"ce"}
    assert torch.equal(losses["ce"], F.cross_entropy(logits, TARGET))
    image = batch()["image"]
    assert torch.equal(vanilla.eval()(image=image), student(image)[0])
    assert [id(p) for p in vanilla.get_learnable_parameters()] == [
        id(p) for p in student.parameters()
    ]
    assert vanilla.get_extra_parameters() == 0


def test_training_mode_must_be_boolean() -> None:
    with pytest.raises(ValueError, match="boolean"):
        build("KD").train("yes")


def test_every_method_but_vanilla_has_defaults() -> None:
    losses = set(adversarial_losses)  # around a method, with nodes of their own
    assert set(distiller_defaults) == set(distiller_dict) - {"NONE"} | losses


# --- against mdistiller itself ---


@pytest.fixture(scope="module")
def host() -> Iterator[Callable[[str], types.ModuleType]]:
    """Import a module of mdistiller by its dotted name.

    Its packages' own imports (scipy, wandb) are skipped.
    """
    root = os.environ.get("MDISTILLER_ROOT")
    if not root:
        pytest.skip("MDISTILLER_ROOT names no checkout of mdistiller")
    for package in ("distillers", "engine"):
        module = types.ModuleType(f"host_{package}")
        module.__path__ = [str(Path(root) / "mdistiller" / package)]
        sys.modules[module.__name__] = module
    yield lambda name: importlib.import_module(f"host_{name}")


@pytest.mark.parametrize("name", FROM_MDISTILLER)
def test_defaults_are_those_of_mdistiller(name: str, host: Callable) -> None:
    assert CfgNode(copy.deepcopy(distiller_defaults[name])) == host("engine.cfg").CFG[name]


def host_twin(ours: Distiller, name: str, cfg: CfgNode, host: Callable) -> nn.Module:
    """mdistiller's distiller with the same weights."""
    module = "FitNet" if name == "FITNET" else name
    networks = copy.deepcopy(ours.student), copy.deepcopy(ours.teacher)
    extra = (NUM_DATA,) if name == "CRD" else ()
    theirs = getattr(host(f"distillers.{module}"), module)(*networks, cfg, *extra)
    state = {
        key.replace("memory_s", "memory_v1").replace("memory_t", "memory_v2"): value.clone()
        for key, value in ours.state_dict().items()
        if key != "contrast.z"
    }
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert set(missing) <= {"contrast.params"}
    assert not unexpected
    return theirs


@pytest.mark.parametrize("student", ["resnet8", "vgg8"])
@pytest.mark.parametrize("name", FROM_MDISTILLER)
def test_losses_and_gradients_are_those_of_mdistiller(
    name: str, student: str, host: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.Tensor, "cuda", lambda tensor: tensor
    )  # mdistiller's CRD assumes a GPU
    cfg = config(student, "wrn_16_2")
    cfg.CRD.NCE.K = CONTRASTIVE_INDEX.shape[1] - 1
    ours = build(name, student)
    theirs = host_twin(ours, name, cfg, host).train()
    ours.train()
    for _ in range(2):  # the second step of CRD meets the memory that the first one left
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mdistiller's use of size_average
            (logits, losses), (expected_logits, expected) = ours(**batch()), theirs(**batch())
        torch.testing.assert_close(logits, expected_logits)
        assert list(losses) == list(expected)
        for key in expected:
            torch.testing.assert_close(losses[key], expected[key].reshape(()), rtol=1e-4, atol=1e-6)
        sum(losses.values()).backward()
        sum(expected.values()).sum().backward()
    gradient, expected_gradient = (
        torch.cat([p.grad.flatten() for p in distiller.get_learnable_parameters()])
        for distiller in (ours, theirs)
    )
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()
    scalars = 5 if name == "CRD" else 0  # mdistiller also counts K, T, momentum and two constants
    assert ours.get_extra_parameters() == theirs.get_extra_parameters() - scalars


def test_the_documentation_lists_every_method() -> None:
    text = (Path(__file__).parents[2] / "docs" / "distillers.md").read_text()
    listed = [
        line.split("`")[1]
        for line in text.partition("## How")[0].splitlines()
        if line.startswith("| `") and "TYPE" not in line
    ]
    assert sorted(listed) == sorted(METHODS)
