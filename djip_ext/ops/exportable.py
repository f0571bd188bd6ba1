"""The soft lens as a plain graph of tensor operations, for torch.export, ONNX and torch.jit.trace.

:mod:`djip_ext.ops.fused` reads the values of the tables, keeps buffers between calls and is an
autograd function; a tracer can follow none of that. Here everything that depends on the values of
the tables is computed beforehand, and what remains is colour, DCT, one pointwise function and back.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from djip_ext.errors import DJIPError
from djip_ext.ops.curves import Curves
from djip_ext.ops.dct import BLOCK, RGB_TO_YCBCR, YCBCR_TO_RGB, dct_matrix
from djip_ext.ops.fused import LARGEST
from djip_ext.ops.quantizer import MAX_KAPPA, direct_sum, end_width, hard_quantize, kappa_of

# Made once and here: what a tracer sees being made is not a number.
_DCT = dct_matrix()
_TO_YCBCR, _TO_RGB = RGB_TO_YCBCR, YCBCR_TO_RGB

MAX_REACH = 64  # bins on either side that are written out one by one where the range ends


def is_tracing() -> bool:
    """Whether the operations that run now are recorded by torch.export, ONNX or torch.jit.trace."""
    # torch 2.4 has no is_exporting; there only an export sets the flag that is_compiling reads,
    # and what torch.compile traces never comes here.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return bool(exporting() or tracing)


@dataclass(frozen=True)
class Constants:
    """What the graph holds of a lens; the tables are laid out as (3, 1, 8, 1, 8).

    Attributes:
        q: the steps of Y, Cb and Cr.
        kappa: alpha q^2, float64.
        curves: the soft quantizer of each entry, one period of it.
        max_index, window: L, and the number of bins or ``None``.
        reach: bins to sum where a coefficient comes near an end of the range; 0 if none can.
    """

    q: Tensor
    kappa: Tensor
    curves: Curves
    max_index: int
    window: int | None
    reach: int

    @classmethod
    def of(
        cls, q: Tensor, alpha: float, kappa: float | None, max_index: int, window: int | None
    ) -> "Constants":
        """The constants of tables q (2, 8, 8); reads their values, so call it before tracing."""
        q = q.detach().double()
        if kappa is None:
            shape = kappa_of(q, torch.tensor(alpha, device=q.device))
        else:
            shape = torch.full_like(q, kappa).clamp_max(MAX_KAPPA)

        def lay_out(table: Tensor) -> Tensor:
            return table[[0, 1, 1]].view(3, 1, BLOCK, 1, BLOCK)

        width = end_width(shape, window)
        at_risk = (max_index - width) * q < LARGEST
        reach = 0
        if bool(at_risk.any()):
            reach = math.ceil(min(2.0 * max_index, float(width[at_risk].max()) + 1))
            reach = reach if window is None else window // 2
        single = torch.float32
        return cls(
            q=lay_out(q).to(single),
            kappa=lay_out(shape),
            curves=Curves.of(shape, single, window).map(lay_out),
            max_index=max_index,
            window=window,
            reach=reach,
        )


def through(pixels: Tensor, constants: Constants) -> Tensor:
    """Apply the lens to pixels (B, 3, H, W) in [0, 255], sides multiples of 8; not clamped.

    Raises:
        DJIPError: so small steps that the sums at the ends of the range cannot be written out.
    """
    if constants.reach > MAX_REACH:
        raise DJIPError(
            f"the smallest steps of this lens saturate over {constants.reach} bins, too many for "
            f"an exported graph; raise its steps (1.01 and more do not saturate) or set lens.hard"
        )
    q = constants.q.to(pixels)
    z = _to_coefficients(pixels)
    return _to_pixels(q * _mean_index(z / q, constants))


def through_hard(pixels: Tensor, q: Tensor, max_index: int) -> Tensor:
    """As :func:`through` with rounding; q (2, 8, 8) may itself be traced."""
    q = q.to(pixels)[[0, 1, 1]].view(3, 1, BLOCK, 1, BLOCK)
    return _to_pixels(hard_quantize(_to_coefficients(pixels), q, max_index))


def _to_coefficients(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> YCbCr coefficients (B, 3, H / 8, 8, W / 8, 8)."""
    batch, _, height, width = pixels.shape
    dct = _DCT.to(pixels)
    strips = _mix(pixels - 128, _TO_YCBCR).reshape(batch, 3, height // BLOCK, BLOCK, width)
    z = dct @ strips
    return z.reshape(batch, 3, height // BLOCK, BLOCK, width // BLOCK, BLOCK) @ dct.T


def _to_pixels(z: Tensor) -> Tensor:
    """The inverse of :func:`_to_coefficients`."""
    batch, _, rows, _, columns, _ = z.shape
    dct = _DCT.to(z)
    strips = dct.T @ (z @ dct).reshape(batch, 3, rows, BLOCK, columns * BLOCK)
    return _mix(strips.reshape(batch, 3, rows * BLOCK, columns * BLOCK), _TO_RGB) + 128


def _mix(x: Tensor, matrix: Tensor) -> Tensor:
    """Apply a 3x3 ``matrix`` to the channels of x (B, 3, H, W)."""
    return (matrix.to(x) @ x.flatten(2)).reshape(x.shape)


def _mean_index(u: Tensor, constants: Constants) -> Tensor:
    """E[i], the mean index under the moments of the soft quantizer, for u = z / q of any batch."""
    n = torch.round(u)
    curves = constants.curves.map(lambda table: table.to(u))
    g = curves.at(u - n)[0] + n
    if constants.reach == 0:
        return g
    kappa = constants.kappa.to(u.device)
    edge = u.abs() > constants.max_index - end_width(kappa, constants.window)
    exact, *_ = direct_sum(u.double(), kappa, constants.max_index, constants.reach)
    return torch.where(edge, exact.to(u.dtype), g)
