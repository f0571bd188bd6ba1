"""Batches as loaders give them -> normalised images, class numbers and, where they come, indices.

What can only mean one thing is converted; what cannot be right, or could mean two things, is one
line with cause and cure, before anything is computed from it.
"""

import itertools
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

from djip_ext.errors import DJIPError

IMAGE_NAMES = ("pixel_values", "image", "images", "img", "x", "input", "inputs", "data", "jpg")
LABEL_NAMES = ("labels", "label", "target", "targets", "y", "fine_label", "cls", "class_id")
INDEX_NAMES = ("index", "indices", "idx", "id")

# Pixels in units of [0, 1] beyond which an image cannot have been normalised with mean and std:
# wide enough for noise that is put in after normalising, far from images in [0, 255].
LOWEST, HIGHEST = -2.0, 3.0

# What can be iterated once only, whatever it holds.
_ONCE: tuple[type, ...] = (
    types.GeneratorType,
    map,
    zip,
    filter,
    enumerate,
    reversed,
    itertools.chain,
    itertools.islice,
    type(iter([])),
    type(iter(())),
    _BaseDataLoaderIter,
)


class Batch(NamedTuple):
    """Normalised images (B, 3, H, W), class numbers int64 (B,), the indices as they came or None.

    Most readers need no indices, so that these are checked by :func:`to_indices`, where one does.
    """

    image: Tensor
    label: Tensor
    image_index: Any


class Batches:
    """The batches of a loader, pass after pass, each as a :class:`Batch`; empty ones are left out.

    A batch may be a tuple, a mapping or an object with attributes; labels may be integers of any
    type, (B, 1) or exact one-hot. Images are normalised, or 8- or
    16-bit pixels (B, 1, 3 or 4, H, W).

    Args:
        loader: any iterable that can be read again and again.
        num_classes: C; ``None`` leaves the labels' range unchecked.
        mean, std: of the images' normalisation, in units of [0, 1] pixels; where they are given,
            the range of the images is checked and pixels are normalised.
        labels: ``False`` for loaders of images alone; the labels are then all 0.

    Raises:
        DJIPError: at construction, a loader that can be read once only; while iterating, a batch
            that cannot be right, or a later pass without batches.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        num_classes: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        labels: bool = True,
    ) -> None:
        if isinstance(loader, _ONCE):
            raise DJIPError(
                f"the loader is a {type(loader).__name__}, which can be read once only; pass the "
                "DataLoader itself, or list(...) of its batches"
            )
        if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
            raise DJIPError(
                f"the loader is a {type(loader).__name__}; pass a DataLoader or a list of batches"
            )
        self.loader, self.num_classes, self.labels = loader, num_classes, labels
        self.mean, self.std = mean, std
        self._checked = False  # whether a first batch was checked closely
        self._filled = False  # whether a pass held batches

    def __iter__(self) -> Iterator[Batch]:
        number = 0
        for raw in self.loader:
            batch = self._convert(raw)
            if len(batch.image) == 0:
                continue
            number += 1
            if not self._checked:
                self._check_closely(batch)
                self._checked = True
            if number & (number - 1) == 0:  # the 1st, 2nd, 4th, ...: every check makes a GPU wait
                _check_finite(batch.image)
            yield batch
        if number == 0 and self._filled:
            raise DJIPError(
                "the loader's second pass is empty: it can be read once only; let its __iter__ "
                "start anew each time (around a generator it does not), or give a list"
            )
        self._filled = self._filled or number > 0

    def _convert(self, raw: Any) -> Batch:
        image, label, index = _parts(raw, self.labels)
        image = self._to_normalised(_to_tensor(image))
        if not self.labels:
            return Batch(image, torch.zeros(len(image), dtype=torch.long), None)
        label = _to_classes(label, self.num_classes)
        if len(label) != len(image):
            raise DJIPError(
                f"a batch holds {len(image)} images and {len(label)} labels; give each image one"
            )
        return Batch(image, label, index)

    def _to_normalised(self, image: Tensor) -> Tensor:
        _check_shape(image)
        if image.is_floating_point():
            return image
        most = {torch.uint8: 255.0, torch.uint16: 65535.0}.get(image.dtype)
        if most is None:
            raise DJIPError(
                f"the images are {_name(image.dtype)}, whose range is unknown; give uint8, uint16 "
                "or normalised floats (ToDtype(torch.float32, scale=True), then Normalize)"
            )
        if self.mean is None or self.std is None:
            raise DJIPError(
                f"the images are {_name(image.dtype)} pixels; normalise them first, by "
                "ToDtype(torch.float32, scale=True) and Normalize(mean, std)"
            )
        pixels = image[:, :1] if image.shape[1] == 2 else image[:, :3]  # without alpha, as PIL does
        pixels = pixels.to(torch.float32).expand(-1, 3, -1, -1) / most
        mean, std = (pixels.new_tensor(list(v))[:, None, None] for v in (self.mean, self.std))
        return (pixels - mean) / std

    def _check_closely(self, batch: Batch) -> None:
        _check_finite(batch.image)
        if self.num_classes is not None and self.labels:
            low, high = int(batch.label.min()), int(batch.label.max())
            if low < 0 or high >= self.num_classes:
                raise DJIPError(_out_of_range(low, high, self.num_classes))
        if self.mean is None or self.std is None:
            return
        check_range(batch.image, self.mean, self.std)


def check_range(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise DJIPError when images (B, 3, H, W) cannot have been normalised with mean and std."""
    if image.numel() == 0:
        return
    columns = torch.tensor([list(mean), list(std)], device=image.device)[:, :, None, None]
    pixels = image.detach().float() * columns[1] + columns[0]
    if float(pixels.min()) < LOWEST or float(pixels.max()) > HIGHEST:
        found = f"[{float(image.min()):.3g}, {float(image.max()):.3g}]"
        raise DJIPError(
            f"the images lie in {found}, which normalising with mean {tuple(mean)} and std "
            f"{tuple(std)} cannot give; divide pixels by 255, then normalise them, once"
        )


def _parts(raw: Any, labels: bool) -> tuple[Any, Any, Any]:
    """Image, label and index of a batch in any layout."""
    while isinstance(raw, (list, tuple)) and len(raw) == 1 and not isinstance(raw[0], Tensor):
        raw = raw[0]  # NVIDIA DALI gives [{"data": ..., "label": ...}]
    if isinstance(raw, Tensor) and not labels:
        return raw, None, None
    if isinstance(raw, (list, tuple)) and not (set(getattr(raw, "_fields", ())) & {*IMAGE_NAMES}):
        if len(raw) < 1 + labels:
            raise DJIPError(
                f"a batch is a {type(raw).__name__} of {len(raw)}; give (images, labels) or a dict"
            )
        label = raw[1] if labels else None
        if isinstance(label, Mapping):
            label = _named(label, LABEL_NAMES, "labels")
        return raw[0], label, raw[2] if len(raw) > 2 else None
    if isinstance(raw, (Tensor, np.ndarray, str, bytes)):
        raise DJIPError(
            f"a batch is a {type(raw).__name__} without labels; give (images, labels) or a dict"
        )
    image = _named(raw, IMAGE_NAMES, "images")
    label = _named(raw, LABEL_NAMES, "labels") if labels else None
    return image, label, _get(raw, INDEX_NAMES)


def _get(raw: Any, names: Sequence[str]) -> Any:
    for name in names:
        found = raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)
        if found is not None:
            return found
    return None


def _named(raw: Any, names: Sequence[str], what: str) -> Any:
    found = _get(raw, names)
    if found is None:
        has = sorted(map(str, raw)) if isinstance(raw, Mapping) else type(raw).__name__
        raise DJIPError(f"no {what} in a batch ({has}); name them one of {', '.join(names)}")
    return found


def _to_tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray) and image.dtype != object:
        return torch.as_tensor(image)
    if isinstance(image, (list, tuple)) and image and all(isinstance(x, Tensor) for x in image):
        shapes = {tuple(x.shape) for x in image}
        if len(image[0].shape) == 3 and len(shapes) == 1:
            return torch.stack(list(image))
        if len(image[0].shape) == 3:
            raise DJIPError(
                f"a batch holds images of several sizes {sorted(shapes)[:2]}; give all the same, "
                "by Resize and CenterCrop"
            )
        raise DJIPError(
            f"a batch holds {len(image)} views of its images; give one (no augmentation)"
        )
    raise DJIPError(
        f"the images are a {type(image).__name__}, not a tensor (B, 3, H, W); convert them, by "
        "ToImage and ToDtype(torch.float32, scale=True), and let the loader collate them"
    )


def _check_shape(image: Tensor) -> None:
    shape = tuple(image.shape)
    if image.dim() != 4:
        raise DJIPError(
            f"the images have shape {shape}, not (B, 3, H, W); give batches, by "
            "DataLoader's batch_size"
        )
    channels = shape[1]
    if channels == 3 or (channels in (1, 2, 4) and not image.is_floating_point()):
        return
    if shape[3] in (1, 3, 4) and channels > 4:
        raise DJIPError(
            f"the images have shape {shape}, channels last; a network takes (B, 3, H, W): "
            "image.permute(0, 3, 1, 2)"
        )
    if channels == 1:
        cure = "before normalising, make them three by Grayscale(3) or image.expand(-1, 3, -1, -1)"
    elif channels == 4:
        cure = "drop alpha before normalising, by image.convert('RGB') or image[:, :3]"
    else:
        cure = "a lens needs red, green and blue"
    raise DJIPError(f"the images have {channels} channels {shape}; {cure}")


def _check_finite(image: Tensor) -> None:
    if not bool(torch.isfinite(image).all()):
        raise DJIPError(
            "the images hold NaN or infinity; look at the files and at the transforms (a std of 0?)"
        )


def _to_classes(label: Any, num_classes: int | None) -> Tensor:
    """Class numbers int64 (B,) from integers of any type, (B, 1), whole floats or exact one-hot."""
    label = _label_tensor(label)
    if label.dim() == 0:
        label = label[None]
    if label.dim() == 2 and label.shape[1] == 1:
        label = label[:, 0]
    if label.dim() == 2:
        return _from_one_hot(label, num_classes)
    if label.dim() != 1:
        raise DJIPError(
            f"the labels have shape {tuple(label.shape)}; give one class number an image, (B,)"
        )
    if label.is_complex():
        raise DJIPError("the labels are complex numbers; give class numbers, integers (B,)")
    if label.is_floating_point() and not bool((label == label.round()).all()):
        raise DJIPError(
            "the labels are fractions; CMI needs one class an image: give class numbers (B,)"
        )
    numbers: Tensor = label.long()
    return numbers


def to_indices(index: Any, images: int) -> Tensor:
    """int64 (B,) from the indices of a batch of ``images``, integers of any type.

    Raises:
        DJIPError: something else, or another number of them.
    """
    try:
        numbers = index if isinstance(index, Tensor) else torch.as_tensor(np.asarray(index))
    except (TypeError, ValueError, RuntimeError):
        numbers = torch.empty(0)
    is_whole = not (numbers.is_floating_point() or numbers.is_complex())
    if not is_whole or numbers.dtype == torch.bool or numbers.numel() != images:
        raise DJIPError(
            f"the indices of a batch of {images} images are a {type(index).__name__} that does not "
            "hold one integer for each; give each image its own index third, or use variant='fresh'"
        )
    indices: Tensor = numbers.long().flatten()
    return indices


def _label_tensor(label: Any) -> Tensor:
    if isinstance(label, Tensor):
        return label
    try:
        return torch.as_tensor(np.asarray(label) if not isinstance(label, np.ndarray) else label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DJIPError(
            f"the labels are a {type(label).__name__} of {_element(label)}; give class numbers, "
            "integers (B,), as ImageFolder's class_to_idx numbers names"
        ) from error


def _element(label: Any) -> str:
    first = label[0] if isinstance(label, Sequence) and len(label) else label
    return type(first).__name__


def _from_one_hot(label: Tensor, num_classes: int | None) -> Tensor:
    if num_classes is not None and label.shape[1] != num_classes:
        raise DJIPError(
            f"the labels have shape {tuple(label.shape)}, but num_classes is {num_classes}; give "
            "class numbers, integers (B,)"
        )
    numbers = label.to(torch.float32)
    exact = ((numbers == 0) | (numbers == 1)).all() & (numbers.sum(1) == 1).all()
    if not bool(exact):
        raise DJIPError(
            "the labels are soft (mixup, cutmix, label smoothing or several classes an image); CMI "
            "needs one class an image: fit without them, on plain images"
        )
    return numbers.argmax(1)


def _out_of_range(low: int, high: int, num_classes: int) -> str:
    text = f"labels from {low} to {high} lie outside of 0 .. {num_classes - 1}, but num_classes is "
    text += str(num_classes)
    if low >= 1 and high == num_classes:
        return f"{text}; they count from 1: subtract 1"
    if low < 0:
        return f"{text}; leave out images without a class (negative labels)"
    return f"{text}; use the number of classes that the teacher was trained for"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_enough(counts: Tensor) -> str:
    """What to say of ``counts`` (C,), the images of each class; "" if each has two or none.

    The CMI of a class with one image is 0, whatever the lens does.

    Raises:
        DJIPError: most classes have fewer than two images.
    """
    present = int((counts > 0).sum())
    single = int((counts == 1).sum())
    if not single:
        return ""
    if 2 * single > present:
        raise DJIPError(
            f"{single} of {present} classes have one image, whose CMI is always 0; give at least 2 "
            "images of a class, better 10 or more"
        )
    return (
        f"{single} of {present} classes have one image and add no CMI; give at least 2, better 10"
    )
