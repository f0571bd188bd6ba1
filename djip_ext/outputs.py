"""What networks take and return: their device, and where the logits are."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .errors import DJIPError


def device_of(network: nn.Module) -> torch.device | None:
    """Where ``network`` takes its images: where its first parameter lies; None without parameters."""
    return next((parameter.device for parameter in network.parameters()), None)


def logits_of(output: Any) -> Tensor:
    """The logits (B, C) in a network's output: a tensor, a tuple that starts with it, or an object with ``.logits``."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, dict) and "logits" in logits:
        logits = logits["logits"]
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise DJIPError(
            f"the teacher returned {type(output).__name__}; a lens needs logits (B, C): a tensor, (logits, ...) or an object with .logits"
        )
    return logits


def divide_logits(output: Any, by: float) -> Any:
    """A network's output with its logits divided and all else as it was; what :func:`logits_of` finds no logits in is refused."""
    logits = logits_of(output) / by
    if isinstance(output, torch.Tensor):
        return logits
    if hasattr(output, "_replace"):  # a named tuple
        return output._replace(**{"logits" if "logits" in output._fields else output._fields[0]: logits})
    if hasattr(output, "logits"):
        output = copy.copy(output)
        output.logits = logits
        return output
    if isinstance(output, dict):
        return {**output, "logits": logits}
    return type(output)((logits, *output[1:]))
