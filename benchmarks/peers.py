"""Other JPEG layers under one interface: of pip, of a checkout, and a plain stand-in for JPEG-DL's.

A peer is built for a batch size and an image size and maps images in [0, 255] (B, 3, H, W) to
images; its ``tables`` are the quantization tables that gradients go to.  kornia, Diff-JPEG and
DiffJPEG halve the colour resolution, round by polynomials and have no sharpness: they do less work
than the lens.
"""

import contextlib
import importlib
import io
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from djip_ext import JPEGLens
from djip_ext.lens.initial_tables import standard_jpeg
from djip_ext.ops.dct import coefficients_to_rgb, rgb_to_coefficients

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Peer:
    """A layer.

    Attributes:
        apply: images -> images.
        tables: its quantization tables; empty for a codec without gradients.
    """

    apply: Callable[[Tensor], Tensor]
    tables: list[Tensor]


def lens(compiled: bool = False, **settings: object) -> Peer:
    """This project's lens.

    By default as it is fitted: exact sum, alpha tied to the step with kappa = 5, equal steps of 8.
    """
    made = JPEGLens(**({"q": 8.0, "kappa": 5.0} | settings)).to(DEVICE)
    if compiled:
        made.compile()
    return Peer(made, [made.q])


class PlainFiveBins(torch.nn.Module):
    """JPEG-DL's layer written down naively: a softmax over the five bins nearest to z / q."""

    def __init__(self, alpha: float = 5.0, max_index: int = 127) -> None:
        super().__init__()
        self.q = torch.nn.Parameter(torch.full((2, 8, 8), 8.0))
        self.alpha, self.max_index = alpha, max_index

    def forward(self, x: Tensor) -> Tensor:
        z = rgb_to_coefficients(x)
        q = self.q[[0, 1, 1]].repeat(1, x.shape[2] // 8, x.shape[3] // 8)[..., None]
        z = z[..., None]
        index = torch.round(z / q).detach() + torch.arange(-2.0, 3.0, device=x.device)
        bins = index.clamp(-self.max_index, self.max_index) * q
        weights = torch.softmax(-self.alpha * (z - bins).square(), dim=-1)
        return coefficients_to_rgb((weights * bins).sum(-1))


def plain_five_bins() -> Peer:
    layer = PlainFiveBins().to(DEVICE)
    return Peer(layer, [layer.q])


def kornia_codec(batch: int) -> Peer:
    from kornia.enhance import JPEGCodecDifferentiable

    luma, chroma = (table.requires_grad_() for table in standard_jpeg(50).to(DEVICE).clone())
    codec = JPEGCodecDifferentiable(luma, chroma)
    quality = torch.full((batch,), 50.0, device=DEVICE)
    return Peer(lambda x: codec(x / 255, quality) * 255, [luma, chroma])


def jpeg_dl(checkout: Path, size: int, alpha: float = 5.0, step: float = 8.0) -> Peer:
    """JPEG-DL's layer, from a checkout, as its CIFAR scripts set it: alpha fixed, five bins."""
    options = types.SimpleNamespace(
        num_bit=8,
        Q_inital=step,
        q_max=step,
        min_Q_Step=0.0,
        max_Q_Step=255,
        num_non_zero_q=5,
        JEPG_alpha=alpha,
        alpha_fixed=True,
        batch_size=1,
        block_size=8,
        jpeg_layers=1,
        model="none",
        dir_initial_abs_avg="",
        std_width_Y=1,
        std_width_CbCr=1,
        hardness=2,
        hardness_matching=False,
        alpha_scaling=False,
        zero_dc=False,
        JPEG_alpha_trainable=False,
        initial_Q_w_abs_avg=False,
        initial_Q_w_sensitivity=False,
    )
    with (
        _importing(checkout, "helper", "perc"),
        contextlib.redirect_stdout(io.StringIO()),
        tempfile.TemporaryDirectory() as folder,
    ):
        # It exits without these files, whatever the quantization tables are to be
        options.sensitvity_dir = f"{folder}/"
        for channel in ("Y", "Cb", "Cr"):
            np.save(f"{folder}/{channel}_none.npy", np.ones(64))
        layer = importlib.import_module("helper.JPEG_layer").JPEG_layer(options, (size, size))
    with torch.no_grad():
        layer.lum_qtable.fill_(step)
        layer.chrom_qtable.fill_(step)
    layer.to(DEVICE)
    return Peer(layer, [layer.lum_qtable, layer.chrom_qtable])


def diff_jpeg(checkout: Path, batch: int) -> Peer:
    with _importing(checkout, "diff_jpeg"):
        coding = importlib.import_module("diff_jpeg").diff_jpeg_coding
    luma, chroma = (table.requires_grad_() for table in standard_jpeg(50).to(DEVICE).clone())
    quality = torch.full((batch,), 50.0, device=DEVICE)
    return Peer(lambda x: coding(x, quality, luma, chroma), [luma, chroma])


def diffjpeg(checkout: Path, size: int) -> Peer:
    with _importing(checkout, "DiffJPEG", "modules", "utils"):
        codec = importlib.import_module("DiffJPEG").DiffJPEG(
            size, size, differentiable=True, quality=50
        )
        utils = importlib.import_module("utils")
    codec.to(DEVICE)
    return Peer(lambda x: codec(x / 255) * 255, [utils.y_table, utils.c_table])


def pillow() -> Peer:
    from PIL import Image

    def apply(x: Tensor) -> Tensor:
        decoded = []
        for image in x.byte().permute(0, 2, 3, 1).cpu().numpy():
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=50, subsampling=0)
            decoded.append(np.asarray(Image.open(file)))
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float()

    return Peer(apply, [])


def torchvision_codec() -> Peer:
    from torchvision.io import decode_jpeg, encode_jpeg

    def apply(x: Tensor) -> Tensor:
        images = x.byte().cpu()
        return torch.stack(
            [decode_jpeg(encode_jpeg(image, quality=50)) for image in images]
        ).float()

    return Peer(apply, [])


@contextlib.contextmanager
def _importing(checkout: Path, *names: str) -> Iterator[None]:
    """Import from ``checkout``; forget its top-level ``names`` afterwards, which are common."""
    if not checkout.is_dir():
        raise SystemExit(f"there is no checkout {checkout}")
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for module in [m for m in sys.modules if m.split(".")[0] in names]:
            del sys.modules[module]
