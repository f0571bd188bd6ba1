"""How a teacher does on a data set, as it is or through a lens: CMI, cross entropy, accuracy."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.metrics.cmi import CMI, ClassStatistics
from djip_ext.metrics.predictions import predictions
from djip_ext.utils.distributed import sum_all


@dataclass(frozen=True)
class Measurement:
    """How a network does on a set of images.

    Attributes:
        cmi: the full statistics.
        ce: cross entropy in nats at T = 1.
        accuracy: top-1, in percent.
    """

    cmi: CMI
    ce: float
    accuracy: float

    def summary(self) -> dict[str, float]:
        """The numbers of a report: CMI, NCMI, CE in nats and accuracy in percent."""
        return {
            "cmi": self.cmi.total,
            "ncmi": self.cmi.ncmi,
            "ce": self.ce,
            "accuracy": self.accuracy,
        }


@torch.no_grad()
def measure(
    network: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    transform: Callable[[Tensor], Tensor] | None = None,
    temperature: float = 1.0,
    precision: str = "float32",
    keep_ln_f: Callable[[Tensor, Tensor], None] | None = None,
) -> Measurement:
    """Measure ``network`` (in the mode it is in) in one pass over ``loader``.

    In a process group all processes call this together, each with its share of the data, and get
    the numbers of the whole.

    Args:
        loader: batches that begin with normalised images (B, 3, H, W) and labels (B,).
        transform: maps the images to what the network sees, for example by a lens; ``None``: the
            images as they are.
        temperature: of the CMI.
        precision: of the network, "float32" or "bfloat16".
        keep_ln_f: called with (index, log probabilities (B, C)) for every batch that carries its
            indices third.

    Raises:
        DJIPError: an empty loader, NaN logits, labels or logits that do not fit ``num_classes``.
    """
    statistics = ClassStatistics(num_classes, temperature)
    count = 0
    # Sums stay on the device and are read once, at the end.
    ce = torch.zeros((), dtype=torch.float64)
    hits = torch.zeros((), dtype=torch.int64)
    seen = predictions(network, loader, num_classes, (transform,), precision)
    for (logits,), label, index in seen:
        statistics.update(logits, label)
        label = label.clamp(0, num_classes - 1)  # others end in an error, when they are next read
        ce = ce.to(logits.device) + F.cross_entropy(logits, label, reduction="sum")
        hits = hits.to(logits.device) + (logits.argmax(1) == label).sum()
        count += len(label)
        if keep_ln_f is not None:
            if index is None:
                raise DJIPError(
                    "the literal variant needs each batch to carry its images' indices third; add "
                    "them or use variant='fresh'"
                )
            keep_ln_f(index, torch.log_softmax(logits / temperature, dim=1))
    result = statistics.gather().result()
    sums = torch.stack([ce.double(), hits.double(), torch.full_like(hits, count).double()])
    ce_sum, hit_sum, total = sum_all(sums).tolist()
    return Measurement(result, ce_sum / total, 100 * hit_sum / total)
