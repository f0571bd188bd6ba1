"""A teacher that only answers: images in, logits, probabilities or the largest few of them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.utils.networks import logits_of

LEAST = 1e-8  # what a probability of zero is taken for; services round to some digits


class ClosedTeacher(nn.Module):
    """A callable as a network: an ONNX Runtime session, a compiled module, a service behind HTTP.

    It has no gradient, and no weights but those of a module that is given as ``ask``.  All that
    works with a network's logits alone works with it:
    :func:`djip_ext.fit_lens` with ``gradients=False``, :class:`djip_ext.DJIPTeacher`, measurements,
    and the benchmark's kept answers (``BENCH.VIEWS``).

    Args:
        ask: called with normalised images (B, 3, H, W); returns what ``answers`` says, (B, C), as a
            tensor, an array or nested lists, alone or first in a tuple or as ``.logits``.
            Probabilities may be the k largest only: a pair (probabilities, classes), both (B, k).
        num_classes: C.
        answers: what comes back.
        name: tells this teacher from others, in the place of a hash of weights: a lens fitted for
            one name is refused by a teacher of another, and answers are kept under it.  Put the
            version of a service into it.

    Probabilities become logits by ln f, with f no less than 1e-8.  Of the k largest, the rest
    1 - sum is spread evenly over the other classes; CMI is then what these spread answers have, and
    less than that of the true ones.

    Attributes:
        queries: images that were sent so far.

    Shape: images (B, 3, H, W) -> float32 logits (B, C) on the images' device.

    Raises:
        DJIPError: answers of another shape, probabilities outside of [0, 1] or with another sum
        than
            1, logits that are probabilities.

    Example:
        >>> teacher = ClosedTeacher(lambda images: torch.full((len(images), 4), 0.25), 4,
        ...                         answers="probabilities", name="undecided")
        >>> teacher(torch.zeros(2, 3, 8, 8)).softmax(1)[0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    ask: Callable[[Tensor], Any]

    def __init__(
        self,
        ask: Callable[[Tensor], Any],
        num_classes: int,
        answers: Literal["logits", "probabilities"] = "logits",
        name: str = "",
    ) -> None:
        super().__init__()
        if answers not in ("logits", "probabilities"):
            raise DJIPError(f"answers is '{answers}'; choose logits or probabilities")
        self.ask, self.num_classes, self.answers = ask, num_classes, answers
        self.name = name or getattr(ask, "__qualname__", type(ask).__name__)
        self.queries = 0
        # In the state, so that the hash of the state tells teachers apart.
        self.register_buffer("about", torch.tensor(list(f"{answers} {self.name}".encode())))

    def forward(self, images: Tensor) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            raise DJIPError(
                f"{self.name} is closed and has no gradient; fit its lens with gradients=False "
                "(djip fit --black-box)"
            )
        with torch.no_grad():
            return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        self.queries += len(images)
        answer = self.ask(images)
        if self.answers == "logits":
            logits = self._whole(answer, images)
            if len(logits) and bool((logits >= 0).all()) and _sums_to_one(logits):
                raise DJIPError(
                    f"the answers of {self.name} are probabilities, not logits; "
                    "say answers='probabilities'"
                )
            return logits
        if isinstance(answer, (tuple, list)) and len(answer) == 2 and _integral(answer[1]):
            return self._spread(answer[0], answer[1], images).clamp_min(LEAST).log()
        f = self._whole(answer, images)
        if not _in_unit(f) or not _sums_to_one(f):
            raise DJIPError(
                f"the answers of {self.name} are no probabilities: rows sum to "
                f"{f.sum(1).min():.3g} .. {f.sum(1).max():.3g}; are they logits?"
            )
        return f.clamp_min(LEAST).log()

    def _whole(self, answer: Any, images: Tensor) -> Tensor:
        answer = getattr(answer, "logits", answer)
        if not isinstance(answer, Tensor):
            answer = answer[0] if isinstance(answer, tuple) and len(answer) else answer
            answer = _tensor(answer) if not isinstance(answer, dict) else answer
        logits = logits_of(answer).to(images.device, torch.float32)
        if logits.shape != (len(images), self.num_classes):
            raise DJIPError(
                f"{self.name} answers {tuple(logits.shape)} to {len(images)} images of "
                f"{self.num_classes} classes; it must be one row per image, one column per class"
            )
        return logits

    def _spread(self, values: Any, classes: Any, images: Tensor) -> Tensor:
        """The k largest probabilities and their classes -> (B, C), the rest spread evenly."""
        top = _tensor(values).to(images.device, torch.float32)
        classes = _tensor(classes).to(images.device).long()
        known = classes.dim() == 2 and bool(((classes >= 0) & (classes < self.num_classes)).all())
        if top.shape != classes.shape or len(top) != len(images) or not known:
            raise DJIPError(
                f"{self.name} answers probabilities {tuple(top.shape)} of classes "
                f"{tuple(classes.shape)}; both must be (images, k), classes in 0 .. C - 1"
            )
        if not _in_unit(top) or bool((top.sum(1) > 1.01).any()):
            raise DJIPError(
                f"the largest answers of {self.name} sum to {top.sum(1).max():.3g}; "
                "they must be probabilities"
            )
        rest = (1 - top.sum(1, keepdim=True)).clamp_min(0)
        others = max(1, self.num_classes - top.shape[1])
        return (rest / others).expand(-1, self.num_classes).scatter(1, classes, top)


def only_answers(network: nn.Module) -> bool:
    """Whether ``network`` is, or holds, a teacher that only answers."""
    return any(isinstance(module, ClosedTeacher) for module in network.modules())


def _tensor(values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DJIPError(
            f"the teacher returned {type(values).__name__}; a lens needs numbers (B, C)"
        ) from error


def _integral(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point()
    return not _tensor(values).is_floating_point()


def _in_unit(f: Tensor) -> bool:
    return bool(((f >= -1e-6) & (f <= 1 + 1e-3)).all())


def _sums_to_one(f: Tensor) -> bool:
    return bool(((f.sum(1) - 1).abs() < 0.01).all())
