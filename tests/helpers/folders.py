"""A tiny ImageFolder on the disk."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_folders(
    root: Path, classes: int = 3, train: int = 4, val: int = 2, size: tuple[int, int] = (40, 30)
) -> Path:
    """``root``/train and ``root``/val with smooth random images of (width, height) ``size``; class c is a tint."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:04d}"
            folder.mkdir(parents=True)
            for i in range(count):
                noise = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
                    size, Image.Resampling.BICUBIC
                )
                pixels = np.asarray(noise, dtype=float) * 0.5
                pixels[..., label % 3] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root
