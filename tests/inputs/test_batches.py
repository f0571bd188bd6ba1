"""Batches as loaders give them: what can only mean one thing is converted, the rest is one line."""

import collections
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from djip_ext.errors import DJIPError
from djip_ext.inputs.batches import Batch, Batches, check_enough, to_indices

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
C = 5


def pixels(batch: int = 4, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (batch, channels, 8, 10), dtype=torch.uint8)


def normalised(image: Tensor, most: float = 255.0) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (image.float() / most - mean) / std


def read(*batches: Any, **how: Any) -> list[Batch]:
    return list(Batches(list(batches), **({"num_classes": C, "mean": MEAN, "std": STD} | how)))


def one(*batch: Any, **how: Any) -> Batch:
    return read(batch, **how)[0]


IMAGE, LABEL = normalised(pixels()), torch.tensor([0, 4, 2, 2])
Pair = collections.namedtuple("Pair", "label image")


class Features(collections.UserDict):
    """What transformers' BatchFeature is."""


# ---- layouts


@pytest.mark.parametrize(
    "raw",
    [
        (IMAGE, LABEL),
        [IMAGE, LABEL],
        (IMAGE, LABEL, torch.arange(4)),
        {"pixel_values": IMAGE, "labels": LABEL},
        {"image": IMAGE, "label": LABEL, "caption": ["a"] * 4},
        {"images": IMAGE, "target": LABEL},
        {"img": IMAGE, "fine_label": LABEL, "coarse_label": LABEL + 9},
        {"x": IMAGE, "y": LABEL},
        [{"data": IMAGE, "label": LABEL[:, None].int()}],  # NVIDIA DALI
        Features(pixel_values=IMAGE, labels=LABEL),
        SimpleNamespace(image=IMAGE, targets=LABEL),
        Pair(LABEL, IMAGE),
        (IMAGE, {"labels": LABEL}),
        (IMAGE.numpy(), LABEL.numpy()),
        (IMAGE, LABEL.tolist()),
        (list(IMAGE), list(LABEL)),
    ],
    ids=str,
)
def test_any_layout_gives_the_same_batch(raw: Any) -> None:
    (batch,) = read(raw)
    assert torch.equal(batch.image, IMAGE) and torch.equal(batch.label, LABEL)
    assert batch.label.dtype == torch.int64


def test_indices_come_third_or_by_name() -> None:
    index = torch.arange(4)
    assert torch.equal(one(IMAGE, LABEL, index).image_index, index)
    (batch,) = read({"image": IMAGE, "label": LABEL, "index": index})
    assert torch.equal(batch.image_index, index)
    assert one(IMAGE, LABEL).image_index is None


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint16"])
def test_indices_are_integers_of_any_type(dtype: str) -> None:
    index = torch.tensor([3, 0, 7, 9])
    given = index.to(getattr(torch, dtype))
    forms = (given, given[:, None], given.numpy(), given.tolist(), tuple(given.tolist()))
    for form in (*forms, list(given)):
        found = to_indices(form, 4)
        assert torch.equal(found, index) and found.dtype == torch.int64
    assert to_indices(given[0], 1).tolist() == [3]


@pytest.mark.parametrize(
    "index",
    [
        ["a", "b"],
        [0.0, 1.0],
        torch.tensor([0.0, 1.0]),
        np.array([True, False]),
        [0],
        [0, 1, 2],
        [[0, 1], [2]],
        {"index": 0},
        None,
    ],
    ids=str,
)
def test_what_is_no_index_for_each_of_two_images(index: Any) -> None:
    with pytest.raises(DJIPError, match="batch of 2 images .* its own index third") as caught:
        to_indices(index, 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw, reason",
    [
        ({"pixels": IMAGE, "labels": LABEL}, r"no images in a batch \(\['labels', 'pixels'\]\)"),
        ({"image": IMAGE}, "no labels in a batch"),
        ((IMAGE,), "a tuple of 1"),
        (IMAGE, "a Tensor without labels"),
        ("image", "a str without labels"),
        (("a.png", LABEL), "the images are a str, not a tensor"),
        (([IMAGE, IMAGE], LABEL), "2 views of its images"),
        ((list(IMAGE[:3]) + [IMAGE[3, :, :4]], LABEL), "images of several sizes"),
        ((IMAGE, LABEL[:3]), "4 images and 3 labels"),
    ],
    ids=str,
)
def test_a_batch_that_cannot_be_read(raw: Any, reason: str) -> None:
    with pytest.raises(DJIPError, match=reason) as caught:
        read(raw)
    assert "\n" not in str(caught.value)


# ---- labels


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_whole_numbers_of_any_type(dtype: str, shape: tuple[int, ...]) -> None:
    label = one(IMAGE, LABEL.to(getattr(torch, dtype)).view(shape)).label
    assert torch.equal(label, LABEL) and label.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_exact_one_hot_is_converted(dtype: torch.dtype) -> None:
    one_hot = torch.nn.functional.one_hot(LABEL, C).to(dtype)
    assert torch.equal(one(IMAGE, one_hot).label, LABEL)


@pytest.mark.parametrize(
    "label, reason",
    [
        (0.9 * torch.eye(C)[LABEL] + 0.02, "soft .mixup, cutmix.*one class an image"),
        (torch.eye(C)[LABEL] + torch.eye(C)[0], "soft|several classes"),
        (torch.zeros(4, C), "several classes an image"),
        (torch.eye(7)[LABEL], "num_classes is 5"),
        (LABEL + 0.5, "fractions"),
        (LABEL.view(2, 2, 1), "shape"),
        (["cat", "dog", "cat", "dog"], "list of str"),
        (LABEL + 1, r"labels from 1 to 5 .* count from 1: subtract 1"),
        (LABEL - 1, "negative labels"),
        (LABEL + 60, "use the number of classes"),
    ],
)
def test_labels_that_cannot_be_used(label: Any, reason: str) -> None:
    with pytest.raises(DJIPError, match=reason) as caught:
        one(IMAGE, label)
    assert "\n" not in str(caught.value)


# ---- images


def test_pixels_are_normalised_as_torchvision_would() -> None:
    torchvision = pytest.importorskip("torchvision.transforms.v2")
    steps = [torchvision.ToDtype(torch.float32, scale=True), torchvision.Normalize(MEAN, STD)]
    image = pixels()
    expected = torchvision.Compose(steps)(image)
    torch.testing.assert_close(one(image, LABEL).image, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_grey_and_alpha_are_read_as_pil_reads_them(channels: int) -> None:
    image_file = pytest.importorskip("PIL.Image")
    image = pixels(1, channels)
    array = image[0].permute(1, 2, 0).squeeze(2).numpy()
    mode = {1: "L", 2: "LA", 4: "RGBA"}[channels]
    rgb = image_file.frombytes(mode, (10, 8), array.tobytes()).convert("RGB")
    expected = normalised(torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1)[None])
    torch.testing.assert_close(one(image, LABEL[:1]).image, expected, rtol=0, atol=1e-5)


def test_sixteen_bit_pixels() -> None:
    image = (pixels().int() * 257).to(torch.uint16)
    expected = normalised(image.int(), 65535.0)
    torch.testing.assert_close(one(image, LABEL).image, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "image, reason",
    [
        (pixels().float(), r"lie in \[.*cannot give; divide pixels by 255"),
        (1.2 * normalised(255 * normalised(pixels())), "normalise them, once"),
        (pixels().int(), "int32, whose range is unknown"),
        (IMAGE[:, :1], "1 channels .*Grayscale"),
        (torch.cat([IMAGE, IMAGE[:, :1]], 1), "4 channels .*alpha"),
        (torch.cat([IMAGE, IMAGE], 1), "6 channels"),
        (IMAGE.permute(0, 2, 3, 1), "channels last.*permute"),
        (pixels().permute(0, 2, 3, 1), "channels last.*permute"),
        (IMAGE[0], "shape .*give batches"),
        (IMAGE / torch.tensor([1.0, 0.0, 1.0])[:, None, None], "NaN or infinity"),
        (IMAGE * float("nan"), "NaN or infinity"),
    ],
)
def test_images_that_cannot_be_used(image: Tensor, reason: str) -> None:
    with pytest.raises(DJIPError, match=reason) as caught:
        one(image, LABEL[: len(image)])
    assert "\n" not in str(caught.value)


def test_without_the_normalisation_pixels_are_refused() -> None:
    with pytest.raises(DJIPError, match="uint8 pixels; normalise them first"):
        one(pixels(), LABEL, mean=None, std=None)


def test_nan_is_noticed_in_later_batches_too() -> None:
    batches = [(IMAGE, LABEL)] * 3 + [(IMAGE * float("nan"), LABEL)]
    with pytest.raises(DJIPError, match="NaN"):
        read(*batches)


def test_noise_put_in_after_normalising_is_no_fault() -> None:
    noisy = IMAGE + 2 * torch.randn(IMAGE.shape)
    assert torch.equal(one(noisy, LABEL).image, noisy)


def test_empty_batches_are_left_out() -> None:
    empty = (IMAGE[:0], LABEL[:0])
    assert len(read(empty, (IMAGE, LABEL), empty)) == 1
    assert read(empty) == []


# ---- loaders


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield IMAGE, LABEL


DATA = [(IMAGE, LABEL)]


@pytest.mark.parametrize(
    "make",
    [
        batches,
        lambda: iter(DATA),
        lambda: map(tuple, DATA),
        lambda: zip([IMAGE], [LABEL], strict=True),
        lambda: (batch for batch in DATA),
        lambda: iter(DataLoader(TensorDataset(IMAGE, LABEL), 2)),
    ],
)
def test_a_loader_that_can_be_read_once_is_refused_before_it_is_read(
    make: Callable[[], Any],
) -> None:
    with pytest.raises(DJIPError, match="read once only; pass the DataLoader itself"):
        Batches(make())


class Once(IterableDataset):
    def __init__(self) -> None:
        self.items = iter(zip(IMAGE, LABEL, strict=True))

    def __iter__(self) -> Iterator[Any]:
        return self.items


def test_a_second_pass_without_batches_is_noticed() -> None:
    twice = Batches(DataLoader(Once(), 2), C)
    assert len(list(twice)) == 2
    with pytest.raises(DJIPError, match="second pass is empty"):
        list(twice)


def test_a_loader_can_be_read_again_and_again() -> None:
    again = Batches(DataLoader(TensorDataset(IMAGE, LABEL), 2), C)
    assert len(list(again)) == len(list(again)) == 2


@pytest.mark.parametrize("loader", [None, 3, torch.nn.Identity()])
def test_what_is_no_loader(loader: Any) -> None:
    with pytest.raises(DJIPError, match="pass a DataLoader or a list"):
        Batches(loader)


# ---- enough images


@pytest.mark.parametrize(
    "counts, said",
    [([2, 9, 3], ""), ([0, 5, 2], ""), ([1, 5, 2], "1 of 3 classes"), ([1, 0, 2], "1 of 2")],
)
def test_a_class_with_one_image_is_named(counts: list[int], said: str) -> None:
    assert check_enough(torch.tensor(counts)).startswith(said)
    assert bool(check_enough(torch.tensor(counts))) == bool(said)


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 1, 5], [0, 0, 1]])
def test_most_classes_with_one_image_are_refused(counts: list[int]) -> None:
    with pytest.raises(DJIPError, match="classes have one image.*at least 2"):
        check_enough(torch.tensor(counts))
