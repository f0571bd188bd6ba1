"""Random crop and flip for a whole batch at once, on the device that holds the images."""

import torch
from torch import Tensor


def crop_and_flip(padded: Tensor, index: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut a random window out of each chosen image and mirror half of them.

    The law is that of ``RandomCrop(size, padding)`` followed by ``RandomHorizontalFlip()``; one gather does both.

    Shape: padded uint8 (N, size + 2p, size + 2p, C), index int64 (B,) -> uint8 (B, size, size, C).
    The random numbers come from ``generator`` (on the CPU), so a run does not depend on the device.
    """
    count, device = len(index), padded.device
    shifts = padded.shape[1] - size + 1
    top = torch.randint(shifts, (count, 1), generator=generator)
    left = torch.randint(shifts, (count, 1), generator=generator)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    line = torch.arange(size)
    rows = (top + line).to(device)
    columns = (left + torch.where(mirrored, line.flip(0), line)).to(device)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
