"""How images are prepared for a network: its size, scale and crop."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from djip_ext.errors import DJIPError


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of its images.

    Attributes:
        mean, std: the normalisation, in units of [0, 1] pixels.
        size: (H, W) that the network sees.
        resize: the shorter side before the central crop to ``size``, or (H, W) to stretch the whole
            image to.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        origin: where this was read, for the user.
        train_view: how training images are augmented: "crop", a random part of random size, or
            "rotation", by up to 20 degrees; both also flip.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int]
    resize: int | tuple[int, int]
    interpolation: str = "bilinear"
    origin: str = "ImageNet's usual"
    train_view: str = "crop"

    def at(self, side: int) -> "InputSpec":
        """The same for square images of another ``side``, with the crop in proportion."""
        if isinstance(self.resize, int):
            return replace(self, size=(side, side), resize=side * self.resize // self.size[0])
        return replace(self, size=(side, side), resize=(side, side))

    def __str__(self) -> str:
        height, width = self.size
        crop = "of the whole image"
        if isinstance(self.resize, int):
            crop = f"cut from a shorter side of {self.resize}"
        mean = ", ".join(f"{number:g}" for number in self.mean)
        std = ", ".join(f"{number:g}" for number in self.std)
        return (
            f"{height}x{width} {crop}, {self.interpolation}, mean ({mean}), std ({std}) "
            f"[{self.origin}]"
        )


def triple(numbers: Sequence[float]) -> tuple[float, float, float]:
    """Means or standard deviations, one per channel; raises DJIPError for another count."""
    if len(numbers) != 3:
        raise DJIPError(
            f"a normalisation takes three means and three standard deviations, not "
            f'{list(numbers)}; for example BENCH.MEAN "[0.5, 0.5, 0.5]"'
        )
    red, green, blue = map(float, numbers)
    return red, green, blue


IMAGENET = InputSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224), 256)
TINY_IMAGENET = InputSpec(
    (0.4802, 0.4481, 0.3975),
    (0.2302, 0.2265, 0.2262),
    (64, 64),
    64,
    origin="Tiny ImageNet's, as in mdistiller",
    train_view="rotation",
)
