"""The soft quantizer against the full sum over all bins in float64, and its properties."""

import itertools

import pytest
import torch
from helpers import reference
from torch import Tensor

from djip_ext import hard_quantize, soft_quantize
from djip_ext.ops.curves import SWITCH

KAPPAS = (
    1e-3,
    0.03,
    0.3,
    0.7,
    1.0,
    1.5,
    SWITCH - 1e-3,
    SWITCH + 1e-3,
    2.0,
    4.0,
    20.0,
    125.0,
    1e3,
    1e4,
)
RANGES = (3, 127, 1023)


def indices(max_index: int) -> Tensor:
    """u = z / q: tiny, anywhere, half-integers, close to both ends of the range and beyond them."""
    ends = torch.cat([max_index + torch.rand(40) * 8 - 5, -max_index + torch.rand(40) * 8 - 3])
    special = torch.tensor(
        [
            0.0,
            1e-6,
            -1e-3,
            0.5,
            -0.5,
            1.5,
            -2.5,
            0.49999,
            max_index - 0.5,
            max_index,
            -max_index - 0.5,
        ]
    )
    far = torch.tensor([max_index + 60.0, -max_index - 900.0])
    return torch.cat(
        [special, torch.rand(60) * 6 - 3, (2 * torch.rand(60) - 1) * max_index, ends, far]
    ).double()


def run(
    z: Tensor, q: Tensor, alpha: Tensor, max_index: int, window: int | None = None
) -> tuple[Tensor, ...]:
    """Value and gradients, element by element, in the layout of the reference."""
    inputs = [t.expand_as(z).clone().requires_grad_() for t in (z, q, alpha)]
    value = soft_quantize(*inputs, max_index, window)
    return value.detach(), *torch.autograd.grad(value.sum(), inputs)


def errors(
    found: tuple[Tensor, ...], expected: tuple[Tensor, ...], z: Tensor, q: Tensor, alpha: Tensor
) -> list[float]:
    """Largest errors of Q / q, dQ/dz, dQ/dq relative to 1 + abs(u), and alpha dQ/dalpha / q.

    All are free of units.
    """
    units = (1 / q, torch.ones_like(q), 1 / (1 + (z / q).abs()), alpha / q)
    return [
        ((f.double() - e).abs() * unit.double()).max().item()
        for f, e, unit in zip(found, expected, units, strict=True)
    ]


@pytest.mark.parametrize("max_index", RANGES)
@pytest.mark.parametrize("kappa", KAPPAS)
def test_value_and_all_gradients_equal_the_full_sum(kappa: float, max_index: int) -> None:
    q = torch.tensor(0.37, dtype=torch.float64)
    alpha, z = kappa / q**2, indices(max_index) * q
    found, expected = run(z, q, alpha, max_index), reference.soft_quantize(z, q, alpha, max_index)
    value, by_z, by_q, by_alpha = errors(found, expected, z, q, alpha)
    assert value < 5e-9 and by_z < 5e-8 and by_q < 1e-7 and by_alpha < 5e-8


@pytest.mark.parametrize("max_index", RANGES)
@pytest.mark.parametrize("kappa", (1e-3, 0.3, 0.7, 1.5, 2.0, 5.0, 125.0))
def test_float32_loses_only_rounding(kappa: float, max_index: int) -> None:
    q, alpha, z = torch.tensor(1.0), torch.tensor(kappa), indices(max_index).float()
    found, expected = run(z, q, alpha, max_index), reference.soft_quantize(z, q, alpha, max_index)
    value, *slopes = errors(found, expected, z, q, alpha)
    assert value < 1e-6 + 2e-7 * max_index and max(slopes) < 2e-5


@pytest.mark.parametrize("max_index", (3, 127))
@pytest.mark.parametrize("kappa", (0.02, 0.3, 0.7, 1.0, 2.0, 20.0))
def test_window_sums_only_that_many_bins_with_detached_indices(
    kappa: float, max_index: int
) -> None:
    q = torch.tensor(0.37, dtype=torch.float64)
    alpha, z = kappa / q**2, indices(max_index) * q
    found, expected = (
        run(z, q, alpha, max_index, 5),
        reference.soft_quantize(z, q, alpha, max_index, 5),
    )
    assert max(errors(found, expected, z, q, alpha)) < 1e-11


def test_each_element_has_its_own_step_and_sharpness() -> None:
    kappa = 10 ** (torch.rand(400, dtype=torch.float64) * 6 - 3)
    q = 10 ** (torch.rand(400, dtype=torch.float64) * 3 - 1)
    z, alpha = (2 * torch.rand(400, dtype=torch.float64) - 1) * 9 * q, kappa / q**2
    found, expected = run(z, q, alpha, 6), reference.soft_quantize(z, q, alpha, 6)
    assert max(errors(found, expected, z, q, alpha)) < 1e-7


@pytest.mark.parametrize("window", (None, 5))
@pytest.mark.parametrize("kappa", (0.3, 1.5, 2.5, 20.0))
def test_gradcheck_inside_and_at_the_ends(kappa: float, window: int | None) -> None:
    u = torch.tensor(
        [0.0, 0.1, -0.4, 1.3, -2.2, 2.6, 2.9, -3.1, 3.3, 4.2, -7.7], dtype=torch.float64
    )  # no half-integers
    q = torch.linspace(0.4, 2.0, len(u), dtype=torch.float64)
    inputs = [t.detach().requires_grad_() for t in (u * q, q, kappa / q**2)]
    assert torch.autograd.gradcheck(
        lambda z, q, alpha: soft_quantize(z, q, alpha, 3, window), inputs, atol=1e-6
    )


def test_gradcheck_through_broadcast_shapes() -> None:
    z = (torch.rand(2, 3, 4, dtype=torch.float64) * 8 - 4).requires_grad_()
    q = torch.tensor([[0.8], [1.1], [2.3]], dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(1.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: soft_quantize(*inputs, 127), (z, q, alpha), atol=1e-6
    )


def test_tied_sharpness_passes_its_gradient_on_to_the_step() -> None:
    z = torch.linspace(-9.3, 9.3, 80, dtype=torch.float64)
    q = torch.full_like(z, 1.3).requires_grad_()
    by_q = torch.autograd.grad(soft_quantize(z, q, 3.0 / q**2, 127).sum(), q)[0]
    value, by_z, *_ = reference.soft_quantize(z, q.detach(), 3.0 / q.detach() ** 2, 127)
    torch.testing.assert_close(by_q, (value - z * by_z) / 1.3, atol=1e-9, rtol=0)


def test_gradient_of_one_input_does_not_depend_on_which_others_are_asked_for() -> None:
    z, q, alpha = torch.rand(50) * 20 - 10, torch.tensor(1.2), torch.tensor(1.0)
    for chosen in range(3):
        inputs = [z.clone(), q.expand_as(z).clone(), alpha.expand_as(z).clone()]
        inputs[chosen].requires_grad_()
        alone = torch.autograd.grad(soft_quantize(*inputs, 5).sum(), inputs[chosen])[0]
        assert torch.equal(alone, run(z, q, alpha, 5)[1 + chosen])


def test_value_is_the_same_with_and_without_gradients() -> None:
    z, q = torch.randn(500) * 30, torch.rand(500) * 3 + 0.1
    assert torch.equal(
        soft_quantize(z, q, 2.0, 20), soft_quantize(z, q.requires_grad_(), 2.0, 20).detach()
    )


@pytest.mark.parametrize("window", (None, 5))
@pytest.mark.parametrize("kappa", (0.5, 1.7, 6.0))
def test_odd_in_z(kappa: float, window: int | None) -> None:
    z = indices(127)
    torch.testing.assert_close(
        soft_quantize(-z, 1.0, kappa, 127, window),
        -soft_quantize(z, 1.0, kappa, 127, window),
        atol=1e-12,
        rtol=0,
    )


@pytest.mark.parametrize("kappa", (0.5, 1.7, 6.0))
def test_shifting_z_by_a_step_shifts_the_output_by_a_step(kappa: float) -> None:
    z = torch.linspace(-60, 60, 999, dtype=torch.float64)
    q = 1.25
    shifted = soft_quantize(z + q, q, kappa / q**2, 127)
    torch.testing.assert_close(
        shifted, soft_quantize(z, q, kappa / q**2, 127) + q, atol=1e-8, rtol=0
    )


@pytest.mark.parametrize("kappa", (0.3, 1.0, 1.759, 3.0, 10.0))
def test_full_sum_is_a_staircase_of_sigmoids(kappa: float) -> None:
    """The Jacobi triple product gives the sum over all integers a second, unrelated form."""
    u = torch.linspace(-3, 3, 301, dtype=torch.float64)
    risers = torch.arange(-200, 200, dtype=torch.float64) + 0.5
    steps = torch.sigmoid(2 * kappa * (u[:, None] - risers)) - (risers < 0).double()
    torch.testing.assert_close(soft_quantize(u, 1.0, kappa, 1023), steps.sum(1), atol=2e-9, rtol=0)


@pytest.mark.parametrize("kappa", (1e-3, 0.7, 1.75, 1.77, 8.0))
def test_never_decreases_in_z(kappa: float) -> None:
    z = torch.linspace(-7, 7, 2801, dtype=torch.float64)
    assert (soft_quantize(z, 1.0, kappa, 4).diff() > -1e-8).all()


def test_approaches_rounding_monotonically_in_sharpness() -> None:
    z = torch.linspace(-5.5, 5.5, 1101, dtype=torch.float64)[1:-1]
    distance = [
        (soft_quantize(z, 1.0, 10**exponent, 127) - hard_quantize(z, 1.0, 127)).abs()
        for exponent in torch.arange(-1, 4, 0.2)
    ]
    inside = (z - z.round()).abs() < 0.499
    assert all(
        (later <= earlier + 3e-9)[inside].all() for earlier, later in itertools.pairwise(distance)
    )
    assert distance[-1][(z - z.round()).abs() < 0.49].max() < 1e-6


@pytest.mark.parametrize("kappa", (0.4, 1.0, 1.77, 5.0, 1e5))
def test_half_way_between_two_steps_stays_half_way(kappa: float) -> None:
    z = torch.tensor([-3.5, -0.5, 0.5, 7.5], dtype=torch.float64)
    torch.testing.assert_close(soft_quantize(z, 1.0, kappa, 127), z, atol=2e-9, rtol=0)


@pytest.mark.parametrize("window", (None, 5))
@pytest.mark.parametrize("max_index", RANGES)
def test_output_stays_within_the_range(max_index: int, window: int | None) -> None:
    z = torch.cat([indices(max_index), torch.tensor([1e6, -1e6]).double()]).float() * 0.3
    for kappa in KAPPAS:
        out = soft_quantize(z, 0.3, kappa / 0.09, max_index, window)
        assert out.abs().max() <= max_index * 0.3 * (1 + 1e-6)


@pytest.mark.parametrize("window", (None, 5))
@pytest.mark.parametrize("q", (1e-5, 1.0, 255.0))
@pytest.mark.parametrize("alpha", (1e-36, 1e-6, 5.0, 1e6, 1e38))
def test_extreme_steps_and_sharpness_give_finite_numbers(
    q: float, alpha: float, window: int | None
) -> None:
    z = torch.tensor([0.0, 1e-5, -0.5, 127.5, -1024.0, 1e5])
    inputs = [
        z.requires_grad_(),
        torch.tensor(q, requires_grad=True),
        torch.tensor(alpha, requires_grad=True),
    ]
    out = soft_quantize(*inputs, 127, window)
    assert all(t.isfinite().all() for t in (out, *torch.autograd.grad(out.sum(), inputs)))


def test_vanishing_step_zeroes_a_coefficient() -> None:
    assert soft_quantize(torch.tensor([360.0, -20.0]), 1e-5, 5.0, 127).abs().max() <= 127e-5


def test_autocast_changes_nothing() -> None:
    z, q = torch.randn(200) * 300, torch.tensor(2.5, requires_grad=True)
    plain = soft_quantize(z, q, 0.5, 1023)
    with torch.autocast("cpu", torch.bfloat16):
        cast = soft_quantize(z, q, 0.5, 1023)
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_low_precision_coefficients_are_computed_in_float32() -> None:
    z = (torch.randn(200) * 300).bfloat16()
    assert torch.equal(soft_quantize(z, 2.5, 0.5, 1023), soft_quantize(z.float(), 2.5, 0.5, 1023))


@pytest.mark.parametrize("kappa", (1e-3, 0.1, 0.4, 0.7))
def test_identity_up_to_kappa_0_7(kappa: float) -> None:
    q = 3.0
    z = torch.linspace(-50, 50, 4001, dtype=torch.float64) * q
    assert (soft_quantize(z, q, kappa / q**2, 1023) - z).abs().max() < 1e-5 * q


@pytest.mark.parametrize(
    "kappa, published",
    ((0.7, 7e-6), (1.0, 3e-4), (2.0, 0.023), (5.0, 0.18), (20.0, 0.38), (125.0, 0.47)),
)
def test_largest_departure_from_the_identity_is_the_derived_one(
    kappa: float, published: float
) -> None:
    z = torch.linspace(-1.5, 1.5, 6001, dtype=torch.float64)
    assert (soft_quantize(z, 1.0, kappa, 127) - z).abs().max().item() == pytest.approx(
        published, rel=0.09
    )


@pytest.mark.parametrize(
    "kappa, published",
    ((0.1, 0.33), (0.3, 0.13), (0.5, 0.045), (0.7, 0.015), (1.0, 0.0027), (2.0, 8e-6)),
)
def test_five_bins_are_another_function_by_the_derived_amount(
    kappa: float, published: float
) -> None:
    z = torch.linspace(-1.5, 1.5, 6001, dtype=torch.float64)
    difference = soft_quantize(z, 1.0, kappa, 127, window=5) - soft_quantize(z, 1.0, kappa, 127)
    assert difference.abs().max().item() == pytest.approx(published, rel=0.09)


@pytest.mark.parametrize(
    "kappa, highest, lowest",
    ((1, 1.002, 0.998), (2, 1.14, 0.86), (3, 1.53, 0.54), (5, 2.5, 0.13), (8, 4.0, 0.011)),
)
def test_slope_in_z_spans_the_derived_range(kappa: float, highest: float, lowest: float) -> None:
    z = torch.linspace(-1.5, 1.5, 6001, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(soft_quantize(z, 1.0, float(kappa), 127).sum(), z)[0]
    assert slope.max().item() == pytest.approx(
        highest, rel=0.01, abs=0
    ) and slope.min().item() == pytest.approx(lowest, rel=0.03)


def test_hard_quantizer_gives_its_steps_no_gradient() -> None:
    q = torch.full((4,), 2.0, requires_grad=True)
    assert not hard_quantize(torch.tensor([0.4, 2.6, 7.2, -3.1]), q, 10).requires_grad


def test_hard_quantizer_rounds_to_multiples_and_saturates() -> None:
    z = torch.tensor([0.9, 1.1, -3.4, 100.0, -100.0])
    assert hard_quantize(z, 2.0, 10).tolist() == [0.0, 2.0, -4.0, 20.0, -20.0]


@pytest.mark.parametrize(
    "settings", ({"max_index": 0}, {"max_index": 5, "window": 4}, {"max_index": 5, "window": -1})
)
def test_refuses_an_empty_range_and_an_even_window(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        soft_quantize(torch.zeros(1), 1.0, 1.0, **settings)


def test_reference_slopes_are_those_of_the_reference_value() -> None:
    """The oracle itself, held against central differences."""
    z = torch.tensor([0.3, -1.2, 2.4, 3.9], dtype=torch.float64)
    q, alpha, h = (
        torch.tensor(0.9, dtype=torch.float64),
        torch.tensor(1.4, dtype=torch.float64),
        1e-6,
    )
    _, *slopes = reference.soft_quantize(z, q, alpha, 3)
    for k, slope in enumerate(slopes):
        up, down = [[z, q, alpha] for _ in range(2)]
        up[k], down[k] = up[k] + h, down[k] - h
        numeric = (reference.soft_quantize(*up, 3)[0] - reference.soft_quantize(*down, 3)[0]) / (
            2 * h
        )
        assert (numeric - slope).abs().max() < 1e-8
