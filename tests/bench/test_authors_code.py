"""The distillers that were written here against their authors' public code, in float64.

Values and gradients are compared.

Runs when KD_REFERENCES names a folder of checkouts: OWNER+NAME for each of REPOSITORIES.
"""

import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djip_ext.bench.distillers.cc import cc_loss
from djip_ext.bench.distillers.crd import ContrastMemory, Embed, nce_loss
from djip_ext.bench.distillers.dist import dist_loss
from djip_ext.bench.distillers.dkd import dkd_loss
from djip_ext.bench.distillers.fitnet import ConvReg
from djip_ext.bench.distillers.ft import Paraphraser, _encoder, ft_loss
from djip_ext.bench.distillers.itrd import itrd_correlation_loss, itrd_mutual_loss
from djip_ext.bench.distillers.kd import kd_loss
from djip_ext.bench.distillers.lskd import standardise
from djip_ext.bench.distillers.wttm import wttm_loss

REPOSITORIES = (
    "HobbitLong+RepDistiller",
    "zkxufo+TTM",
    "roymiles+ITRD",
    "sunshangquan+logit-standardization-KD",
)
ROOT = os.environ.get("KD_REFERENCES")

pytestmark = [
    pytest.mark.skipif(not ROOT, reason="KD_REFERENCES names no folder of checkouts"),
    pytest.mark.filterwarnings("ignore"),  # size_average
]


@pytest.fixture(autouse=True)
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def theirs(repository: str, path: str) -> Any:
    """The module at ``path``, its siblings importable by relative imports."""
    file = Path(str(ROOT)) / repository / path
    package = f"theirs_{repository.replace('+', '_').replace('-', '_')}_{file.parent.name}"
    if package not in sys.modules:
        sys.modules[package] = types.ModuleType(package)
        sys.modules[package].__path__ = [str(file.parent)]
    return importlib.import_module(f"{package}.{file.stem}")


def noise(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def agree(
    ours: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    *inputs: Tensor,
    tolerance: float = 1e-12,
) -> None:
    """Equal values, and equal gradients for every input.

    ``tolerance`` is relative to the largest of each.
    """
    sides = []
    for function in (ours, reference):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves).reshape(())
        sides.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for mine, other in zip(*sides, strict=True):
        assert (mine - other).abs().max() <= tolerance * other.abs().max()


def same_weights(ours: nn.Module, reference: nn.Module) -> list[nn.Parameter]:
    pairs = list(zip(ours.parameters(), reference.parameters(), strict=True))
    with torch.no_grad():
        for mine, other in pairs:
            other.copy_(mine)
    return [mine for mine, _ in pairs]


def modules_agree(
    ours: nn.Module,
    reference: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    read: Callable[[nn.Module], Tensor],
) -> None:
    """Equal losses (``loss`` of ours, ``read`` of theirs) and gradients of every parameter."""
    same_weights(ours, reference)
    sides = []
    for module, function in ((ours, loss), (reference, read)):
        value = function(module)
        sides.append([value.detach(), *torch.autograd.grad(value, list(module.parameters()))])
    for mine, other in zip(*sides, strict=True):
        assert (mine - other).abs().max() <= 1e-12 * max(
            float(side.abs().max()) for side in sides[1]
        )


Z_S, Z_T = noise(32, 100, seed=0, scale=2), noise(32, 100, seed=1, scale=5)
TARGET = torch.randint(0, 100, (32,), generator=torch.Generator().manual_seed(2))


def doubled(*tensors: Tensor) -> Sequence[Tensor]:
    return [x.double() for x in tensors]


def test_dist() -> None:
    z_s, z_t = doubled(Z_S, Z_T)
    authors = theirs("zkxufo+TTM", "distiller_zoo/dist.py").DIST(2.0, 2.0, 4.0)
    agree(lambda s: dist_loss(s, z_t, 2.0, 2.0, 4.0), lambda s: authors(s, z_t), z_s)


@pytest.mark.parametrize("gamma", [0.1, 0.2, 0.4])
def test_wttm(gamma: float) -> None:
    z_s, z_t = doubled(Z_S, Z_T)
    authors = theirs("zkxufo+TTM", "distiller_zoo/wttm.py").WTTM(gamma)
    agree(lambda s: wttm_loss(s, z_t, gamma), lambda s: authors(s, z_t), z_s)


def test_lskd() -> None:
    z_s, z_t = doubled(Z_S, Z_T)
    folder = "mdistiller/distillers"
    kd, dkd = (
        theirs("sunshangquan+logit-standardization-KD", f"{folder}/{name}.py")
        for name in ("KD", "DKD")
    )
    t = standardise(z_t)
    agree(
        lambda s: 9 * kd_loss(standardise(s), t, 2.0),
        lambda s: 9 * kd.kd_loss(s, z_t, 2.0, True),
        z_s,
    )
    agree(
        lambda s: 9 * dkd_loss(standardise(s), t, TARGET, 1.0, 8.0, 2.0),
        lambda s: dkd.dkd_loss(s, z_t, TARGET, 9.0, 72.0, 2.0, True),
        z_s,
    )


def test_cc() -> None:
    agree(
        cc_loss,
        theirs("HobbitLong+RepDistiller", "distiller_zoo/CC.py").Correlation(),
        noise(32, 128, seed=3),
        noise(32, 128, seed=4),
    )


@pytest.mark.parametrize("sides", [(8, 8), (8, 4), (4, 8)])
def test_ft_loss(sides: tuple[int, int]) -> None:
    f_s, f_t = (noise(8, 32, side, side, seed=seed) for seed, side in enumerate(sides))
    agree(
        ft_loss, theirs("HobbitLong+RepDistiller", "distiller_zoo/FT.py").FactorTransfer(), f_s, f_t
    )


def test_ft_modules() -> None:
    util, f_t, f_s = (
        theirs("HobbitLong+RepDistiller", "models/util.py"),
        noise(4, 32, 8, 8, seed=5),
        noise(4, 16, 8, 8, seed=6),
    )
    error = (
        (lambda m: (m(f_t) - f_t).square().mean()),
        (lambda m: (m(f_t)[1] - f_t).square().mean()),
    )
    modules_agree(Paraphraser(32, 16), util.Paraphraser((2, 32, 8, 8)), *error)
    size = (lambda m: m(f_s).square().mean()), (lambda m: m(f_s).square().mean())
    modules_agree(
        _encoder(16, 16, batch_norm=True), util.Translator((2, 16, 8, 8), (2, 32, 8, 8)), *size
    )


@pytest.mark.parametrize("dim_t", [64, 128])
def test_itrd(dim_t: int) -> None:
    authors = theirs("roymiles+ITRD", "distiller_zoo/IT.py").ITLoss(
        types.SimpleNamespace(s_dim=64, t_dim=dim_t, n_data=1, alpha_it=1.01)
    )
    embed, f_s, f_t = authors.embed.linear, noise(32, 64, seed=7), noise(32, dim_t, seed=8)
    # 1e-8 beside the standard deviations is ours
    agree(
        lambda s: itrd_correlation_loss(embed(s), f_t, 1.01),
        lambda s: authors.forward_correlation_it(s, f_t),
        f_s,
        tolerance=1e-7,
    )
    agree(
        lambda s: itrd_mutual_loss(s if dim_t == 64 else embed(s), f_t),
        lambda s: authors.forward_mutual_it(s, f_t),
        f_s,
    )


def test_crd(monkeypatch: pytest.MonkeyPatch) -> None:
    criterion, memory = (
        theirs("HobbitLong+RepDistiller", f"crd/{name}.py") for name in ("criterion", "memory")
    )
    monkeypatch.setattr(memory.AliasMethod, "cuda", lambda self: None)
    images, negatives = 60, 20
    options = types.SimpleNamespace(
        s_dim=64, t_dim=128, feat_dim=16, n_data=images, nce_k=negatives, nce_t=0.07, nce_m=0.5
    )
    authors = criterion.CRDLoss(options)
    embed_s, embed_t, ours = Embed(64, 16), Embed(128, 16), ContrastMemory(16, images, 0.07, 0.5)
    same_weights(embed_s, authors.embed_s), same_weights(embed_t, authors.embed_t)
    ours.memory_s.copy_(authors.contrast.memory_v1), ours.memory_t.copy_(authors.contrast.memory_v2)
    for step in range(2):
        f_s, f_t, index = (
            noise(8, 64, seed=9 + step),
            noise(8, 128, seed=11 + step),
            torch.arange(step, 8 + step),
        )
        drawn = torch.randint(
            0, images, (8, negatives + 1), generator=torch.Generator().manual_seed(step)
        )
        drawn[:, 0] = index

        def loss(s: Tensor, t: Tensor, index: Tensor = index, drawn: Tensor = drawn) -> Tensor:
            return sum(
                nce_loss(scores, images) for scores in ours(embed_s(s), embed_t(t), index, drawn)
            )

        agree(loss, lambda s, t, index=index, drawn=drawn: authors(s, t, index, drawn), f_s, f_t)
        for mine, other in (
            (ours.memory_s, authors.contrast.memory_v1),
            (ours.memory_t, authors.contrast.memory_v2),
        ):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sides", [(8, 4), (4, 8), (8, 8), (8, 7)])
def test_fitnet_regressor(sides: tuple[int, int]) -> None:
    shape_s, shape_t = (8, sides[0], sides[0]), (12, sides[1], sides[1])
    f_s, hint = noise(4, *shape_s, seed=13), noise(4, *shape_t, seed=14)
    error = (lambda m: (m(f_s) - hint).square().mean()), (lambda m: (m(f_s) - hint).square().mean())
    modules_agree(
        ConvReg(shape_s, shape_t),
        theirs("HobbitLong+RepDistiller", "models/util.py").ConvReg((2, *shape_s), (2, *shape_t)),
        *error,
    )
