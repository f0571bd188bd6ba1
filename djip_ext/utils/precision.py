"""Networks in half precision: their images come in the dtype of their weights."""

from typing import Any

import torch
from torch import Tensor, nn

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weight_dtype(network: Any) -> torch.dtype | None:
    """The dtype of the first floating-point weight.

    ``None`` for a network without any, quantised say, and for a plain function.
    """
    weights = network.parameters() if isinstance(network, nn.Module) else ()
    return next((weight.dtype for weight in weights if weight.dtype in _FLOATS), None)


def in_dtype_of(network: Any, image: Tensor) -> Tensor:
    """The image as ``network`` takes it; as it is where autocast sees to that.

    Of a float64 image it does not: autocast leaves those alone.
    """
    dtype = weight_dtype(network)
    if dtype is None or dtype == image.dtype or not image.is_floating_point():
        return image
    is_cast = torch.is_autocast_enabled(image.device.type) and image.dtype != torch.float64
    return image if is_cast else image.to(dtype)
