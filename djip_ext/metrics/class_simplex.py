"""A teacher's predictions for one class, without and with its lens: the data of a simplex picture.

Of C probabilities three are kept and at most :data:`SAMPLES` samples, so that the record of a fit
can hold them in a few kilobytes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from djip_ext.inputs.batches import Batches
from djip_ext.metrics.cmi import CMI
from djip_ext.metrics.predictions import predictions

SAMPLES = 200
DIGITS = 4


class LabelledImages(Protocol):
    """A set of images with labels, however it holds them."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""

    @property
    def classes(self) -> Sequence[str]:
        """The name of every class."""

    def select(self, index: Tensor) -> Any:
        """The images ``index`` (K,), in that order, as a set of the same kind."""


@dataclass(frozen=True)
class Answers:
    """Of one teacher for the samples of a class.

    Attributes:
        cmi: of the class, all its images, nats.
        accuracy: top-1 on the samples, percent.
        f: (K, 3) probabilities of the three corners; they do not sum to one where there are more
            classes.
    """

    cmi: float
    accuracy: float
    f: Tensor


@dataclass(frozen=True)
class OneClass:
    """A class between its two rivals.

    Attributes:
        corners: the names of the class and of the two others that hold most of its samples'
            probability behind the lens.
        temperature: T of the probabilities and of the CMI.
        before, after: without and with the lens, of the same samples in the same order.
    """

    corners: tuple[str, str, str]
    temperature: float
    before: Answers
    after: Answers

    def to_json(self) -> dict[str, Any]:
        """Convert for a JSON file; probabilities corner by corner, rounded to :data:`DIGITS`."""

        def packed(side: Answers) -> dict[str, Any]:
            f = [[round(value, DIGITS) for value in corner] for corner in side.f.T.tolist()]
            return {"cmi": side.cmi, "accuracy": side.accuracy, "f": f}

        return {
            "corners": list(self.corners),
            "temperature": self.temperature,
            "before": packed(self.before),
            "after": packed(self.after),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "OneClass":
        """Invert :meth:`to_json`; raises KeyError, TypeError or ValueError for anything else."""

        def unpacked(side: dict[str, Any]) -> Answers:
            f = torch.tensor(side["f"], dtype=torch.float64)
            if f.dim() != 2 or len(f) != 3 or not f.numel():
                raise ValueError(f"probabilities {tuple(f.shape)} instead of three corners")
            return Answers(float(side["cmi"]), float(side["accuracy"]), f.T)

        first, second, third = map(str, content["corners"])
        return cls(
            (first, second, third),
            float(content["temperature"]),
            unpacked(content["before"]),
            unpacked(content["after"]),
        )


@torch.no_grad()
def most_raised_class(
    network: nn.Module,
    data: LabelledImages,
    load: Callable[[Any], Iterable[Any]],
    transform: Callable[[Tensor], Tensor],
    before: CMI,
    after: CMI,
    temperature: float = 1.0,
    precision: str = "float32",
) -> OneClass | None:
    """The predictions of ``network`` for samples of the class whose CMI rises most.

    ``None`` with fewer than three classes.  Takes one pass over the samples.  In a process group
    one process may call this alone.

    Args:
        load: a part of ``data`` -> its batches in stored order, which begin with normalised images
            (B, 3, H, W).
        transform: maps the images to what the network sees behind the lens.
        before, after: CMI on ``data`` without and with the lens.
    """
    if len(data.classes) < 3:
        return None
    gain = after.per_class - before.per_class
    label = int(gain.masked_fill(after.counts == 0, -torch.inf).argmax())
    members = (data.labels == label).nonzero().flatten()
    spread = torch.linspace(0, len(members) - 1, min(SAMPLES, len(members))).long()
    batches = Batches(load(data.select(members[spread])), labels=False)
    both = predictions(network, batches, len(data.classes), (None, transform), precision)
    f = [(torch.stack(logits) / temperature).softmax(2).cpu() for logits, *_ in both]  # (2, B, C)
    plain, lensed = torch.cat(f, dim=1)
    rivals = lensed.mean(0)
    rivals[label] = -1
    corners = [label, *rivals.topk(2).indices.tolist()]

    def answers(f: Tensor, cmi: CMI) -> Answers:
        return Answers(
            cmi.per_class[label].item(),
            100 * (f.argmax(1) == label).double().mean().item(),
            f[:, corners].double(),
        )

    first, second, third = (data.classes[corner] for corner in corners)
    names = (first, second, third)
    return OneClass(names, temperature, answers(plain, before), answers(lensed, after))
