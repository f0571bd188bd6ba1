"""torch.export and torch.jit.trace of a teacher behind its lens."""

import copy

import pytest
import torch
from torch import nn

from djip_ext import DJIPError, DJIPTeacher, JPEGLens

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
LENSES = {
    "default": lambda: JPEGLens(q=8.0, kappa=5.0),
    "many steps": lambda: JPEGLens(q=1 + 20 * torch.rand(2, 8, 8)),
    "small steps, which saturate": lambda: JPEGLens(q=0.1 + torch.rand(2, 8, 8)),
    "hard": lambda: JPEGLens(q=9.0, hard=True),
    "window": lambda: JPEGLens.jpeg_dl(0.9),
}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()


def images(batch: int = 2, height: int = 16, width: int = 24) -> torch.Tensor:
    return (2 * torch.rand(batch, 3, height, width) - 1) * 2


class Loaded(nn.Module):
    """A lens alone, as what a network would see."""

    def __init__(self, lens: JPEGLens) -> None:
        super().__init__()
        self.lens = copy.deepcopy(lens).freeze()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.lens(image)


@pytest.mark.parametrize("name", LENSES)
def test_an_exported_lens_gives_the_same_pixels(name: str) -> None:
    module = Loaded(LENSES[name]())
    pixels = 250 * (torch.rand(2, 3, 13, 16) > 0.5) + 5 * torch.rand(2, 3, 13, 16)
    exported = torch.export.export(module, (pixels,)).module()
    assert torch.allclose(
        exported(pixels), module(pixels), atol=0.05
    )  # a sharp step magnifies rounding
    other = 255 * torch.rand(2, 3, 13, 16)
    assert torch.allclose(exported(other), module(other), atol=0.05)


def test_an_exported_teacher_gives_the_same_logits_and_the_eager_one_goes_on() -> None:
    teacher = DJIPTeacher(network(), JPEGLens(q=8.0, kappa=5.0), MEAN, STD)
    x = images()
    exported = torch.export.export(teacher, (x,)).module()
    for _ in range(2):
        x = images()
        assert torch.allclose(exported(x), teacher(x), atol=1e-5)
    assert not torch.allclose(exported(x), teacher.djip_teacher(x), atol=1e-4)


def test_export_before_the_first_forward_at_any_batch_and_size() -> None:
    teacher = DJIPTeacher(network(), JPEGLens(q=8.0, kappa=5.0), MEAN, STD)
    auto = torch.export.Dim.AUTO
    sizes = {0: auto, 2: auto, 3: auto}
    program = torch.export.export(teacher, (images(),), dynamic_shapes={"args": (sizes,)})
    for shape in ((1, 32, 32), (3, 16, 40)):
        x = images(*shape)
        assert torch.allclose(program.module()(x), teacher(x), atol=1e-5)


def test_a_traced_teacher_gives_the_same_logits() -> None:
    teacher = DJIPTeacher(network(), JPEGLens(q=8.0, kappa=5.0), MEAN, STD)
    x = images()
    with pytest.warns(FutureWarning):
        traced = torch.jit.trace(teacher, (x,))
    x = images()
    assert torch.allclose(traced(x), teacher(x), atol=1e-5)


def test_a_copied_or_moved_teacher_exports_too() -> None:
    teacher = DJIPTeacher(network(), JPEGLens(q=8.0, kappa=5.0), MEAN, STD)
    x = images()
    moved = copy.deepcopy(teacher).double()
    exported = torch.export.export(moved, (x.double(),)).module()
    assert torch.allclose(exported(x.double()), moved(x.double()), atol=1e-5)


def test_what_cannot_be_exported_says_why() -> None:
    pixels = 255 * torch.rand(1, 3, 8, 8)
    with pytest.raises(DJIPError, match="freeze"):
        torch.export.export(JPEGLens(), (pixels,))
    module = Loaded(JPEGLens(q=1e-4))
    with pytest.raises(DJIPError, match="too many for an exported graph"):
        torch.export.export(module, (pixels,))
    module = Loaded(JPEGLens(q=8.0))
    module.lens.q.fill_(3.0)
    with pytest.raises(DJIPError, match="changed after"):
        torch.export.export(module, (pixels,))
    module.lens.freeze()
    exported = torch.export.export(module, (pixels,)).module()
    assert torch.allclose(exported(pixels), module(pixels), atol=3e-3)
