"""A tiny ImageFolder and a tiny Hugging Face network on the disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


def make_folders(
    root: Path, classes: int = 3, train: int = 4, val: int = 2, size: tuple[int, int] = (40, 30)
) -> Path:
    """Write ``root``/train and ``root``/val: smooth random images of (width, height) ``size``.

    Class c is a tint.
    """
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


def hf_folder(root: Path, weights: bool = True, **processor: object) -> str:
    """Write a two-layer ViT, five classes, 32x32 images, for transformers; return its name."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    torch.manual_seed(0)
    folder = root / "tinyvit"
    if weights:
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    config.save_pretrained(folder)
    transformers.ViTImageProcessor(
        **{"size": {"height": 32, "width": 32}, **processor}
    ).save_pretrained(folder)
    return f"hf:{folder}"
