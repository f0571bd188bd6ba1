"""Stand-ins that make every example run in seconds, offline: put your teacher, student, data and
lens in their place."""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import djip_ext

CLASSES = 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def network(width: int) -> nn.Module:
    """A classifier of images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, CLASSES),
    )


def dataset(images: int = 32) -> TensorDataset:
    """Normalised images (N, 3, 32, 32) and labels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, 32, 32, generator=generator)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return TensorDataset((pixels - mean) / std, torch.arange(images) % CLASSES)


def lens() -> djip_ext.JPEGLens:
    """Yours is ``djip_ext.load_lens(PATH)``, of `djip fit` or ``fit_lens``."""
    return djip_ext.JPEGLens(q=8.0, kappa=5.0)
