"""The straight-through codec against the hard lens and against float64 written out."""

import pytest
import torch

from djip_ext import fit_lens
from djip_ext.errors import DJIPError
from djip_ext.fit.settings import FitSettings
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.lens.straight_through import StraightThroughLens, straight_through_quantize

GAIN, OFFSET = (51.0, 76.5, 63.75), (127.5, 102.0, 76.5)  # pixels = gain x + offset


def reference(z, q, max_index):
    """Value, dQ/dz and dQ/dq of one coefficient, as the module's head writes them."""
    u = z / q
    n = min(max(round(u), -max_index), max_index)
    inside = abs(u) <= max_index
    return n * q, float(inside), n - u if inside else float(n)


@pytest.mark.parametrize("max_index", [1, 4, 1023])
def test_value_and_gradients_are_those_of_the_formula(max_index):
    generator = torch.Generator().manual_seed(0)
    z = (20 * torch.randn(200, generator=generator, dtype=torch.float64)).requires_grad_()
    q = (0.5 + 6 * torch.rand(200, generator=generator, dtype=torch.float64)).requires_grad_()
    out = straight_through_quantize(z, q, max_index)
    out.sum().backward()
    rows = [reference(a, b, max_index) for a, b in zip(z.tolist(), q.tolist(), strict=True)]
    wanted = torch.tensor(rows, dtype=torch.float64)
    assert torch.allclose(out.detach(), wanted[:, 0], atol=1e-12)
    assert torch.allclose(z.grad, wanted[:, 1])
    assert torch.allclose(q.grad, wanted[:, 2], atol=1e-12)


def test_a_shared_step_gathers_the_gradients_of_its_coefficients():
    z = torch.tensor([[0.4, 2.6], [7.2, -3.1]], dtype=torch.float64)
    q = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    straight_through_quantize(z, q, 10).sum().backward()
    by_hand = (torch.round(z / q) - z / q).sum(0)
    assert torch.allclose(q.grad, by_hand.detach())


@pytest.mark.parametrize("size", [(16, 24), (13, 9)])
def test_it_shows_what_the_hard_lens_shows_and_lets_the_gradient_through(size):
    tables = 3 + 40 * torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels = 255 * torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))
    gain, offset = torch.tensor(GAIN).view(3, 1, 1), torch.tensor(OFFSET).view(3, 1, 1)
    image = (pixels - offset) / gain
    soft = JPEGLens(tables)
    seen = StraightThroughLens(soft)(image, gain=GAIN, offset=OFFSET)
    hard = JPEGLens(tables, hard=True)(pixels)
    torch.testing.assert_close(gain * seen + offset, hard, atol=2e-3, rtol=0)
    seen.square().sum().backward()
    assert soft.q.grad.abs().sum() > 0


def test_it_computes_in_float32_under_autocast():
    lens, image = StraightThroughLens(JPEGLens(3.0)), torch.randn(1, 3, 16, 16)
    plain = lens(image, gain=GAIN, offset=OFFSET)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lens(image, gain=GAIN, offset=OFFSET), plain)


def test_the_gradient_of_the_image_is_that_of_the_identity():
    lens = StraightThroughLens(JPEGLens(30.0))
    image = torch.rand(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    (lens(image, gain=GAIN, offset=OFFSET) * weight).sum().backward()
    assert torch.allclose(image.grad, weight, atol=1e-9)


def test_a_fit_takes_its_steps_straight_through(tiny_fit):
    teacher, loader, mean, std = tiny_fit
    how = {"rounds": 2, "mean": mean, "std": std, "progress": False}
    soft = fit_lens(teacher, loader, 4, **how)
    straight = fit_lens(teacher, loader, 4, gradient="straight-through", **how)
    again = fit_lens(teacher, loader, 4, gradient="straight-through", **how)
    assert not torch.equal(soft.lens.q, straight.lens.q)
    assert torch.equal(again.lens.q, straight.lens.q)
    assert straight.lens.settings() == soft.lens.settings()  # what is kept is an ordinary lens
    assert straight.lens.metadata["fit"]["gradient"] == "straight-through"


@pytest.fixture
def tiny_fit():
    torch.manual_seed(0)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    images = torch.randn(32, 3, 16, 16)
    labels = torch.arange(32) % 4
    loader = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    return teacher, loader, (0.5,) * 3, (0.25,) * 3


def test_it_is_named_when_it_is_no_gradient():
    with pytest.raises(DJIPError, match="gradient is 'hard'; choose from soft, straight-through"):
        FitSettings(gradient="hard")


def test_normalised_images_go_through_in_their_dtype():
    normalisation = Normalisation((0.5,) * 3, (0.25,) * 3)
    x = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    seen = normalisation.through(StraightThroughLens(JPEGLens(2.0)), x)
    assert seen.dtype == torch.bfloat16
