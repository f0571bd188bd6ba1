"""Colour, DCT, soft quantizer and back as one operation, with an analytic backward that keeps one tensor or none.

    x -> D x D^T -> [ K, soft quantizer, K^-1 ] -> D^T . D -> x~

D: the DCT of every 8x8 block; K: colour, together with the normalisation of the images.  K commutes with the DCT, since one mixes channels
and the other pixels; so all that happens to a coefficient between the two transforms is one pointwise kernel, and the constants of K
(level shift, means) touch nothing but the DC coefficients.

Backward, with G the gradient of x~ seen as coefficients, K^-T D G D^T:

    dL/dq = sum over blocks of G dQ/dq,      dL/dx = D^T K^T (G dQ/dz) D

When x needs no gradient, as in a fit, the forward pass keeps dQ/dq and nothing else; otherwise it keeps x and computes again.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from djip_ext.ops.curves import Curves, Room, fresh
from djip_ext.ops.dct import BLOCK, RGB_TO_YCBCR, YCBCR_TO_RGB, block_dct, block_idct, mix_channels
from djip_ext.ops.quantizer import MAX_KAPPA, end_width, kappa_of, set_ends

LARGEST = 1024.0  # |z| of a block of pixels in [0, 255]
CHUNK = 200_000  # numbers a thread takes through all steps before the next ones do, so that they stay in the cache of its core
MOST_THREADS = 8  # whose share the buffers hold at most
SHARED = {
    "quantized": "between"
}  # never in use at the same time; the fewer buffers, the more of them stay in the cache
FLAT = ("z", "between", "pulled")  # buffers that the DCT fills, as images
_kept_buffers = (
    threading.local()
)  # some ten chunks: fresh memory costs a CPU more than the arithmetic does


@dataclass(frozen=True)
class Plan:
    """All that the pointwise kernel needs besides the coefficients; tables are laid out as (3, 1, 8, W), or scalars.

    Attributes:
        curves: of the 128 kappas, or of the one that all steps share.
        tied: whether alpha moves with q, which changes dQ/dq.
        step, inverse: q and 1 / q.
        shift, unshift: u = inverse * K z + shift, K x~ = q g + unshift: the constants of K, zero but on DC entries.
        colour, back: K and K^-1, 3x3.
        ends: (kappa, L, window) when a coefficient of a picture can come near an end of the range, else ``None``.
    """

    curves: Curves
    tied: bool
    step: Tensor
    inverse: Tensor
    shift: Tensor
    unshift: Tensor
    colour: Tensor
    back: Tensor
    ends: tuple[Tensor, int, int | None] | None

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
    ) -> "Plan":
        """The plan for tables q (2, 8, 8) and images ``width`` wide of which ``gain x + offset`` are the pixels in [0, 255]."""
        q = q.detach().double()
        tied = kappa is not None
        shape = (
            torch.tensor(kappa, dtype=torch.float64, device=q.device).clamp_max(MAX_KAPPA)
            if tied
            else kappa_of(q, torch.tensor(alpha, device=q.device))
        )
        gains, offsets = (
            torch.tensor(values, dtype=torch.float64, device=q.device) for values in (gain, offset)
        )
        to_ycbcr, to_rgb = RGB_TO_YCBCR.to(q.device), YCBCR_TO_RGB.to(q.device)
        constant = torch.zeros(3, BLOCK, BLOCK, dtype=torch.float64, device=q.device)
        constant[:, 0, 0] = BLOCK * (to_ycbcr @ (offsets - 128))

        def lay_out(table: Tensor) -> Tensor:
            """(2, 8, 8) or (3, 8, 8) -> (3, 1, 8, W): the second of two tables for Cb and for Cr."""
            table = table[[0, 1, 1]] if len(table) == 2 else table
            return table.repeat(1, 1, width // BLOCK)[:, None].to(dtype)

        curves = Curves.of(shape, dtype, window)
        at_risk = (max_index - end_width(shape, window)) * q < LARGEST
        three = q[[0, 1, 1]]
        return cls(
            curves=curves if tied else curves.map(lay_out),
            tied=tied,
            step=lay_out(q),
            inverse=lay_out(1 / q),
            shift=lay_out(constant / three),
            unshift=lay_out(-constant),
            colour=(to_ycbcr * gains).to(dtype),
            back=(to_rgb / gains[:, None]).to(dtype),
            ends=(shape if tied else lay_out(shape).double(), max_index, window)
            if bool(at_risk.any())
            else None,
        )


def mean_index(
    z: Tensor, plan: Plan, by_z: bool, by_q: bool, room: Room, by_step: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """g of every coefficient, and dQ/dz and dQ/dq where asked for.

    Shape: z (B, 3, H / 8, 8, W), coefficients of the images as they come -> the same; ``by_step`` is a buffer for dQ/dq.
    """
    u = mix_channels(z, plan.colour, out=room("u"))
    u = torch.addcmul(plan.shift, u, plan.inverse, out=u)
    n = torch.round(u, out=room("n"))
    h, s, t = plan.curves.at(
        torch.sub(u, n, out=room("r")), slope=by_z or by_q, turn=by_q and not plan.tied, room=room
    )
    g = h.add_(n)
    if plan.ends is not None:
        set_ends(u, *plan.ends, g, s, t)
    if by_q:
        by_step = torch.addcmul(
            g, u, s, value=-1, out=by_step
        )  # dQ/dq = g - u s + 2 t, without t when kappa stays what it is
        by_step = by_step if plan.tied else by_step.add_(t, alpha=2)
    return g, s, by_step


def quantize(
    z: Tensor,
    plan: Plan,
    room: Room,
    by_q: bool = False,
    by_step: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The pointwise kernel: K, quantizer, K^-1; dQ/dq goes to ``by_step`` if ``by_q``."""
    g, *_ = mean_index(z, plan, False, by_q, room, by_step)
    return mix_channels(torch.addcmul(plan.unshift, g, plan.step, out=g), plan.back, out=out)


def pull_back(
    pull: Tensor, kept: Tensor, plan: Plan, by_x: bool, by_q: bool, room: Room
) -> tuple[Tensor | None, Tensor | None]:
    """The kernel's backward.

    Args:
        pull: the gradient of x~ as coefficients, (B, 3, H / 8, 8, W).
        kept: the coefficients of x when ``by_x``, else dQ/dq.

    Returns:
        the gradient of x as coefficients, if ``by_x``; that of q summed over images and rows of blocks, (3, 8, W), if ``by_q``.
    """
    pull = mix_channels(pull, plan.back.T, out=room("pull"))
    if not by_x:
        return None, _sum_rows(torch.mul(pull, kept, out=room("n")))
    _, by_z, by_step = mean_index(kept, plan, True, by_q, room, room("by_step"))
    grad_q = _sum_rows(torch.mul(pull, by_step, out=room("n"))) if by_q else None
    return mix_channels(
        torch.mul(pull, by_z, out=room("n")), plan.colour.T, out=room("pull")
    ), grad_q


@lru_cache
def kernels(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """:func:`quantize` and :func:`pull_back`, as they are or as torch.compile fuses them: some seconds each, when first used."""
    return (
        (torch.compile(quantize, dynamic=True), torch.compile(pull_back, dynamic=True))
        if compiled
        else (quantize, pull_back)
    )


class Lens(torch.autograd.Function):
    """x (B, 3, H, W), sides multiples of 8, and q (2, 8, 8) -> x~; ``plan`` must be that of q."""

    @staticmethod
    def forward(ctx, x: Tensor, q: Tensor, plan: Plan, compiled: bool) -> Tensor:
        by_x, by_q = ctx.needs_input_grad[:2]
        x = x.contiguous()
        keep = _rows(torch.empty_like(x)) if by_q and not by_x else None
        seen = torch.empty_like(x)
        compiled = compiled and plan.ends is None  # those look at the coefficients
        kernel, _ = kernels(compiled)
        for part, room in _chunks(x):
            z = block_dct(x[part], out=room("z"), between=room("between"))
            by_step = None if keep is None else keep[part]
            z = kernel(
                _rows(z),
                plan,
                fresh if compiled else room,
                keep is not None,
                by_step,
                room("quantized"),
            )
            block_idct(z.view(x[part].shape), out=seen[part], between=room("z"))
        ctx.save_for_backward(x if by_x else keep)
        ctx.plan, ctx.compiled = plan, compiled
        return seen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_q = ctx.needs_input_grad[:2]
        (kept,), (_, kernel) = ctx.saved_tensors, kernels(ctx.compiled)
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.contiguous()
            grad_x = torch.empty_like(grad) if by_x else None
            grad_q = torch.zeros(3, BLOCK, BLOCK, dtype=torch.float64, device=grad.device)
            for part, room in _chunks(grad):
                pull = _rows(block_dct(grad[part], out=room("pulled"), between=room("between")))
                z = (
                    _rows(block_dct(kept[part], out=room("z"), between=room("between")))
                    if by_x
                    else kept[part]
                )
                pull, steps = kernel(pull, z, ctx.plan, by_x, by_q, fresh if ctx.compiled else room)
                if by_q:
                    grad_q += steps.double().view(3, BLOCK, -1, BLOCK).sum(2)
                if by_x:
                    block_idct(
                        pull.view(grad[part].shape), out=grad_x[part], between=room("between")
                    )
            return (
                grad_x,
                torch.stack([grad_q[0], grad_q[1] + grad_q[2]]).to(grad.dtype) if by_q else None,
                None,
                None,
            )


def _chunks(x: Tensor) -> Iterator[tuple[slice, Room]]:
    """Slices of a batch and room for what becomes of them: whole images, few enough for the cache of a CPU; elsewhere all at once."""
    if x.device.type != "cpu":
        yield slice(None), fresh
        return
    one, most = max(1, x[:1].numel()), CHUNK * min(torch.get_num_threads(), MOST_THREADS)
    parts = -(-len(x) // max(1, most // one))
    count = -(-len(x) // max(1, parts))  # equal parts, so that none is a small rest
    buffers = _kept_buffers.__dict__ if count * one <= most else {}  # of one huge image: given back
    for start in range(0, len(x), max(1, count)):
        part = slice(start, start + count)
        shape = x[part].shape

        def room(name: str) -> Tensor:
            key = f"{SHARED.get(name, name)} {x.dtype}"
            if key not in buffers or buffers[key].numel() < shape.numel():
                with torch.inference_mode(False):  # else only usable there
                    buffers[key] = torch.empty(shape.numel(), dtype=x.dtype)
            buffer = buffers[key][: shape.numel()].view(shape)
            return buffer if name in FLAT else _rows(buffer)

        yield part, room


def _rows(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H / 8, 8, W): rows of blocks."""
    return x.view(*x.shape[:2], x.shape[2] // BLOCK, BLOCK, x.shape[3])


def _sum_rows(z: Tensor) -> Tensor:
    """Sum (B, 3, H / 8, 8, W) over images and rows of blocks, in the order that reads memory in longer runs."""
    return z.sum(0).sum(1) if z.shape[0] > z.shape[2] else z.sum(2).sum(0)
