"""How images are prepared for a network: its size, scale and crop."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class InputSpec:
    """What a network expects of its images.

    Attributes:
        mean, std: the normalisation, in units of [0, 1] pixels.
        size: (H, W) that the network sees.
        resize: the shorter side before the central crop to ``size``, or (H, W) to stretch the whole image to.
        interpolation: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        origin: where this was read, for the user.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int]
    resize: int | tuple[int, int]
    interpolation: str = "bilinear"
    origin: str = "ImageNet's usual"

    def at(self, side: int) -> "InputSpec":
        """The same for square images of another ``side``, with the crop in proportion."""
        resize = (
            side * self.resize // self.size[0] if isinstance(self.resize, int) else (side, side)
        )
        return replace(self, size=(side, side), resize=resize)

    def __str__(self) -> str:
        height, width = self.size
        crop = (
            f"cut from a shorter side of {self.resize}"
            if isinstance(self.resize, int)
            else "of the whole image"
        )
        mean, std = (
            ", ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std)
        )
        return f"{height}x{width} {crop}, {self.interpolation}, mean ({mean}), std ({std}) [{self.origin}]"


IMAGENET = InputSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224), 256)
