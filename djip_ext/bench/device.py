"""The device that ``BENCH.DEVICE`` names."""

import torch

from djip_ext.errors import DJIPError


def resolve_device(name: str) -> torch.device:
    """Resolve ``auto`` to a GPU when there is one and to the CPU otherwise, anything else as torch.

    Raises:
        DJIPError: the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise DJIPError(
            f"BENCH.DEVICE is '{name}', which this machine or this torch lacks; choose auto or cpu"
        ) from error
