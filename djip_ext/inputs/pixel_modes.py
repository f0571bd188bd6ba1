"""Any image that Pillow opens -> eight bits of red, green and blue."""

import numpy as np
from PIL import Image

from djip_ext.errors import DJIPError

# Formats whose "I" holds sixteen bits: older versions of Pillow open 16-bit grey files so.
_SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")

# What Pillow raises for damaged files (a broken PNG is a SyntaxError), and for huge ones.
UNREADABLE = (OSError, SyntaxError, DJIPError, Image.DecompressionBombError)


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` as RGB of eight bits.

    Sixteen bits are scaled by 1 / 257 and rounded, where Pillow's own conversion clips at 255.
    Alpha is dropped, as torchvision's loader does. Everything else is Pillow's conversion.

    Raises:
        DJIPError: pixels of an unknown range (mode I or F of a TIFF), or a colour space that Pillow
            cannot convert (La).
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SIXTEEN_BITS):
        pixels = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    elif image.mode in ("I", "F"):
        low, high = image.getextrema()
        raise DJIPError(
            f"its pixels are numbers from {low} to {high}, whose range is unknown (mode "
            f"{image.mode}); save it with 8 or 16 bits a channel"
        )
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DJIPError(
            f"Pillow cannot convert mode {image.mode} to RGB ({error}); save it as RGB"
        ) from error
