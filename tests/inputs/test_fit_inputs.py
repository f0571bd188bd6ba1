"""Whole fits and teachers on what people bring: as the clean input would, or one line."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djip_ext import DJIPError, DJIPTeacher, JPEGLens, fit_lens
from djip_ext.lens.initial_tables import mean_magnitude, sensitivity
from djip_ext.metrics import measure

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
C = 3
HOW: dict[str, Any] = {"mean": MEAN, "std": STD, "rounds": 2, "progress": False}


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, C)
    ).eval()


def pixels(count: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def clean(count: int = 12) -> list[tuple[Tensor, Tensor]]:
    image = (pixels(count).float() / 255 - 0.5) / 0.25
    label = torch.arange(count) % C
    return list(zip(image.split(4), label.split(4), strict=True))


@pytest.mark.parametrize(
    "convert",
    [
        lambda image, label: {"pixel_values": image, "labels": label},
        lambda image, label: (image, label.int()),
        lambda image, label: (image, label[:, None]),
        lambda image, label: (image, torch.eye(C)[label]),
        lambda image, label: (((image * 0.25 + 0.5) * 255).round().to(torch.uint8), label),
    ],
)
def test_a_fit_on_other_layouts_is_the_same_fit(convert: Any) -> None:
    expected = fit_lens(network(), clean(), C, **HOW)
    found = fit_lens(network(), [convert(*batch) for batch in clean()], C, **HOW)
    torch.testing.assert_close(found.lens.q, expected.lens.q, rtol=1e-4, atol=0)
    assert found.before.accuracy == expected.before.accuracy


def once() -> Iterator[Any]:
    yield from clean()


@pytest.mark.parametrize(
    "loader, reason",
    [
        (lambda: once(), "read once only"),
        (lambda: [(255 * image, label) for image, label in clean()], "divide pixels by 255"),
        (lambda: [(image, label.float() + 0.5) for image, label in clean()], "fractions"),
        (lambda: [(image * float("nan"), label) for image, label in clean()], "images hold NaN"),
        (lambda: clean(C), "3 of 3 classes have one image"),
        (lambda: [(image, label + 1) for image, label in clean()], "count from 1"),
        (lambda: [(image[:0], label[:0]) for image, label in clean()], "no samples"),
    ],
)
def test_a_fit_on_what_cannot_be_right_is_one_line(loader: Any, reason: str) -> None:
    with pytest.raises(DJIPError, match=reason) as caught:
        fit_lens(network(), loader(), C, **HOW)
    assert "\n" not in str(caught.value)


def test_a_class_with_one_image_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    few = clean(10)
    few[2] = (few[2][0], torch.tensor([1, 1]))  # leaves class 2 with three, class 0 with three
    few[0] = (few[0][0][:3], torch.tensor([0, 1, 1]))
    few[1] = (few[1][0], torch.tensor([1, 1, 2, 2]))
    fit_lens(network(), few, C, **HOW)
    said = [line for line in capsys.readouterr().out.splitlines() if "one image" in line]
    assert len(said) == 1 and said[0].startswith("note: 1 of 3 classes")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_teacher_in_another_precision(dtype: torch.dtype) -> None:
    teacher = network().to(dtype)
    before = copy.deepcopy(teacher.state_dict())
    result = fit_lens(teacher, clean(), C, **HOW)
    assert result.lens.q.dtype == torch.float32 and torch.isfinite(result.lens.q).all()
    assert not torch.equal(result.lens.q, torch.full((2, 8, 8), 8.0))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    image = clean()[0][0]
    assert DJIPTeacher(teacher, result.lens, MEAN, STD)(image).dtype == dtype
    identity = DJIPTeacher(teacher, "identity", MEAN, STD)(image)
    assert torch.equal(identity, teacher(image.to(dtype)))
    assert sensitivity(teacher, clean(), MEAN, STD).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_teacher_in_another_precision_sees_through_the_lens(dtype: torch.dtype) -> None:
    lens, image = JPEGLens(60.0), clean()[0][0]
    exact = DJIPTeacher(network(), lens, MEAN, STD)(image)
    teacher = network().to(dtype)
    rounding = (DJIPTeacher(teacher, lens, MEAN, STD)(image).float() - exact).abs().max()
    effect = (teacher(image.to(dtype)).float() - exact).abs().max()
    assert rounding < 0.2 * effect


def test_double_precision_images_for_a_single_precision_teacher() -> None:
    double = [(image.double(), label) for image, label in clean()]
    assert measure(network(), double, C).ce == pytest.approx(measure(network(), clean(), C).ce)
    teacher = DJIPTeacher(network(), JPEGLens(8.0), MEAN, STD)
    image = clean()[0][0]
    torch.testing.assert_close(teacher(image.double()), teacher(image), rtol=0, atol=1e-5)


def test_a_quantised_teacher_has_no_floating_weights() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, torch.qint8)
    for part in (quantised, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())):
        teacher = DJIPTeacher(part, JPEGLens(8.0), MEAN, STD)
        assert teacher(clean()[0][0]).shape == (4, C)
        assert measure(part, clean(), C).ce > 0


def test_initial_tables_take_the_same_batches() -> None:
    dicts = [{"image": image, "label": label.int()} for image, label in clean()]
    alone = [image for image, _ in clean()]
    expected = mean_magnitude(clean(), MEAN, STD)
    assert torch.equal(mean_magnitude(dicts, MEAN, STD), expected)
    assert torch.equal(mean_magnitude(alone, MEAN, STD), expected)
    found = sensitivity(network(), dicts, MEAN, STD)
    assert torch.equal(found, sensitivity(network(), clean(), MEAN, STD))


def test_a_fit_without_gradients_takes_the_same_batches() -> None:
    pytest.importorskip("scipy", minversion="1.14")
    how = HOW | {"gradients": False, "queries": 60}
    dicts = [{"pixel_values": image, "labels": label[:, None].int()} for image, label in clean()]
    expected = fit_lens(network(), clean(), C, **how)
    assert torch.equal(fit_lens(network(), dicts, C, **how).lens.q, expected.lens.q)
    with pytest.raises(DJIPError, match="3 of 3 classes have one image"):
        fit_lens(network(), clean(C), C, **how)
