"""What networks take and return: their device, and where the logits are."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError


def device_of(network: nn.Module) -> torch.device | None:
    """The device on which ``network`` takes its images, that of its first parameter.

    ``None`` without parameters.
    """
    return next((parameter.device for parameter in network.parameters()), None)


def logits_of(output: Any) -> Tensor:
    """The logits (B, C) in a network's output.

    The output is a tensor, a tuple that starts with it, or an object or dictionary with ``logits``.

    Raises:
        DJIPError: it is none of these.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, dict) and "logits" in logits:
        logits = logits["logits"]
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise DJIPError(
            f"the teacher returned {type(output).__name__}; a lens needs logits (B, C): a tensor, "
            "(logits, ...) or an object with .logits"
        )
    return logits


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a network; ``precision`` is "float32" (no autocast) or "bfloat16".

    Raises:
        DJIPError: another precision.
    """
    if precision not in ("float32", "bfloat16"):
        raise DJIPError(f"the precision is '{precision}'; choose float32 or bfloat16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def divide_logits(output: Any, by: float) -> Any:
    """A network's output with its logits divided and all else as it was.

    Raises:
        DJIPError: as :func:`logits_of`.
    """
    logits = logits_of(output) / by
    if isinstance(output, torch.Tensor):
        return logits
    if hasattr(output, "_replace"):  # a named tuple
        name = "logits" if "logits" in output._fields else output._fields[0]
        return output._replace(**{name: logits})
    if hasattr(output, "logits"):
        output = copy.copy(output)
        output.logits = logits
        return output
    if isinstance(output, dict):
        return {**output, "logits": logits}
    return type(output)((logits, *output[1:]))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no weight gradients inside; modes and flags as before afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
