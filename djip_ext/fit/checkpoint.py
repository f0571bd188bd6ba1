"""A fit on disk: everything that it needs to go on as if it had never been interrupted."""

import os
import pickle
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError, first_line
from djip_ext.lens.io import is_recognisable
from djip_ext.lens.jpeg_lens import Q_MAX
from djip_ext.metrics.cmi import CMI
from djip_ext.metrics.measurement import Measurement
from djip_ext.utils.distributed import sum_all
from djip_ext.utils.files import atomic_write

# Settings that a fit no longer has, with the only value whose fits can go on.
FORMER_SETTINGS = {"optimizer": "adam"}
# settings that fits of an older version did not have, with what they did
ADDED_SETTINGS = {"gradient": "soft", "goal": "amplify"}
# by how much the sums of an image may differ: its last digits depend on the device
LAST_DIGITS = 1e-5


@dataclass(frozen=True)
class BestRound:
    """The round whose tables would be taken if the fit ended now.

    Attributes:
        rank: what rounds are compared by, smaller is better: percentage points below the accuracy
            floor, nats outside the band, cross entropy paid per nat of CMI.
        index: its number.
        tables: its steps, (2, 8, 8) on the CPU.
        measured: the teacher through them.
    """

    rank: tuple[float, ...]
    index: int
    tables: Tensor
    measured: Measurement

    @property
    def fits(self) -> bool:
        """Whether it meets both the accuracy floor and the band."""
        return self.rank[:2] == (0.0, 0.0)


@dataclass(frozen=True)
class FitState:
    """What changes while a fit runs, between two rounds.

    Attributes:
        ln_q, q: the tables, as the optimizer and as the lens holds them.
        optimizer: its state dict.
        history: every round's row.
        before: the plain teacher.
        centres: S_y that the steps were last taken against; ``None`` if none was taken.
        best: the best round so far.
        images: the :class:`ImageSums` of the fit's images; ``None`` in a checkpoint of a version
            that did not keep them.
    """

    ln_q: Tensor
    q: Tensor
    optimizer: dict[str, Any]
    history: list[dict[str, float]]
    before: Measurement
    centres: Tensor | None
    best: BestRound
    images: Tensor | None


class ImageSums:
    """Two sums over the images of a pass, by which a set is known again.

    The sums are those of p and of p^2, where p is one random projection of an image.  They do not
    depend on order, batches and processes, and on the device in the last digits alone, unlike a
    digest of bytes.
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    def __call__(self, image: Tensor) -> Tensor:
        """Add a batch (B, 3, H, W) and return it: this stands where a lens would."""
        size = image[0].numel()
        generator = torch.Generator().manual_seed(0)  # the same projection for every batch
        weights = torch.randn(size, dtype=torch.float64, generator=generator) / size**0.5
        p = image.double().flatten(1) @ weights.to(image.device)
        self.sums = self.sums.to(image.device) + torch.stack([p.sum(), p.square().sum()])
        return image

    def total(self) -> Tensor:
        """Both sums over all processes, which must call this together, once; on the CPU."""
        return sum_all(self.sums).cpu()


def check_recognisable(teacher: nn.Module) -> None:
    """Check that a checkpoint could tell ``teacher`` from others.

    Raises:
        DJIPError: its state holds no tensor.
    """
    if not is_recognisable(teacher):
        raise DJIPError(
            f"the teacher, a {type(teacher).__name__}, shows no weights, so that a checkpoint "
            'cannot tell it from others; wrap it as ClosedTeacher(ask, C, name="...") and fit '
            "with gradients=False, or leave out the checkpoint"
        )


def plain_numbers(content: Any) -> Any:
    """``content`` with NumPy's numbers as Python's, which torch loads without running code."""
    if isinstance(content, dict):
        return {key: plain_numbers(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(plain_numbers(value) for value in content)
    return content.item() if isinstance(content, np.generic) else content


def write_checkpoint(
    path: str | os.PathLike[str], identity: dict[str, Any], state: FitState
) -> None:
    """Write ``state`` of the fit that ``identity`` describes, atomically."""
    best = state.best
    content = vars(state) | {
        "identity": plain_numbers(identity),
        "before": pack_measurement(state.before),
        "best": vars(best) | {"measured": pack_measurement(best.measured)},
    }
    atomic_write(path, lambda temporary: torch.save(content, temporary))


def read_checkpoint(path: str | os.PathLike[str], identity: dict[str, Any]) -> FitState:
    """The state, on the CPU, of the fit that ``identity`` describes.

    Raises:
        DJIPError: the file is damaged, or of another fit or another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_identity(path, content["identity"], identity)
        best = content["best"]
        return FitState(
            ln_q=content["ln_q"],
            q=content["q"].clamp(max=Q_MAX),  # older versions exceeded it by a last digit
            optimizer=content["optimizer"],
            history=content["history"],
            before=unpack_measurement(content["before"]),
            centres=content["centres"],
            best=BestRound(
                tuple(best["rank"]),
                best["index"],
                best["tables"].clamp(max=Q_MAX),
                unpack_measurement(best["measured"]),
            ),
            images=content.get("images"),
        )
    except (RuntimeError, KeyError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise not_a_checkpoint(path, error) from error


def not_a_checkpoint(path: str | os.PathLike[str], error: Exception) -> DJIPError:
    """The error for a file that cannot be read as a checkpoint, because of ``error``."""
    reason = re.sub(r"\x1b\[[0-9;]*m", "", first_line(error)).strip()  # torch colours its advice
    return DJIPError(f"{path} is not a checkpoint of a fit ({reason}); delete it to start afresh")


def check_same_images(
    path: str | os.PathLike[str], now: Measurement, images: Tensor, state: FitState
) -> None:
    """Check that the loader's images are those on which the fit of a checkpoint was begun.

    Args:
        path: of the checkpoint.
        now: the plain teacher on the loader's images.
        images: their :class:`ImageSums`.
        state: what the checkpoint holds.

    Raises:
        DJIPError: they are not.
    """
    before = state.before
    count = int(now.cmi.counts.sum())
    # The last digits depend on threads and device.
    same = abs(now.ce - before.ce) <= 0.01 * max(1.0, before.ce)
    same = same and torch.equal(now.cmi.counts, before.cmi.counts)
    # A sure teacher's cross entropy says little: that of other images may be as small.
    if state.images is not None:
        same = same and bool(((images - state.images).abs() <= LAST_DIGITS * count).all())
    if same:
        return
    known = int(before.cmi.counts.sum())
    raise DJIPError(
        f"{path} was begun on other images ({count} images, cross entropy {now.ce:.3g} now, "
        f"{known}, {before.ce:.3g} then); go on with the same set, unaugmented, or delete the file"
    )


def _check_identity(
    path: str | os.PathLike[str], known: dict[str, Any], identity: dict[str, Any]
) -> None:
    """Raise DJIPError unless ``known``, of a checkpoint, is the ``identity`` of this fit."""
    settings = ADDED_SETTINGS | known["settings"]
    for name, value in FORMER_SETTINGS.items():
        found = settings.pop(name, value)
        if found != value:
            raise DJIPError(
                f"{path} was begun with {name} {found}, which fits no longer have; finish it with "
                "djip_ext 0.1.0, or delete the file"
            )
    if "cmi_gain" in settings:  # older versions kept a band as it was given
        settings["cmi_gain"] = tuple(settings["cmi_gain"])
    known = known | {"settings": settings}
    if known.keys() != identity.keys() or settings.keys() != identity["settings"].keys():
        raise DJIPError(
            f"{path} was begun by another version of djip_ext; finish that fit with it, or delete "
            "the file"
        )
    known["start"] = [min(step, Q_MAX) for step in known["start"]]  # as q in read_checkpoint
    differing = [key for key, value in identity.items() if known[key] != value]
    if differing:
        raise DJIPError(
            f"{path} belongs to a fit with another {', '.join(differing)}; delete it or name "
            "another checkpoint"
        )


def pack_measurement(measurement: Measurement) -> dict[str, Any]:
    """A measurement as tensors and numbers, which torch loads without running code."""
    return {
        "cmi": dict(vars(measurement.cmi)),
        "ce": measurement.ce,
        "accuracy": measurement.accuracy,
    }


def unpack_measurement(content: dict[str, Any]) -> Measurement:
    """The inverse of :func:`pack_measurement`."""
    cmi = content["cmi"]
    whole = CMI(
        total=cmi["total"],
        per_class=cmi["per_class"].cpu(),
        gamma=cmi["gamma"],
        centres=cmi["centres"].cpu(),
        counts=cmi["counts"].cpu(),
    )
    return Measurement(whole, content["ce"], content["accuracy"])
