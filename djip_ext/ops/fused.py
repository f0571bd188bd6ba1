"""Colour, DCT, soft quantizer and back as one operation, with an analytic backward pass that keeps
one tensor or none.

    x -> D x D^T -> [ K, soft quantizer, K^-1 ] -> D^T . D -> x~

D: the DCT of every 8x8 block; K: colour, together with the normalisation of the images.  K commutes
with the DCT, since one mixes channels and the other pixels; so all that happens to a coefficient
between the two transforms is one pointwise kernel, and the constants of K (level shift, means)
touch nothing but the DC coefficients.

Backward, with G the gradient of x~ seen as coefficients, K^-T D G D^T:

    dL/dq = sum over blocks of G dQ/dq,      dL/dx = D^T K^T (G dQ/dz) D

When x needs no gradient, as in a fit, the forward pass keeps dQ/dq and nothing else; otherwise it
keeps x and computes again.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from djip_ext.ops.curves import Buffers, Curves, no_buffers
from djip_ext.ops.dct import BLOCK, RGB_TO_YCBCR, YCBCR_TO_RGB, block_dct, block_idct, mix_channels
from djip_ext.ops.quantizer import MAX_KAPPA, Ends, end_width, kappa_of, mean_index

LARGEST = 1024.0  # |z| of a block of pixels in [0, 255]

# A thread takes this many numbers through all steps before the next ones, so that they stay in the
# cache of its core.
CHUNK = 200_000
MOST_THREADS = 8  # the buffers hold the share of at most so many

# Buffers never in use at the same time share memory: the fewer there are, the more of them stay in
# the cache.
SHARED = {"quantized": "between"}
FLAT = ("z", "between", "pulled")  # buffers that the DCT fills, as images

# Some ten chunks: new memory costs a CPU more than the arithmetic does.
_kept_buffers = threading.local()


@dataclass(frozen=True)
class KernelConstants:
    """All that the pointwise kernel needs besides the coefficients.

    Quantization and polynomial tables are laid out as (3, 1, 8, W), or are scalars.

    Attributes:
        curves: of the 128 kappas, or of the one that all steps share.
        tied: whether alpha moves with q, which changes dQ/dq.
        step, inverse: q and 1 / q.
        shift, unshift: u = inverse * K z + shift, K x~ = q g + unshift: the constants of K, zero
            but on DC entries.
        colour, back: K and K^-1, 3x3.
        ends: of the index range when a coefficient of a picture can come near them, else ``None``.
    """

    curves: Curves
    tied: bool
    step: Tensor
    inverse: Tensor
    shift: Tensor
    unshift: Tensor
    colour: Tensor
    back: Tensor
    ends: Ends | None

    @classmethod
    def of(
        cls,
        q: Tensor,
        alpha: float,
        kappa: float | None,
        max_index: int,
        window: int | None,
        gain: Sequence[float],
        offset: Sequence[float],
        width: int,
        dtype: torch.dtype,
    ) -> "KernelConstants":
        """The constants of a lens for images of one width and scale.

        Args:
            q: the quantization tables (2, 8, 8).
            alpha: sharpness of the quantizer, unless ``kappa`` is given.
            kappa: alpha q^2, when alpha is tied to q.
            max_index: L.
            window: bins to sum; ``None``: all.
            gain, offset: ``gain x + offset``, by channel, are the pixels in [0, 255].
            width: W of the images, a multiple of 8.
            dtype: of the images.
        """
        q = q.detach().double()
        tied = kappa is not None
        if kappa is not None:
            kappas = torch.tensor(kappa, dtype=torch.float64, device=q.device).clamp_max(MAX_KAPPA)
        else:
            kappas = kappa_of(q, torch.tensor(alpha, device=q.device))
        gains = torch.tensor(gain, dtype=torch.float64, device=q.device)
        offsets = torch.tensor(offset, dtype=torch.float64, device=q.device)
        to_ycbcr = RGB_TO_YCBCR.to(q.device)
        to_rgb = YCBCR_TO_RGB.to(q.device)
        constant = torch.zeros(3, BLOCK, BLOCK, dtype=torch.float64, device=q.device)
        constant[:, 0, 0] = BLOCK * (to_ycbcr @ (offsets - 128))

        def lay_out(table: Tensor) -> Tensor:
            """(2, 8, 8) or (3, 8, 8) -> (3, 1, 8, W): of two tables the second for Cb and Cr."""
            table = table[[0, 1, 1]] if len(table) == 2 else table
            return table.repeat(1, 1, width // BLOCK)[:, None].to(dtype)

        curves = Curves.of(kappas, dtype, window)
        ends = None
        if bool(((max_index - end_width(kappas, window)) * q < LARGEST).any()):
            ends = Ends(kappas if tied else lay_out(kappas).double(), max_index, window)
        return cls(
            curves=curves if tied else curves.map(lay_out),
            tied=tied,
            step=lay_out(q),
            inverse=lay_out(1 / q),
            shift=lay_out(constant / q[[0, 1, 1]]),
            unshift=lay_out(-constant),
            colour=(to_ycbcr * gains).to(dtype),
            back=(to_rgb / gains[:, None]).to(dtype),
            ends=ends,
        )


def quantize(
    z: Tensor,
    constants: KernelConstants,
    buffers: Buffers,
    by_q: bool = False,
    by_step: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The pointwise kernel: K, quantizer, K^-1.

    Args:
        z: coefficients of the images as they come, (B, 3, H / 8, 8, W); the result has their shape.
        constants: of the lens.
        buffers: where intermediate results are written.
        by_q: whether dQ/dq is needed too.
        by_step: where it is written.
        out: where the result is written.
    """
    u = _indices(z, constants, buffers)
    turn = by_q and not constants.tied
    g, s, t = mean_index(u, constants.curves, constants.ends, by_q, turn, buffers)
    if by_q:
        assert s is not None
        _step_slope(u, g, s, t, out=by_step)
    torch.addcmul(constants.unshift, g, constants.step, out=g)
    return mix_channels(g, constants.back, out=out)


def pull_back(
    pull: Tensor,
    kept: Tensor,
    constants: KernelConstants,
    by_x: bool,
    by_q: bool,
    buffers: Buffers,
) -> tuple[Tensor | None, Tensor | None]:
    """The kernel's backward pass.

    Args:
        pull: the gradient of x~ as coefficients, (B, 3, H / 8, 8, W).
        kept: the coefficients of x when ``by_x``, else dQ/dq.
        constants: of the lens.
        by_x, by_q: which gradients are needed.
        buffers: where intermediate results are written.

    Returns:
        the gradient of x as coefficients, if ``by_x``; that of q summed over images and rows of
        blocks, (3, 8, W), if ``by_q``.
    """
    pull = mix_channels(pull, constants.back.T, out=buffers("pull"))
    if not by_x:
        return None, _sum_rows(torch.mul(pull, kept, out=buffers("n")))
    u = _indices(kept, constants, buffers)
    turn = by_q and not constants.tied
    g, s, t = mean_index(u, constants.curves, constants.ends, True, turn, buffers)
    assert s is not None
    grad_q = None
    if by_q:
        by_step = _step_slope(u, g, s, t, out=buffers("by_step"))
        grad_q = _sum_rows(torch.mul(pull, by_step, out=buffers("n")))
    grad_x = torch.mul(pull, s, out=buffers("n"))
    return mix_channels(grad_x, constants.colour.T, out=buffers("pull")), grad_q


def _indices(z: Tensor, constants: KernelConstants, buffers: Buffers) -> Tensor:
    """u = K z / q, with the constants of K, of coefficients z (B, 3, H / 8, 8, W)."""
    u = mix_channels(z, constants.colour, out=buffers("u"))
    return torch.addcmul(constants.shift, u, constants.inverse, out=u)


def _step_slope(u: Tensor, g: Tensor, s: Tensor, t: Tensor | None, out: Tensor | None) -> Tensor:
    """dQ/dq = g - u s + 2 t; without t when kappa stays what it is as q moves."""
    slope = torch.addcmul(g, u, s, value=-1, out=out)
    return slope if t is None else slope.add_(t, alpha=2)


@lru_cache
def kernels(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """:func:`quantize` and :func:`pull_back`, as they are or fused by torch.compile.

    Compiling takes some seconds each, when first used.
    """
    if compiled:
        return torch.compile(quantize, dynamic=True), torch.compile(pull_back, dynamic=True)
    return quantize, pull_back


class FusedLens(torch.autograd.Function):
    """x (B, 3, H, W), sides multiples of 8, and q (2, 8, 8) -> x~; the constants must be of q."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, q: Tensor, constants: KernelConstants, compiled: bool
    ) -> Tensor:
        by_x, by_q = ctx.needs_input_grad[:2]
        x = x.contiguous()
        keep = _rows(torch.empty_like(x)) if by_q and not by_x else None
        seen = torch.empty_like(x)
        compiled = compiled and constants.ends is None  # the ends read the coefficients
        kernel, _ = kernels(compiled)
        for part, buffers in _chunks(x):
            z = block_dct(x[part], out=buffers("z"), between=buffers("between"))
            z = kernel(
                _rows(z),
                constants,
                no_buffers if compiled else buffers,
                by_q=keep is not None,
                by_step=None if keep is None else keep[part],
                out=buffers("quantized"),
            )
            block_idct(z.view(x[part].shape), out=seen[part], between=buffers("z"))
        ctx.save_for_backward(x if by_x else keep)
        ctx.constants = constants
        ctx.compiled = compiled
        return seen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_q = ctx.needs_input_grad[:2]
        (kept,) = ctx.saved_tensors
        _, kernel = kernels(ctx.compiled)
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.contiguous()
            grad_x = torch.empty_like(grad) if by_x else None
            sums = torch.zeros(3, BLOCK, BLOCK, dtype=torch.float64, device=grad.device)
            for part, buffers in _chunks(grad):
                between = buffers("between")
                pull = _rows(block_dct(grad[part], out=buffers("pulled"), between=between))
                z = kept[part]
                if by_x:
                    z = _rows(block_dct(z, out=buffers("z"), between=between))
                given = no_buffers if ctx.compiled else buffers
                pull, steps = kernel(pull, z, ctx.constants, by_x, by_q, given)
                if by_q:
                    sums += steps.double().view(3, BLOCK, -1, BLOCK).sum(2)
                if grad_x is not None:
                    block_idct(pull.view(grad[part].shape), out=grad_x[part], between=between)
            grad_q = torch.stack([sums[0], sums[1] + sums[2]]).to(grad.dtype) if by_q else None
            return grad_x, grad_q, None, None


def _chunks(x: Tensor) -> Iterator[tuple[slice, Buffers]]:
    """Slices of a batch and the buffers for what becomes of them.

    On a CPU: whole images, few enough for its cache; elsewhere: all at once, without buffers.
    """
    if x.device.type != "cpu":
        yield slice(None), no_buffers
        return
    one = max(1, x[:1].numel())
    most = CHUNK * min(torch.get_num_threads(), MOST_THREADS)
    parts = -(-len(x) // max(1, most // one))
    count = -(-len(x) // max(1, parts))  # equal parts, so that none is a small rest
    # Buffers for one huge image are not kept.
    kept = _kept_buffers.__dict__ if count * one <= most else {}
    for start in range(0, len(x), max(1, count)):
        part = slice(start, start + count)
        yield part, _buffers_of(kept, x[part].shape, x.dtype)


def _buffers_of(kept: dict[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Buffers:
    """Buffers of ``shape`` (B, 3, H, W), cut out of those in ``kept``, which grow as needed."""

    def buffer(name: str) -> Tensor:
        key = f"{SHARED.get(name, name)} {dtype}"
        if key not in kept or kept[key].numel() < shape.numel():
            with torch.inference_mode(False):  # else only usable there
                kept[key] = torch.empty(shape.numel(), dtype=dtype)
        cut = kept[key][: shape.numel()].view(shape)
        return cut if name in FLAT else _rows(cut)

    return buffer


def _rows(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H / 8, 8, W): rows of blocks."""
    return x.view(*x.shape[:2], x.shape[2] // BLOCK, BLOCK, x.shape[3])


def _sum_rows(z: Tensor) -> Tensor:
    """Sum (B, 3, H / 8, 8, W) over images and rows of blocks -> (3, 8, W).

    In the order that reads memory in longer runs.
    """
    return z.sum(0).sum(1) if z.shape[0] > z.shape[2] else z.sum(2).sum(0)
