"""One class without and with a lens: the right class, the right corners, few numbers."""

import json
from collections.abc import Iterator

import pytest
import torch
from helpers.pretend_gpu import GPU, pretend_gpu
from torch import Tensor, nn

from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.metrics.class_simplex import SAMPLES, OneClass, most_raised_class
from djip_ext.metrics.cmi import CMI

NAMES = ("a", "b", "c", "d")


class Means(nn.Module):
    """Logits (B, 4) that are the means of four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, image: Tensor) -> Tensor:
        return image[:, :, 0, :4].mean(1) * self.scale


network = Means()


def cmi(*per_class: float) -> CMI:
    return CMI(
        0.0,
        torch.tensor(per_class).double(),
        0.0,
        torch.eye(4).double(),
        torch.tensor([3, 300, 3, 0]),
    )


def view(names: tuple[str, ...] = NAMES, temperature: float = 1.0) -> OneClass | None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 2] * 3 + [1] * 300)
    images = torch.randint(0, 256, (306, 4, 4, 3), generator=generator, dtype=torch.uint8)
    data = ImageSet(images, labels, len(names), (0.5,) * 3, (0.25,) * 3, names)
    # class 3 has no images: its CMI of 9 counts for nothing
    before, after = cmi(0.3, 0.1, 0.2, 0.0), cmi(0.4, 0.5, 0.1, 9.0)
    lens = lambda image: image * image.new_tensor([0.1, 1.0, 2.0, 3.0])  # noqa: E731
    return most_raised_class(
        network, data, lambda part: DeviceLoader(part, 64), lens, before, after, temperature
    )


def test_the_class_that_rises_most_is_shown_by_a_bounded_number_of_images() -> None:
    shown = view(temperature=2.0)
    assert shown.corners[0] == "b" and shown.temperature == 2.0
    assert (shown.before.cmi, shown.after.cmi) == pytest.approx((0.1, 0.5))
    assert shown.before.f.shape == shown.after.f.shape == (SAMPLES, 3)


def test_its_rivals_hold_most_of_its_probability_behind_the_lens() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (306, 4, 4, 3), generator=generator, dtype=torch.uint8)[6:]
    images = images[torch.linspace(0, 299, SAMPLES).long()]
    logits = network(((images / 255 - 0.5) / 0.25).permute(0, 3, 1, 2))
    plain, lensed = (
        logits.double() * torch.tensor(scale).double()
        for scale in ([1.0] * 4, [0.1, 1.0, 2.0, 3.0])
    )
    order = lensed.softmax(1).mean(0)[[0, 2, 3]].argsort(descending=True)[:2]
    corners = [1, *torch.tensor([0, 2, 3])[order].tolist()]
    shown = view()
    assert shown.corners == tuple(NAMES[i] for i in corners)
    for side, f in ((shown.before, plain.softmax(1)), (shown.after, lensed.softmax(1))):
        torch.testing.assert_close(side.f, f[:, corners], atol=1e-5, rtol=0)
        assert side.accuracy == pytest.approx(100 * (f.argmax(1) == 1).double().mean().item())


def test_it_goes_through_json_to_four_digits_in_a_few_kilobytes() -> None:
    shown = view()
    text = json.dumps(shown.to_json())
    again = OneClass.from_json(json.loads(text))
    assert len(text) < 12_000
    assert again.corners == shown.corners and again.before.accuracy == shown.before.accuracy
    torch.testing.assert_close(again.after.f, shown.after.f, atol=5e-5, rtol=0)


def test_two_classes_have_no_triangle() -> None:
    assert view(names=("a", "b")) is None


class Images:
    """A set of 30 images whose batches lie on the CPU, as a DataLoader's do, and are counted."""

    labels, classes = torch.tensor([0] * 3 + [1] * 24 + [2] * 3), NAMES[:3]

    def __init__(self, index: Tensor | None = None) -> None:
        images = torch.randn(30, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        self.images = images if index is None else images[index]
        self.passes = 0

    def select(self, index: Tensor) -> "Images":
        self.selected = Images(index)
        return self.selected

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        self.passes += 1
        return iter([(images,) for images in self.images.split(10)])


def of_a_loader(network: nn.Module, data: Images) -> OneClass | None:
    before, after = (
        CMI(0.0, torch.tensor(c), 0.0, torch.eye(3).double(), torch.tensor([3, 24, 3]))
        for c in ([0.1, 0.1, 0.1], [0.1, 0.9, 0.1])
    )
    return most_raised_class(
        network, data, lambda part: part, lambda image: 2 * image, before, after
    )


def test_the_samples_are_read_once_and_go_where_the_network_is() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    data = Images()
    expected = of_a_loader(network, data)
    assert data.selected.passes == 1
    with pretend_gpu():
        found = of_a_loader(network.to(GPU), Images())
    assert expected is not None and found is not None and found.corners == expected.corners
    torch.testing.assert_close(found.after.f, expected.after.f, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.before.f, expected.before.f, atol=1e-5, rtol=0)
