"""Initial tables against Pillow's own and against slow references."""

import io

import pytest
import torch
import torch.nn.functional as F
from helpers import reference
from PIL import Image
from torch import Tensor, nn

from djip_ext import DJIPError, JPEGLens
from djip_ext.lens.initial_tables import (
    mean_magnitude,
    random_tables,
    sensitivity,
    standard_jpeg,
)
from djip_ext.lens.io import lens_id
from djip_ext.ops.dct import coefficients_to_rgb, rgb_to_coefficients

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def normalised(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=pixels.dtype)[:, None, None] for v in (MEAN, STD))
    return (pixels / 255 - mean) / std


@pytest.mark.parametrize("quality", (1, 10, 49, 50, 90, 100))
def test_standard_tables_are_those_in_pillow_s_files(quality: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    tables = Image.open(file).quantization
    assert [table.flatten().int().tolist() for table in standard_jpeg(quality)] == [
        list(tables[0]),
        list(tables[1]),
    ]


@pytest.mark.parametrize("quality", (0, 101))
def test_refuses_a_quality_outside_1_to_100(quality: int) -> None:
    with pytest.raises(DJIPError, match="quality"):
        standard_jpeg(quality)


def test_random_tables_are_log_normal_about_their_median() -> None:
    logs = torch.stack([(random_tables(8.0, seed) / 8.0).log() for seed in range(50)])
    assert logs.mean() == pytest.approx(0, abs=0.05) and logs.std() == pytest.approx(1, abs=0.05)
    assert lens_id(JPEGLens(random_tables(8.0, 0), kappa=5.0)) == "96ec63cb"  # runs are filed so


def test_mean_magnitude_equals_the_average_over_all_blocks() -> None:
    pixels = torch.rand(3, 3, 16, 8) * 255
    loader = [
        (normalised(pixels[:2]), None),
        (normalised(pixels[2:]), None, "more"),
    ]  # uneven batches
    blocks = [
        torch.stack(
            [reference.dct(plane[top : top + 8]) for plane in reference.ycbcr(image - 128)]
        ).abs()
        for image in pixels
        for top in (0, 8)
    ]
    average = torch.stack(blocks).mean(0)
    expected = torch.stack([average[0], (average[1] + average[2]) / 2]) / 16
    torch.testing.assert_close(
        mean_magnitude(loader, MEAN, STD), expected.float(), atol=1e-4, rtol=1e-4
    )


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.last(torch.tanh(self.first(x.flatten(1)))), {}


def slow_sensitivity(
    network: nn.Module, pixels: Tensor, labels: Tensor, temperature: float
) -> Tensor:
    """sum (dCE / dz_k)^2 by central differences: (3, 8, 8)."""
    total, h = torch.zeros(3, 8, 8, dtype=torch.float64), 1e-3
    for image, label in zip(pixels, labels, strict=True):
        z = rgb_to_coefficients(image[None]).expand(192, -1, -1, -1)
        steps = h * torch.eye(192, dtype=torch.float64).view(192, 3, 8, 8)
        ce = [
            F.cross_entropy(
                network(normalised(coefficients_to_rgb(moved)))[0] / temperature,
                label.expand(192),
                reduction="none",
            )
            for moved in (z + steps, z - steps)
        ]
        total += ((ce[0] - ce[1]) / (2 * h)).square().view(3, 8, 8)
    return total.detach()


@pytest.mark.parametrize("temperature, q_max", ((1.0, 10.0), (3.0, 2.0)))
def test_sensitivity_equals_central_differences(temperature: float, q_max: float) -> None:
    network, pixels, labels = (
        Tiny().double(),
        torch.rand(4, 3, 8, 8, dtype=torch.float64) * 255,
        torch.tensor([0, 1, 2, 1]),
    )
    loader = [(normalised(pixels[:3]), labels[:3]), (normalised(pixels[3:]), labels[3:])]
    s = slow_sensitivity(network, pixels, labels, temperature)
    expected = torch.stack([1 / s[0], 2 / (s[1] + s[2])])
    expected = expected * q_max / expected[0].max()
    torch.testing.assert_close(
        sensitivity(network, loader, MEAN, STD, q_max, temperature),
        expected.float(),
        atol=0,
        rtol=1e-3,
    )


def test_largest_luma_step_of_sensitivity_is_q_max() -> None:
    network = Tiny()
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None] * torch.tensor(STD)[:, None]
    network.first.weight.data = (
        luma * torch.randn(5, 1, 64) + 0.01 * torch.randn(5, 3, 64)
    ).flatten(1)  # all but blind to colour
    loader = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))]
    tables = sensitivity(network, loader, MEAN, STD, q_max=7.0)
    assert tables[0].max().item() == pytest.approx(7.0) and tables[1].max() > 7.0


def test_sensitivity_leaves_the_network_s_gradients_alone() -> None:
    network = Tiny()
    sensitivity(network, [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))], MEAN, STD)
    assert all(p.grad is None for p in network.parameters())


def test_sensitivity_of_a_network_blind_to_its_input_is_an_error() -> None:
    network = Tiny()
    nn.init.zeros_(network.first.weight)
    with pytest.raises(DJIPError, match="does not depend"):
        sensitivity(network, [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))], MEAN, STD)
