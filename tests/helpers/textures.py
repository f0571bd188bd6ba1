"""A small teacher and the textured images that it is sure of.

A lens can take away what its decision rests on.
"""

import torch
from torch import Tensor, nn

from djip_ext import fit_lens
from djip_ext.fit.loop import default_start
from djip_ext.lens.normalisation import Normalisation

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
CLASSES = 3

# In batches of 8: the last one is a single image, which leaves the second process without any.
IMAGES = 25
EXACT = {
    "rounds": 3,
    "lr": 0.1,
    "cmi_gain": (0.002, 0.01),
    "max_accuracy_drop": 100.0,
    "progress": False,
}
QUICK = {
    "rounds": 3,
    "lr": 0.3,
    "cmi_gain": (0.002, 0.01),
    "max_accuracy_drop": 100.0,
    "progress": False,
}


class Teacher(nn.Module):
    """A confident little network whose decision rests on high frequencies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)
        nn.init.normal_(self.fc.weight, std=5.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def data(images: int = 24, batch: int = 8, indexed: bool = False) -> list[tuple[Tensor, ...]]:
    """Random textured images, labelled by the teacher itself, as a list of batches."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.rand(images, 1, 1, 1, generator=generator) * 100
    colour = torch.rand(images, 3, 1, 1, generator=generator) * 155 + 50
    pixels = (colour + contrast * torch.randn(images, 3, 16, 16, generator=generator)).clamp(0, 255)
    x = Normalisation(MEAN, STD).to_network(pixels)
    labels = Teacher().eval()(x).argmax(1).detach()
    index = torch.arange(images)
    batches = list(zip(x.split(batch), labels.split(batch), index.split(batch), strict=True))
    return batches if indexed else [batch[:2] for batch in batches]


def fit(loader=None, **settings):
    return fit_lens(Teacher(), loader or data(), CLASSES, mean=MEAN, std=STD, **(QUICK | settings))


def exact_fit(batches: list, **settings):
    """Fit in float64: in float32 the order of a sum already shows after a few steps."""
    batches = [(image.double(), *rest) for image, *rest in batches]
    return fit_lens(
        Teacher().double(),
        batches,
        CLASSES,
        mean=MEAN,
        std=STD,
        **({"lens": default_start().double()} | EXACT | settings),
    )
