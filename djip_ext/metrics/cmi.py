r"""Conditional mutual information of a classifier, class by class, in one streaming pass.

With f_x = softmax(logits / T) and the class centre S_y = E[f_X | Y = y] (DJIP, ICLR 2026; CMIC-DL,
arXiv 2309.09123):

    I(X; Yhat | Y = y) = E[ sum_i f_X[i] ln(f_X[i] / S_y[i]) | Y = y ]
                       = E[ sum_i f ln f | y ] - sum_i S_y ln S_y
    CMI   = sum_y P(y) I(X; Yhat | Y = y)                  concentration within the classes
    Gamma = E[ -sum_i f_X[i] ln f_U[i] | Y_X != Y_U ]      separation between the classes
    NCMI  = CMI / Gamma

The second form of I needs no second pass.  All sums are float64; all quantities are in nats.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from djip_ext.errors import DJIPError
from djip_ext.utils.distributed import sum_all

FLOOR = 1e-12  # of a centre's entry, inside a logarithm


@dataclass(frozen=True)
class CMI:
    """Conditional mutual information and what it was made from (float64, on the CPU).

    Attributes:
        total: CMI in nats, weighted by how often each class occurred.
        per_class: (C,) nats; 0 for a class without samples.
        gamma: inter-class separation in nats; nan with fewer than two classes.
        centres: (C, C); row y is S_y, uniform for a class without samples.
        counts: (C,) samples of each class.
    """

    total: float
    per_class: Tensor
    gamma: float
    centres: Tensor
    counts: Tensor

    @property
    def ncmi(self) -> float:
        """CMI / Gamma; nan where Gamma is nan or 0."""
        return self.total / self.gamma if self.gamma else float("nan")


class ClassStatistics:
    """The sums that CMI needs; memory C x C whatever the number of samples.

    Args:
        num_classes: C.
        temperature: T > 0, dividing the logits.
    """

    SUMS = ("counts", "sum_f", "sum_ln_f", "sum_f_ln_f", "faults")

    def __init__(self, num_classes: int, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise DJIPError(f"the temperature is {temperature}; it must be positive")
        self.num_classes = num_classes
        self.temperature = temperature
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        # By class: the sum of f, that of ln f, and that of f ln f over samples and i.
        self.sum_f = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self.sum_ln_f = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self.sum_f_ln_f = torch.zeros(num_classes, dtype=torch.float64)
        # Numbers that are not finite, labels out of range.
        self.faults = torch.zeros(2, dtype=torch.float64)
        self.batches = 0

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        The values are checked after the first, second, fourth, eighth, ... batch and by
        :meth:`result`, since every check synchronises with the device.

        Shape: logits (B, C), any float dtype; labels int (B,) in [0, C).

        Raises:
            DJIPError: logits that are not (B, C), labels that are no integers or out of range, NaN
                or infinite logits.
        """
        check_shapes(logits, labels, self.num_classes)
        device = logits.device
        if self.counts.device != device:
            for name in self.SUMS:
                setattr(self, name, getattr(self, name).to(device))
        labels = labels.long()
        known = labels.clamp(0, self.num_classes - 1)  # a GPU would crash on others
        self.faults += torch.stack([(~torch.isfinite(logits)).sum(), (labels != known).sum()])
        ln_f = torch.log_softmax(logits.double() / self.temperature, dim=1)
        f = ln_f.exp()
        self.counts.index_add_(0, known, torch.ones_like(f[:, 0]))
        self.sum_f.index_add_(0, known, f)
        self.sum_ln_f.index_add_(0, known, ln_f)
        self.sum_f_ln_f.index_add_(0, known, (f * ln_f).sum(1))
        self.batches += 1
        if self.batches & (self.batches - 1) == 0:
            self._check()

    def _check(self) -> None:
        not_finite, unknown = self.faults.tolist()
        if unknown:
            raise DJIPError(
                f"{int(unknown)} labels lie outside of 0 .. {self.num_classes - 1}, but "
                f"num_classes is {self.num_classes}"
            )
        if not_finite:
            raise DJIPError(
                "the teacher's logits hold NaN or infinity; check its checkpoint and its precision "
                "(float32 is safest)"
            )

    def gather(self) -> "ClassStatistics":
        """Add up the sums of all processes, so that each holds those of the whole set.

        All processes must call it, once.  Returns itself.
        """
        for name in self.SUMS:
            setattr(self, name, sum_all(getattr(self, name)))
        return self

    def result(self) -> CMI:
        """The statistics of all batches so far.

        Raises:
            DJIPError: there was none, or as :meth:`update`.
        """
        self._check()
        counts = self.counts.cpu()
        sum_f = self.sum_f.cpu()
        sum_ln_f = self.sum_ln_f.cpu()
        samples = counts.sum()
        if samples == 0:
            raise DJIPError("CMI of no samples; is the loader empty?")
        n = counts.clamp_min(1)
        centres = sum_f / n[:, None]
        centres[counts == 0] = 1 / self.num_classes
        entropy = (centres * centres.clamp_min(FLOOR).log()).sum(1)
        # Never negative by Jensen's inequality; the clamp only removes the last rounding.
        per_class = torch.where(counts > 0, self.sum_f_ln_f.cpu() / n - entropy, 0.0).clamp_min(0)
        pairs = samples**2 - counts.square().sum()
        across = sum_f.sum(0) @ sum_ln_f.sum(0) - (sum_f * sum_ln_f).sum()
        gamma = (-across / pairs).item() if pairs > 0 else float("nan")
        total = (per_class * counts / samples).sum().item()
        return CMI(total, per_class, gamma, centres, counts.long())

    def entropy(self) -> float:
        """Mean entropy of the predictions so far, E[-sum_i f_X[i] ln f_X[i]], in nats.

        Raises:
            DJIPError: as :meth:`result`.
        """
        self._check()
        samples = self.counts.sum().item()
        if samples == 0:
            raise DJIPError("the entropy of no samples; is the loader empty?")
        return -self.sum_f_ln_f.sum().item() / samples


def conditional_mutual_information(
    logits: Tensor, labels: Tensor, num_classes: int, temperature: float = 1.0
) -> CMI:
    """CMI of a whole set of logits (N, C) with labels (N,), in nats.

    See :class:`CMI` and :class:`ClassStatistics`.

    Example:
        >>> conditional_mutual_information(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]), 2).total
        0.0
    """
    statistics = ClassStatistics(num_classes, temperature)
    statistics.update(logits, labels)
    return statistics.result()


def check_shapes(logits: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise DJIPError unless logits are (B, num_classes) and labels (B,), no floats."""
    if logits.dim() != 2 or logits.shape[1] != num_classes or labels.shape != logits.shape[:1]:
        raise DJIPError(
            f"the teacher gives logits {tuple(logits.shape)} for labels {tuple(labels.shape)}, but "
            f"num_classes is {num_classes}; use the number of classes that the teacher was trained "
            "for"
        )
    if labels.is_floating_point() or labels.is_complex():
        raise DJIPError(
            f"the labels are {labels.dtype}; give class numbers, integers (B,), by labels.long()"
        )
