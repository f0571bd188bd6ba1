"""The linear parts of JPEG: colour, 8x8 blocks, DCT (ITU-T T.81 and T.871).

All are float32 matrix products, and all are invertible.

Coefficients stay in image layout: entry (v, u) of a block sits where pixel (v, u) of that block
was.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8

# BT.601, full range: Y = .299 R + .587 G + .114 B, Cb = (B - Y) / 1.772, Cr = (R - Y) / 1.402
_Y = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
RGB_TO_YCBCR = torch.stack(
    [
        _Y,
        (torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) - _Y) / 1.772,
        (torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64) - _Y) / 1.402,
    ]
)
YCBCR_TO_RGB = torch.linalg.inv(RGB_TO_YCBCR)


def dct_matrix() -> Tensor:
    """The orthonormal DCT-II of length 8 as a float64 matrix.

    D[k, n] = c_k cos(pi k (2 n + 1) / 16)
    """
    k, n = torch.meshgrid(torch.arange(BLOCK), torch.arange(BLOCK), indexing="ij")
    matrix = torch.cos(math.pi * k.double() * (2 * n + 1) / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix


def mix_channels(x: Tensor, matrix: Tensor, out: Tensor | None = None) -> Tensor:
    """Apply a 3x3 ``matrix`` to the three channels of x (B, 3, ...)."""
    matrix = matrix.to(x)
    if torch.compiler.is_compiling():  # fuses with what stands around it
        mixed = torch.stack(
            [x[:, 0] * row[0] + x[:, 1] * row[1] + x[:, 2] * row[2] for row in matrix], dim=1
        )
        return mixed if out is None else out.copy_(mixed)
    flat = x.flatten(2)
    return torch.bmm(
        matrix.expand(len(x), 3, 3), flat, out=None if out is None else out.view(flat.shape)
    ).view(x.shape)


def block_dct(x: Tensor, out: Tensor | None = None, between: Tensor | None = None) -> Tensor:
    """The 8x8 DCT-II of every block of x (B, C, H, W); H and W must be multiples of 8.

    ``out`` and ``between`` are buffers of the same shape for the result and for what is in between.
    """
    matrix, pair = _factors(x.dtype, x.device)
    return _separable(x, matrix, pair, out, between)


def block_idct(z: Tensor, out: Tensor | None = None, between: Tensor | None = None) -> Tensor:
    """The inverse of :func:`block_dct`."""
    matrix, pair = _factors(z.dtype, z.device)
    return _separable(z, matrix.T, pair.T, out, between)


@lru_cache
def _factors(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """M, and M^T twice on a diagonal: sixteen numbers in a row make a better matmul than eight."""
    with torch.inference_mode(False):  # whoever asks first must not make them unfit for training
        matrix = dct_matrix().to(device, dtype)
        pair: Tensor = torch.block_diag(matrix.T, matrix.T)  # type: ignore[no-untyped-call]
        return matrix, pair


def _separable(
    x: Tensor, matrix: Tensor, pair: Tensor, out: Tensor | None, between: Tensor | None
) -> Tensor:
    """M x M^T for every 8x8 block of x (B, C, H, W), without a permuted copy."""
    strips = x.reshape(-1, BLOCK, x.shape[3])
    strips = torch.bmm(
        matrix.expand(len(strips), BLOCK, BLOCK),
        strips,
        out=None if between is None else between.view(strips.shape),
    )
    pairs = strips.view(-1, len(pair))
    return torch.mm(pairs, pair, out=None if out is None else out.view(pairs.shape)).view(x.shape)


def pad_to_blocks(x: Tensor) -> Tensor:
    """Repeat the last row and column of x (B, C, H, W) until H and W are multiples of 8."""
    bottom, right = -x.shape[2] % BLOCK, -x.shape[3] % BLOCK
    return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def rgb_to_coefficients(x: Tensor) -> Tensor:
    """RGB (B, 3, H, W) in [0, 255] -> YCbCr DCT coefficients, 4:4:4, level-shifted by 128.

    H and W must be multiples of 8.
    """
    return block_dct(mix_channels(x - 128, RGB_TO_YCBCR))


def coefficients_to_rgb(z: Tensor) -> Tensor:
    """The inverse of :func:`rgb_to_coefficients`; not clamped to [0, 255]."""
    return mix_channels(block_idct(z), YCBCR_TO_RGB) + 128
