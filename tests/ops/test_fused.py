"""The lens as one operation against the chain of its parts, which autograd differentiates."""

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from helpers import reference
from torch import Tensor

from djip_ext import JPEGLens, soft_quantize
from djip_ext.lens.jpeg_lens import tile
from djip_ext.lens.normalisation import Normalisation
from djip_ext.ops import fused
from djip_ext.ops.dct import coefficients_to_rgb, rgb_to_coefficients

NORMALISATION = Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
SETTINGS = (
    {"kappa": 5.0},
    {"kappa": 0.7},
    {"alpha": 5.0},
    {"alpha": 0.5, "max_index": 30},
    {"kappa": 0.7, "max_index": 127, "window": 5},
)


def tables() -> Tensor:
    return 10 ** (torch.rand(2, 8, 8) * 1.3)


def chain(lens: JPEGLens, x: Tensor) -> Tensor:
    """Normalised images through the lens, each part a differentiable operation of its own."""
    z = rgb_to_coefficients(NORMALISATION.to_pixels(x))
    alpha = lens.alpha if lens.kappa is None else tile(lens.sharpness(), z)
    z = soft_quantize(z, tile(lens.q, z), alpha, lens.max_index, lens.window)
    return NORMALISATION.to_network(coefficients_to_rgb(z))


@pytest.mark.parametrize("settings", SETTINGS)
def test_value_and_both_gradients_are_those_of_the_chain(settings: dict[str, float]) -> None:
    lens = JPEGLens(tables(), **settings).double()
    x = torch.randn(3, 3, 16, 24, dtype=torch.float64).requires_grad_()
    weight = torch.randn_like(x)
    found, expected = NORMALISATION.through(lens, x), chain(lens, x)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    by_q, by_x = torch.autograd.grad(found, (lens.q, x), weight)
    q_expected, x_expected = torch.autograd.grad(expected, (lens.q, x), weight)
    torch.testing.assert_close(by_x, x_expected, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(by_q, q_expected, atol=1e-9, rtol=1e-9)
    alone = torch.autograd.grad(NORMALISATION.through(lens, x.detach()), lens.q, weight)[0]
    torch.testing.assert_close(alone, by_q, atol=1e-9, rtol=1e-9)
    lens.q.requires_grad_(False)
    torch.testing.assert_close(
        torch.autograd.grad(NORMALISATION.through(lens, x), x, weight)[0], by_x, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_float32_gradients_are_those_of_float64(settings: dict[str, float]) -> None:
    """Tolerances grow with the slope: a rounding of z counts dQ/dz times, up to kappa / 2."""
    exact = JPEGLens(tables() + 2, **settings).double()
    single = JPEGLens(exact.q.detach().float(), **settings)
    exact.q.data = single.q.detach().double()
    x, weight = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32)
    grads = []
    for lens, image, pull in ((single, x, weight), (exact, x.double(), weight.double())):
        image = image.requires_grad_()
        grads.append(torch.autograd.grad(NORMALISATION.through(lens, image), (lens.q, image), pull))
    for found, expected in zip(*grads, strict=True):
        assert (found - expected).norm() < 1e-3 * expected.norm() + 1e-5


def test_normalised_images_see_the_reference_codec() -> None:
    x, q = torch.randn(1, 3, 8, 16, dtype=torch.float64), tables()
    lens = JPEGLens(q, kappa=5.0).double()
    pixels = reference.lens(NORMALISATION.to_pixels(x)[0], q, 5.0 / q.double() ** 2, 1023)
    torch.testing.assert_close(
        NORMALISATION.through(lens, x)[0].detach(),
        NORMALISATION.to_network(pixels[None])[0],
        atol=1e-7,
        rtol=0,
    )


@pytest.mark.parametrize("images", (1, 5))
def test_neither_the_size_of_a_chunk_nor_its_buffers_matter(
    images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens, x = (
        JPEGLens(tables(), kappa=5.0).double(),
        torch.randn(images, 3, 16, 16, dtype=torch.float64).requires_grad_(),
    )
    results = []
    for chunk in (1, 2 * 768, 10**6):
        monkeypatch.setattr(fused, "CHUNK", chunk)
        seen = NORMALISATION.through(lens, x)
        results.append((seen.detach(), *torch.autograd.grad(seen.square().sum(), (lens.q, x))))
    monkeypatch.setattr(
        fused, "_chunks", lambda batch: iter([(slice(None), fused.no_buffers)])
    )  # as on a GPU
    seen = NORMALISATION.through(lens, x)
    results.append((seen.detach(), *torch.autograd.grad(seen.square().sum(), (lens.q, x))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_results_do_not_share_the_buffers_of_the_next_call() -> None:
    lens = JPEGLens(6.0, kappa=5.0)
    first = lens(torch.rand(2, 3, 16, 16) * 255)
    copy = first.detach().clone()
    lens(torch.rand(2, 3, 16, 16) * 255).sum().backward()
    assert torch.equal(first, copy)


def test_a_fit_keeps_one_tensor_and_an_image_s_gradient_none() -> None:
    lens, x = JPEGLens(6.0, alpha=5.0), torch.rand(2, 3, 16, 16) * 255
    for by_x in (False, True):
        kept: list[Tensor] = []
        hooks = (lambda t, kept=kept: kept.append(t) or t, lambda t: t)
        with torch.autograd.graph.saved_tensors_hooks(*hooks):
            lens(x.requires_grad_(by_x))
        assert [t.numel() for t in kept] == [x.numel()]
        assert (kept[0].data_ptr() == x.data_ptr()) == by_x


def double(q: Tensor) -> None:
    q.data.mul_(2)


def set_one(q: Tensor) -> None:
    q.data[0, 0, 0] = 20.0


def replace(q: Tensor) -> None:
    q.data = q.data * 2


@pytest.mark.parametrize("change", (double, set_one, replace))
def test_a_change_of_the_steps_is_seen_however_it_is_made(change: Callable[[Tensor], None]) -> None:
    lens, x = JPEGLens(6.0, kappa=5.0), torch.rand(1, 3, 8, 8) * 255
    before = lens(x).detach()
    change(lens.q)
    fresh = JPEGLens(lens.q.detach(), kappa=5.0)
    assert torch.equal(lens(x), fresh(x)) and not torch.equal(lens(x), before)


def test_each_width_and_scale_has_its_own_constants() -> None:
    lens, x = JPEGLens(6.0, kappa=5.0), torch.rand(1, 3, 16, 24) * 255
    wide = lens(x)
    torch.testing.assert_close(lens(x[..., :8]), wide[..., :8], atol=1e-4, rtol=0)
    scaled = NORMALISATION.to_pixels(NORMALISATION.through(lens, NORMALISATION.to_network(x)))
    torch.testing.assert_close(scaled, wide, atol=2e-3, rtol=0)


@pytest.mark.parametrize("q", (1.0, 5.0))
def test_coefficients_saturate_wherever_a_picture_can_reach_the_end(q: float) -> None:
    """L q just below and just above what a white block needs."""
    white = torch.full((1, 3, 8, 8), 255.0, dtype=torch.float64)
    limit = int(1016 / q) - 1
    seen = JPEGLens(q, kappa=5.0, max_index=limit).double()(white)
    expected = reference.lens(
        white[0],
        torch.full((2, 8, 8), q),
        torch.full((2, 8, 8), 5.0 / q**2, dtype=torch.float64),
        limit,
    )
    torch.testing.assert_close(seen[0].detach(), expected, atol=1e-9, rtol=0)
    assert (white - seen).min() > 0.01


def test_a_compiled_network_goes_on_behind_the_lens() -> None:
    lens, x = JPEGLens(6.0, kappa=5.0), torch.rand(2, 3, 8, 8) * 255
    network = torch.compile(lambda image: lens(image) * 2, backend="eager")
    assert torch.equal(network(x), lens(x) * 2)


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
def test_the_compiled_kernel_equals_the_eager_one() -> None:
    q, x = tables() + 2, torch.rand(3, 3, 16, 16) * 255
    results = []
    for lens in (JPEGLens(q, kappa=5.0), JPEGLens(q, kappa=5.0).compile()):
        loss = lens(x).square().mean()  # x needs no gradient: the forward pass keeps dQ/dq
        (by_q_alone,) = torch.autograd.grad(loss, lens.q)
        seen = lens(image := x.clone().requires_grad_())
        results.append(
            (seen, by_q_alone, *torch.autograd.grad(seen.square().sum(), (lens.q, image)))
        )
    eager, compiled = ([part.detach() for part in result] for result in results)
    torch.testing.assert_close(compiled[0], eager[0], atol=5e-4, rtol=0)
    torch.testing.assert_close(compiled[1], eager[1], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(compiled[2], eager[2], atol=1e-4 * x.numel(), rtol=1e-3)
    torch.testing.assert_close(compiled[3], eager[3], atol=0.1, rtol=1e-3)


def test_what_inference_mode_left_behind_serves_training() -> None:
    """In a fresh process, since buffers and matrices are kept for as long as it lives."""
    code = """
import torch
from djip_ext import JPEGLens
from djip_ext.ops.dct import block_dct
lens, x = JPEGLens(6.0, kappa=5.0), torch.rand(2, 3, 8, 8) * 255
with torch.inference_mode():
    seen = lens(x)
    block_dct(x)
assert torch.equal(lens(x.requires_grad_()), seen)
lens(x).sum().backward()
block_dct(x).sum().backward()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
