"""Between normalised input and pixels."""

import pytest
import torch

from djip_ext import DJIPError, JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.lens.straight_through import StraightThroughLens

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def test_to_network_is_torchvision_s_formula() -> None:
    pixels = torch.rand(2, 3, 4, 5, dtype=torch.float64) * 255
    seen = Normalisation(MEAN, STD).to_network(pixels)
    for channel in range(3):
        expected = (pixels[:, channel] / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(seen[:, channel], expected, atol=1e-12, rtol=0)


def test_to_pixels_undoes_to_network() -> None:
    pixels, normalisation = torch.rand(2, 3, 4, 5) * 255, Normalisation(MEAN, STD)
    assert (normalisation.to_pixels(normalisation.to_network(pixels)) - pixels).abs().max() < 1e-4
    pixels = pixels.double()
    assert (normalisation.to_pixels(normalisation.to_network(pixels)) - pixels).abs().max() < 1e-10


def test_half_precision_images_become_float32_and_float64_stays() -> None:
    normalisation = Normalisation(MEAN, STD)
    assert normalisation.to_pixels(torch.rand(1, 3, 2, 2).half()).dtype == torch.float32
    assert normalisation.to_pixels(torch.rand(1, 3, 2, 2).double()).dtype == torch.float64


@pytest.mark.parametrize(
    "mean, std, cause",
    (
        ((0.5, 0.5), STD, "three numbers"),
        (MEAN, (0.2, 0.0, 0.2), "positive"),
        ((125.0, 122.0, 112.0), (68.0, 65.0, 70.0), "divide them by 255"),
    ),
)
def test_refuses_what_is_no_normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], cause: str
) -> None:
    with pytest.raises(DJIPError, match=cause):
        Normalisation(mean, std)


@pytest.mark.parametrize("lens", (JPEGLens(8.0), StraightThroughLens(JPEGLens(8.0))))
def test_pixels_of_8_bits_are_no_normalised_images(lens: torch.nn.Module) -> None:
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    with pytest.raises(DJIPError, match="float images .* got torch.uint8"):
        Normalisation(MEAN, STD).through(lens, pixels)
