"""Between a network's normalised input and pixels in [0, 255]."""

from collections.abc import Sequence

import torch
from torch import Tensor

from djip_ext.errors import DJIPError
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.straight_through import StraightThroughLens

Triple = tuple[float, float, float]

# (mean, std) with which the loaders of the benchmarks normalise, by ``DATASET.TYPE``.
NORMALISATIONS: dict[str, tuple[Triple, Triple]] = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "synthetic": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}


class Normalisation:
    """(pixel / 255 - mean) / std per channel, and back, in float32 (float64 stays).

    Args:
        mean, std: three numbers each, in units of [0, 1] pixels, as torchvision's ``Normalize``
            takes them.

    Raises:
        DJIPError: not three numbers, or a std that is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = tuple(float(m) for m in mean)
        self.std = tuple(float(s) for s in std)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise DJIPError(
                f"mean {self.mean} and std {self.std} must be three numbers each, std positive, "
                "for images in [0, 1]"
            )
        if max(self.std) > 2 or max(self.mean) > 2:
            raise DJIPError(
                f"mean {self.mean} and std {self.std} look like [0, 255] units; divide them by 255"
            )

    def to_pixels(self, x: Tensor) -> Tensor:
        """Normalised (B, 3, H, W) -> [0, 255]."""
        mean, std = self._columns(x)
        return torch.addcmul(255 * mean, x if x.dtype == torch.float64 else x.float(), 255 * std)

    def to_network(self, pixels: Tensor) -> Tensor:
        """[0, 255] (B, 3, H, W) -> normalised."""
        mean, std = self._columns(pixels)
        return (pixels - 255 * mean) / (255 * std)

    def through(self, lens: JPEGLens | StraightThroughLens, x: Tensor) -> Tensor:
        """Apply ``lens`` to normalised images (B, 3, H, W); the result is normalised, as x's dtype.

        Undoing and redoing the normalisation is part of the lens's kernel.

        Raises:
            DJIPError: images that are no floats (B, 3, H, W).
        """
        gain = [255 * s for s in self.std]
        offset = [255 * m for m in self.mean]
        seen: Tensor = lens(x, gain=gain, offset=offset)
        return seen.to(x.dtype)

    def _columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        columns = torch.tensor([self.mean, self.std], dtype=dtype, device=x.device)
        columns = columns[:, :, None, None]
        return columns[0], columns[1]
