"""Answers of which only the largest entries of each row are kept."""

from collections.abc import Callable

import torch
from torch import Tensor


def of_largest(x: Tensor, count: int, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """``weights`` of the ``count`` largest entries of each row of ``x`` (B, C), 0 elsewhere.

    Args:
        count: at least 1; more than C keeps all.
        weights: maps the kept entries (B, count), the largest first, to values of that shape.
    """
    kept = x.topk(min(count, x.shape[1]), dim=1)
    return torch.zeros_like(x).scatter(1, kept.indices, weights(kept.values))
