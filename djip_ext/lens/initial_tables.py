"""Initial quantization tables (2, 8, 8): JPEG's own, random ones, and those of images or a network.

Equal steps need no function: ``JPEGLens(q=number)``.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.inputs.batches import Batches
from djip_ext.lens.jpeg_lens import Q_MAX, Q_MIN
from djip_ext.lens.normalisation import Normalisation
from djip_ext.ops.dct import BLOCK, coefficients_to_rgb, pad_to_blocks, rgb_to_coefficients
from djip_ext.utils.networks import device_of, logits_of
from djip_ext.utils.precision import in_dtype_of

# ITU-T T.81, annex K.1 and K.2
_LUMA = """
16 11 10 16 24 40 51 61
12 12 14 19 26 58 60 55
14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77
24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103 99
"""
_CHROMA = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
"""


def standard_jpeg(quality: int) -> Tensor:
    """The tables of baseline JPEG at ``quality`` 1..100, scaled and rounded as libjpeg does.

    Raises:
        DJIPError: another quality.
    """
    if not 1 <= quality <= 100:
        raise DJIPError(f"the JPEG quality is {quality}; it must lie in 1..100")
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    base = torch.tensor([[int(step) for step in table.split()] for table in (_LUMA, _CHROMA)])
    return ((base * scale + 50) // 100).clamp(1, 255).float().view(2, BLOCK, BLOCK)


def random_tables(median: float, seed: int) -> Tensor:
    """Independent log-normal steps with sigma = 1: a control that knows nothing of the teacher."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(2, BLOCK, BLOCK, generator=generator).exp()
    return (median * factors).clamp(Q_MIN, Q_MAX)


@torch.no_grad()
def mean_magnitude(loader: Iterable[Any], mean: Any, std: Any, divisor: float = 16.0) -> Tensor:
    """q_k = E|z_k| / 16, JPEG-DL's start on ImageNet, from the normalised images of ``loader``."""
    normalisation = Normalisation(mean, std)
    total = torch.zeros(3, BLOCK, BLOCK, dtype=torch.float64)
    count = 0
    for image, *_ in Batches(loader, mean=mean, std=std, labels=False):
        z = rgb_to_coefficients(pad_to_blocks(normalisation.to_pixels(image)))
        total += _sum_blocks(z.abs())
        count += z.numel() // (3 * BLOCK * BLOCK)
    magnitude = total / max(1, count)
    return torch.stack([magnitude[0], magnitude[1:].mean(0)]).float() / divisor


def sensitivity(
    network: nn.Module,
    loader: Iterable[Any],
    mean: Any,
    std: Any,
    q_max: float = 10.0,
    temperature: float = 1.0,
) -> Tensor:
    """Steps inverse to how strongly the network's loss depends on a coefficient.

    JPEG-DL's start on CIFAR: s_k = E[(dCE / dz_k)^2];  q_Y = c / s_Y,  q_C = 2 c / (s_Cb + s_Cr),
    c such that max q_Y = ``q_max``.

    Raises:
        DJIPError: the loss does not depend on the images.
    """
    normalisation = Normalisation(mean, std)
    total = torch.zeros(3, BLOCK, BLOCK, dtype=torch.float64)
    device = device_of(network)
    for image, label, _ in Batches(loader, mean=mean, std=std):
        image = image.to(device=device)
        label = label.to(device=device)
        height, width = image.shape[2:]
        with torch.enable_grad():
            z = rgb_to_coefficients(pad_to_blocks(normalisation.to_pixels(image))).requires_grad_()
            pixels = coefficients_to_rgb(z)[:, :, :height, :width]
            x = in_dtype_of(network, normalisation.to_network(pixels))
            logits = logits_of(network(x)).float()
            loss = F.cross_entropy(logits / temperature, label, reduction="sum")
            (slope,) = torch.autograd.grad(loss, z)
        total += _sum_blocks(slope.square())
    if not bool((total > 0).all()):
        raise DJIPError(
            "the network's loss does not depend on its input; is it the trained network, in eval "
            "mode?"
        )
    tables = torch.stack([1 / total[0], 2 / (total[1] + total[2])])
    return (tables * (q_max / tables[0].max())).float()


def _sum_blocks(z: Tensor) -> Tensor:
    """Sum z (B, 3, H, W) over images and blocks -> float64 (3, 8, 8) on the CPU."""
    batch, channels, height, width = z.shape
    blocks = z.view(batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return blocks.double().sum((0, 2, 4)).cpu()
