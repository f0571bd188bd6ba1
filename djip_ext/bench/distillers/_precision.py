"""Losses in full precision, whatever autocast the training step runs under."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` with autocast off and its half-precision arguments cast to float32.

    Sums over thousands of products, exponentials and small differences lose their meaning in
    bfloat16. float32 and float64 tensors pass as they are; tensors in lists and tuples count as
    arguments.
    """

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [*args, *kwargs.values()]
        with torch.autocast(_first_tensor(values).device.type, enabled=False):
            return function(
                *_widened(args), **{name: _widened(value) for name, value in kwargs.items()}
            )

    return wrapped


def _first_tensor(values: list[Any]) -> Tensor:
    items = (
        item for value in values for item in (value if isinstance(value, list | tuple) else [value])
    )
    return next(item for item in items if isinstance(item, Tensor))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, list | tuple):
        return type(value)(_widened(item) for item in value)
    return value
