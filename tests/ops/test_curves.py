"""The curves of the table entries against the moments that they stand for."""

import math

import pytest
import torch
from torch import Tensor

from djip_ext.ops.curves import SWITCH, Curves, moments

KAPPAS = (
    1e-6,
    0.01,
    0.25,
    0.3,
    0.7,
    1.0,
    2.0,
    3.3,
    5.0,
    7.0,
    SWITCH - 1e-6,
    SWITCH,
    9.5,
    15.0,
    80.0,
)
R = torch.linspace(-0.5, 0.5, 1001, dtype=torch.float64)


def moments_of(kappa: float, window: int | None = None, r: Tensor = R) -> tuple[Tensor, ...]:
    reach = 60 if window is None else window // 2
    if window is None and kappa < 0.05:
        return (
            r,
            torch.ones_like(r),
            torch.zeros_like(r),
        )  # Poisson: (2 pi / kappa) exp(-pi^2 / kappa) < 1e-80
    return moments(r, torch.tensor(kappa, dtype=torch.float64), reach)


@pytest.mark.parametrize("window", (None, 3, 5, 9))
@pytest.mark.parametrize("kappa", KAPPAS)
def test_float64_curves_are_the_moments(kappa: float, window: int | None) -> None:
    lacking = (
        4 * kappa * math.exp(-2 * kappa) if window == 3 and kappa >= SWITCH else 0
    )  # the risers sum more bins than these three
    found = Curves.of(torch.tensor(kappa, dtype=torch.float64), torch.float64, window).at(
        R, True, True
    )
    for curve, exact in zip(found, moments_of(kappa, window), strict=True):
        assert (curve - exact).abs().max() < 1e-12 * max(1, kappa) + lacking


@pytest.mark.parametrize("window", (None, 3, 5))
@pytest.mark.parametrize("kappa", KAPPAS)
def test_float32_curves_are_the_moments_to_float32(kappa: float, window: int | None) -> None:
    r = R.float()
    found = Curves.of(torch.tensor(kappa, dtype=torch.float64), torch.float32, window).at(
        r, True, True
    )
    for curve, value in zip(found, moments_of(kappa, window, r.double()), strict=True):
        assert (curve - value).abs().max() < 4e-7 * max(1, kappa)


def test_one_bin_is_a_staircase_without_slopes() -> None:
    h, s, t = Curves.of(torch.tensor([0.3, 50.0], dtype=torch.float64), torch.float32, 1).at(
        R.float()[:, None].expand(-1, 2), True, True
    )
    assert h.abs().max() == s.abs().max() == t.abs().max() == 0


def test_entries_on_both_sides_of_the_switch_keep_their_own_curve() -> None:
    kappa = torch.tensor(KAPPAS, dtype=torch.float64)
    r = R[:, None].expand(-1, len(KAPPAS)).contiguous()
    together = Curves.of(kappa, torch.float64).at(r, True, True)
    for k, value in enumerate(KAPPAS):
        for curve, exact in zip(together, moments_of(value), strict=True):
            assert (curve[:, k] - exact).abs().max() < 1e-12 * max(1, value)
