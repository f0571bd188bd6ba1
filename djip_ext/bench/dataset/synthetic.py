"""A small labelled image set with real frequency structure, generated from a seed.

An image is a natural-looking 1/f background with one textured silhouette on it.  A class is a
silhouette (disc, square, triangle, ring) times a texture (a grating of some frequency and
orientation) with a typical hue.  Position, size, phase, hue and contrast vary within a class,
orientation and frequency so much that neighbouring textures overlap: a good teacher is unsure in
the right places, and each texture lives in its own few DCT coefficients.
"""

import math

import torch
from torch import Tensor

from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.lens.normalisation import NORMALISATIONS

SILHOUETTES = ("disc", "square", "triangle", "ring")

# cycles per pixel, degrees
TEXTURES = ((0.12, 0.0), (0.12, 90.0), (0.2, 45.0), (0.3, 0.0), (0.3, 90.0))
CLASSES = tuple(
    f"{shape} {frequency:g} {angle:g}°" for frequency, angle in TEXTURES for shape in SILHOUETTES
)
NUM_CLASSES = len(CLASSES)


def make_synthetic(per_class: int, seed: int, size: int = 32) -> ImageSet:
    """Generate ``per_class`` images of each of 20 classes; equal arguments give equal images."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(NUM_CLASSES).repeat_interleave(per_class)
    count = len(labels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, generator=generator) * (high - low) + low

    def normal(spread: float) -> Tensor:
        return torch.randn(count, 1, 1, generator=generator) * spread

    silhouette = (labels % len(SILHOUETTES))[:, None, None]
    texture = labels // len(SILHOUETTES)
    typical = torch.tensor(TEXTURES)[texture]
    frequency = typical[:, 0, None, None] * torch.exp(normal(0.15))
    angle = torch.deg2rad(typical[:, 1, None, None] + normal(14.0))

    axis = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    y = y - normal(3.0)
    x = x - normal(3.0)
    radius = uniform(7.0, 12.0)
    distance = torch.hypot(x, y)
    edges = torch.stack(
        [
            radius - distance,  # disc
            0.88 * radius - torch.maximum(x.abs(), y.abs()),  # square
            torch.minimum(0.6 * radius - y, 0.5 * (y + radius) - 0.87 * x.abs()),  # triangle
            0.33 * radius - (distance - 0.75 * radius).abs(),  # ring
        ]
    )
    mask = torch.sigmoid(2 * edges.gather(0, silhouette.expand(count, size, size)[None])[0])

    wave = torch.sin(
        2 * math.pi * frequency * (x * angle.cos() + y * angle.sin()) + uniform(0, 2 * math.pi)
    )
    hue = (texture / len(TEXTURES))[:, None, None] + normal(0.12)
    colour = 0.5 + 0.18 * torch.cos(
        2 * math.pi * (hue[..., None] + torch.tensor([0, 1 / 3, 2 / 3]))
    )
    figure = colour + (uniform(0.08, 0.3) * wave)[..., None]

    background = (
        _pink_noise(count, size, generator) * uniform(0.1, 0.22)[..., None]
        + uniform(0.3, 0.7)[..., None]
    )
    image = background + mask[..., None] * (figure - background)
    image = image + 0.04 * torch.randn(image.shape, generator=generator)
    return ImageSet(
        (image.clamp(0, 1) * 255).round().to(torch.uint8),
        labels,
        NUM_CLASSES,
        *NORMALISATIONS["synthetic"],
        CLASSES,
    )


def _pink_noise(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise (count, size, size, 3) of unit variance whose amplitude falls as 1/f.

    The channels share most of it.
    """
    white = torch.randn(count, 4, size, size, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])
    noise: Tensor = torch.fft.irfft2(
        torch.fft.rfft2(white) / frequency.clamp_min(1 / size), s=(size, size)
    )
    noise = noise / noise.std(dim=(-2, -1), keepdim=True)
    return (0.9 * noise[:, :1] + 0.44 * noise[:, 1:]).permute(0, 2, 3, 1)
