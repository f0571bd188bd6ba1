"""Colour, blocks and DCT against their definitions."""

import pytest
import torch
from helpers import reference

from djip_ext.ops.dct import (
    RGB_TO_YCBCR,
    YCBCR_TO_RGB,
    block_dct,
    block_idct,
    coefficients_to_rgb,
    dct_matrix,
    mix_channels,
    pad_to_blocks,
    rgb_to_coefficients,
)


def test_dct_matrix_is_orthonormal() -> None:
    torch.testing.assert_close(
        dct_matrix() @ dct_matrix().T, torch.eye(8, dtype=torch.float64), atol=1e-14, rtol=0
    )


def test_dct_equals_its_double_sum() -> None:
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    z = block_dct(x)
    for image, channel, top, left in ((0, 0, 0, 0), (0, 2, 8, 16), (1, 1, 0, 8)):
        block = (image, channel, slice(top, top + 8), slice(left, left + 8))
        torch.testing.assert_close(z[block], reference.dct(x[block]), atol=1e-12, rtol=0)


def test_vertical_frequency_runs_down_the_rows() -> None:
    horizontal_wave = torch.cos(torch.pi * 3 * (2 * torch.arange(16.0) + 1) / 16).expand(
        1, 1, 16, 16
    )
    z = block_dct(horizontal_wave)
    assert z[0, 0, 0, 3].abs() > 1 and z[0, 0, 3, 0].abs() < 1e-4


def test_dct_keeps_the_energy() -> None:
    x = torch.randn(1, 3, 16, 8, dtype=torch.float64)
    assert block_dct(x).square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-12)


def test_colour_matrix_is_bt601_full_range() -> None:
    rgb = torch.rand(1, 3, 5, 7, dtype=torch.float64) * 255
    torch.testing.assert_close(
        mix_channels(rgb, RGB_TO_YCBCR)[0], reference.ycbcr(rgb[0]), atol=1e-12, rtol=0
    )


def test_grey_has_no_colour_and_black_and_white_span_the_range() -> None:
    ycbcr = RGB_TO_YCBCR @ torch.tensor(
        [[0.0, 255.0], [0.0, 255.0], [0.0, 255.0]], dtype=torch.float64
    )
    torch.testing.assert_close(
        ycbcr,
        torch.tensor([[0.0, 255.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64),
        atol=1e-10,
        rtol=0,
    )


def test_colour_transform_is_undone_by_its_inverse() -> None:
    torch.testing.assert_close(
        YCBCR_TO_RGB @ RGB_TO_YCBCR, torch.eye(3, dtype=torch.float64), atol=1e-14, rtol=0
    )


@pytest.mark.parametrize("height, width", ((8, 8), (16, 40), (32, 32), (224, 224)))
def test_float32_round_trip_is_exact_to_a_ten_thousandth_of_a_grey_level(
    height: int, width: int
) -> None:
    x = torch.rand(2, 3, height, width) * 255
    assert (coefficients_to_rgb(rgb_to_coefficients(x)) - x).abs().max() < 3e-4
    assert (block_idct(block_dct(x - 128)) - (x - 128)).abs().max() < 1e-4


def test_constant_image_has_only_a_dc_coefficient_shifted_by_128() -> None:
    z = rgb_to_coefficients(torch.full((1, 3, 8, 8), 200.0, dtype=torch.float64))
    assert z[0, 0, 0, 0].item() == pytest.approx(8 * (200 - 128))
    assert z.abs().sum().item() == pytest.approx(8 * (200 - 128))


def test_padding_repeats_the_last_row_and_column() -> None:
    x = torch.rand(2, 3, 33, 35)
    padded = pad_to_blocks(x)
    assert padded.shape == (2, 3, 40, 40)
    assert torch.equal(padded[:, :, :33, :35], x)
    assert torch.equal(padded[:, :, 33:, :35], x[:, :, 32:].expand(-1, -1, 7, -1))
    assert torch.equal(padded[:, :, :, 35:], padded[:, :, :, 34:35].expand(-1, -1, -1, 5))


def test_whole_blocks_are_not_padded() -> None:
    x = torch.rand(1, 3, 16, 24)
    assert pad_to_blocks(x) is x
