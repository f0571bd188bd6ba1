"""Random crop and flip for a whole batch at once, on the device that holds the images."""

import torch
from torch import Tensor


def draw(count: int, shifts: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw random crops and flips for ``count`` images.

    The numbers come from ``generator`` on the CPU, so a run does not depend on the device.

    Returns:
        top and left in [0, shifts), and whether to mirror; (count, 1) each.
    """
    top = torch.randint(shifts, (count, 1), generator=generator)
    left = torch.randint(shifts, (count, 1), generator=generator)
    return top, left, torch.rand(count, 1, generator=generator) < 0.5


def crop_and_flip(
    padded: Tensor, index: Tensor, size: int, top: Tensor, left: Tensor, mirrored: Tensor
) -> Tensor:
    """Cut a window out of each chosen image and mirror some of them.

    With :func:`draw` the result is distributed as ``RandomCrop(size, padding)`` followed by
    ``RandomHorizontalFlip()``; one gather does both.

    Shape:
        padded uint8 (N, size + 2p, size + 2p, C), index int64 (B,), the rest (B, 1) -> uint8
        (B, size, size, C).
    """
    line = torch.arange(size)
    rows = (top + line).to(padded.device, non_blocking=True)
    columns = (left + torch.where(mirrored, line.flip(0), line)).to(
        padded.device, non_blocking=True
    )
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]]
