"""A whole training step of the distillers that were written here, against slow references.

The modules that they train are included; the references are float64.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers.slow_losses import (
    batch_norm_reference,
    cc_reference,
    convolution_reference,
    crd_reference,
    cross_entropy_reference,
    dist_reference,
    dkd_reference,
    ft_reference,
    itrd_correlation_reference,
    itrd_mutual_reference,
    kd_reference,
    leaky_reference,
    linear_reference,
    mean,
    standardised_reference,
    transposed_convolution_reference,
    unit,
    wttm_reference,
)
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.distillers import distiller_defaults, distiller_dict

BATCH, CLASSES, NUM_DATA = 4, 5, 9
TARGET = torch.tensor([0, 4, 2, 2])
INDEX = torch.tensor([7, 0, 3, 5])
CONTRASTIVE_INDEX = torch.tensor([[7, 1, 2, 8], [0, 2, 4, 6], [3, 8, 7, 6], [5, 1, 1, 2]])


class Shown(nn.Module):
    """A network whose outputs are given: logits, one map (as all stages') and a pooled feature."""

    def __init__(self, seed: int, map_shape: tuple[int, int, int], pooled: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = ((BATCH, CLASSES), (BATCH, *map_shape), (BATCH, pooled))
        self.z, self.map, self.pooled = (
            torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
            for shape in shapes
        )

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.z, {"feats": [self.map] * 4, "pooled_feat": self.pooled}


def dist(d: Any, s: Shown, t: Shown) -> Tensor:
    return dist_reference(s.z, t.z, 2, 2, 4)


def wttm(d: Any, s: Shown, t: Shown) -> Tensor:
    return 3 * wttm_reference(s.z, t.z, 0.1)


def lskd(d: Any, s: Shown, t: Shown) -> Tensor:
    return 9 * kd_reference(standardised_reference(s.z), standardised_reference(t.z), 2)


def lskd_of_dkd(d: Any, s: Shown, t: Shown) -> Tensor:  # epoch 10 of a warm-up of 20
    return (
        9
        * 0.5
        * dkd_reference(standardised_reference(s.z), standardised_reference(t.z), TARGET, 1, 8, 2)
    )


def cc(d: Any, s: Shown, t: Shown) -> Tensor:
    f_s, f_t = (
        linear_reference(f, embed.weight, embed.bias)
        for f, embed in ((s.pooled, d.embed_s), (t.pooled, d.embed_t))
    )
    return 0.02 * cc_reference(f_s, f_t)


def itrd(d: Any, s: Shown, t: Shown) -> Tensor:
    embedded = linear_reference(s.pooled, d.embed.weight, d.embed.bias)
    mutual = itrd_mutual_reference(
        s.pooled if s.pooled.shape == t.pooled.shape else embedded, t.pooled
    )
    return 2 * itrd_correlation_reference(embedded, t.pooled, 1.01) + mutual


def crd(d: Any, s: Shown, t: Shown) -> Tensor:
    embeds = ((s.pooled, d.embed_s.linear), (t.pooled, d.embed_t.linear))
    rows = (
        [torch.stack(unit(list(row))) for row in linear_reference(f, linear.weight, linear.bias)]
        for f, linear in embeds
    )
    v_s, v_t = (torch.stack(side) for side in rows)
    return 0.8 * crd_reference(
        v_s, v_t, d.contrast.memory_s, d.contrast.memory_t, CONTRASTIVE_INDEX, 0.07
    )


def fitnet(d: Any, s: Shown, t: Shown) -> Tensor:
    conv, (wide, narrow) = d.conv_reg.conv, (s.map.shape[2], t.map.shape[2])
    if wide == 2 * narrow:
        f = convolution_reference(s.map, conv.weight, conv.bias, stride=2, padding=1)
    elif 2 * wide == narrow:
        f = transposed_convolution_reference(s.map, conv.weight, conv.bias, stride=2, padding=1)
    else:
        f = convolution_reference(s.map, conv.weight, conv.bias, stride=1, padding=0)
    prediction = leaky_reference(
        batch_norm_reference(f, d.conv_reg.bn.weight, d.conv_reg.bn.bias), 0
    )
    return 100 * mean(
        [(a - b) ** 2 for a, b in zip(prediction.flatten(), t.map.flatten(), strict=True)]
    )


def ft(d: Any, s: Shown, t: Shown) -> Tensor:
    f_s, f_t = s.map, t.map
    convolutions = [module for module in d.translator if isinstance(module, nn.Conv2d)]
    norms = [module for module in d.translator if isinstance(module, nn.BatchNorm2d)]
    for conv, norm in zip(convolutions, norms, strict=True):
        f_s = convolution_reference(f_s, conv.weight, conv.bias, stride=1, padding=1)
        f_s = leaky_reference(batch_norm_reference(f_s, norm.weight, norm.bias), 0.1)
    for conv in (module for module in d.paraphraser.encoder if isinstance(module, nn.Conv2d)):
        f_t = leaky_reference(
            convolution_reference(f_t, conv.weight, conv.bias, stride=1, padding=1), 0.1
        )
    return 200 * ft_reference(f_s, f_t)


@dataclass(frozen=True)
class Case:
    """``ce``: the weight of cross entropy; the shapes are of student and teacher."""

    name: str
    reference: Callable[[Any, Shown, Shown], Tensor]
    ce: float = 1.0
    maps: tuple[tuple[int, int, int], tuple[int, int, int]] = ((2, 4, 4), (4, 4, 4))
    pooled: tuple[int, int] = (3, 6)
    options: tuple[tuple[str, Any], ...] = ()


CASES = {
    "DIST": Case("DIST", dist),
    "WTTM": Case("WTTM", wttm),
    "LSKD": Case("LSKD", lskd, ce=0.1),
    "LSKD of DKD": Case("LSKD", lskd_of_dkd, options=(("BASE", "DKD"),)),
    "CC": Case("CC", cc, options=(("DIM", 3),)),
    "FT": Case("FT", ft),
    "FT, student larger": Case("FT", ft, maps=((2, 4, 4), (4, 2, 2))),
    "ITRD": Case("ITRD", itrd),
    "ITRD, features of one size": Case("ITRD", itrd, pooled=(6, 6)),
    "CRD": Case("CRD", crd),
    "FitNet, student of twice the size": Case("FITNET", fitnet, maps=((2, 4, 4), (3, 2, 2))),
    "FitNet, student of half the size": Case("FITNET", fitnet, maps=((2, 2, 2), (3, 4, 4))),
    "FitNet, student of the same size": Case("FITNET", fitnet, maps=((2, 3, 3), (3, 3, 3))),
    "FitNet, student a little larger": Case("FITNET", fitnet, maps=((2, 4, 4), (3, 3, 3))),
}


def assembled(case: Case) -> Any:
    cfg = CfgNode(copy.deepcopy(distiller_defaults))
    cfg.CRD.FEAT.DIM, (cfg.CRD.FEAT.STUDENT_DIM, cfg.CRD.FEAT.TEACHER_DIM) = 3, case.pooled
    cfg[case.name].update(dict(case.options))
    networks = [
        Shown(seed, shape, pooled)
        for seed, (shape, pooled) in enumerate(zip(case.maps, case.pooled, strict=True))
    ]
    distiller = (
        distiller_dict[case.name](*networks, cfg, *([NUM_DATA] if case.name == "CRD" else []))
        .double()
        .train()
    )
    distiller.pretrained = True  # FT: the factors of an untrained paraphraser serve as well
    return distiller


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_and_all_its_gradients_equal_the_slow_reference(case: Case) -> None:
    distiller = assembled(case)
    student, teacher = distiller.student, distiller.teacher
    expected = case.ce * cross_entropy_reference(student.z, TARGET) + case.reference(
        distiller, student, teacher
    )
    step = {"target": TARGET, "epoch": 10, "index": INDEX, "contrastive_index": CONTRASTIVE_INDEX}
    logits, losses = distiller(image=torch.zeros(BATCH, 3, 32, 32), **step)
    assert logits is student.z
    torch.testing.assert_close(sum(losses.values()), expected, rtol=1e-9, atol=0)

    inputs = {"z": student.z, "map": student.map, "pooled": student.pooled} | dict(
        distiller.named_parameters()
    )
    inputs = {name: x for name, x in inputs.items() if not name.startswith("paraphraser")}
    gradients, references = (
        torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
        for loss in (sum(losses.values()), expected)
    )
    assert [g is None for g in gradients] == [r is None for r in references]
    largest = max(r.abs().max() for r in references if r is not None)
    assert largest > 1e-3
    for name, gradient, reference in zip(inputs, gradients, references, strict=True):
        if (
            reference is not None
        ):  # a bias before a normalisation has a gradient of zero, up to rounding
            torch.testing.assert_close(
                gradient,
                reference,
                rtol=1e-6,
                atol=1e-10 * float(largest),
                msg=lambda m, name=name: f"{name}: {m}",
            )


@pytest.mark.parametrize("name", ["CC", "CRD", "FT", "ITRD", "FITNET"])
def test_the_reference_covers_every_module_that_the_method_trains(name: str) -> None:
    case = next(case for case in CASES.values() if case.name == name)
    distiller = assembled(case)
    loss = case.reference(distiller, distiller.student, distiller.teacher)
    trained = distiller.get_learnable_parameters()
    assert trained and all(
        g is not None for g in torch.autograd.grad(loss, trained, allow_unused=True)
    )
