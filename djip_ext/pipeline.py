"""Colour, DCT, soft quantizer and back as one operation, with an analytic backward that keeps one tensor or none.

    x -> D x D^T -> [ K, soft quantizer, K^-1 ] -> D^T . D -> x~

D: the DCT of every 8x8 block; K: colour, together with the normalisation of the images.  K commutes with the DCT, since one mixes channels
and the other pixels; so all that happens to a coefficient between the two transforms is one pointwise kernel, and the constants of K
(level shift, means) touch nothing but the DC coefficients.

Backward, with G the gradient of x~ seen as coefficients, K^-T D G D^T:

    dL/dq = sum over blocks of G dQ/dq,      dL/dx = D^T K^T (G dQ/dz) D

When x needs no gradient, as in a fit, the forward pass keeps dQ/dq and nothing else; otherwise it keeps x and computes again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import BLOCK, RGB_TO_YCBCR, YCBCR_TO_RGB, block_dct, block_idct, mix_channels
from .curves import Curves
from .quantizer import MAX_KAPPA, end_width, kappa_of, set_ends

LARGEST = 1024.0  # |z| of a block of pixels in [0, 255]
CHUNK = 300_000  # numbers that pass through all steps before the next ones do, so that they stay in the cache of a CPU


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
        cls, q: Tensor, alpha: float, kappa: float | None, max_index: int, window: int | None,
        gain: Sequence[float], offset: Sequence[float], width: int, dtype: torch.dtype,
    ) -> "Plan":
        """The plan for tables q (2, 8, 8) and images ``width`` wide of which ``gain x + offset`` are the pixels in [0, 255]."""
        q = q.detach().double()
        tied = kappa is not None
        shape = torch.tensor(kappa, dtype=torch.float64).clamp_max(MAX_KAPPA) if tied else kappa_of(q, torch.tensor(alpha, device=q.device))
        gains, offsets = (torch.tensor(values, dtype=torch.float64, device=q.device) for values in (gain, offset))
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
            ends=(shape if tied else lay_out(shape).double(), max_index, window) if bool(at_risk.any()) else None,
        )


def quantize(z: Tensor, plan: Plan, by_z: bool, by_q: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The pointwise kernel: K, quantizer, K^-1.

    Shape: z (B, 3, H / 8, 8, W), coefficients of the images as they come -> coefficients of x~; dQ/dz and dQ/dq where asked for.
    """
    u = torch.addcmul(plan.shift, mix_channels(z, plan.colour), plan.inverse)
    n = u.round()
    h, s, t = plan.curves.at(u - n, slope=by_z or by_q, turn=by_q and not plan.tied)
    g = n + h
    if plan.ends is not None:
        set_ends(u, *plan.ends, g, s, t)
    seen = mix_channels(torch.addcmul(plan.unshift, g, plan.step), plan.back)
    by_step = None
    if by_q:
        by_step = torch.addcmul(g, u, s, value=-1)  # dQ/dq = g - u s + 2 t, without t when kappa stays what it is
        by_step = by_step if plan.tied else by_step.add_(t, alpha=2)
    return seen, s if by_z else None, by_step


class Lens(torch.autograd.Function):
    """x (B, 3, H, W), sides multiples of 8, and q (2, 8, 8) -> x~; ``plan`` must be that of q."""

    @staticmethod
    def forward(ctx, x: Tensor, q: Tensor, plan: Plan) -> Tensor:
        by_x, by_q = ctx.needs_input_grad[:2]
        x = x.contiguous()
        keep = torch.empty_like(x) if by_q and not by_x else None
        seen = torch.empty_like(x)
        for part in _chunks(x):
            z, _, by_step = quantize(_rows(block_dct(x[part])), plan, by_z=False, by_q=keep is not None)
            if keep is not None:
                keep[part] = by_step.view_as(x[part])
            seen[part] = block_idct(z.view_as(x[part]))
        ctx.save_for_backward(x if by_x else keep)
        ctx.plan = plan
        return seen

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_q = ctx.needs_input_grad[:2]
        plan, (kept,) = ctx.plan, ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.contiguous()
            grad_x = torch.empty_like(grad) if by_x else None
            grad_q = 0
            for part in _chunks(grad):
                pull = mix_channels(_rows(block_dct(grad[part])), plan.back.T)
                by_step = _rows(kept[part])
                if by_x:
                    _, by_z, by_step = quantize(_rows(block_dct(kept[part])), plan, True, by_q)
                    grad_x[part] = block_idct(mix_channels(pull * by_z, plan.colour.T).view_as(grad[part]))
                if by_q:
                    grad_q = grad_q + _sum_blocks(pull * by_step)
            return grad_x, torch.stack([grad_q[0], grad_q[1] + grad_q[2]]).to(grad.dtype) if by_q else None, None


def _chunks(x: Tensor) -> list[slice]:
    """Slices of a batch, whole images, small enough for the cache of a CPU; all of it on other devices."""
    count = max(1, CHUNK // max(1, x[0].numel())) if x.device.type == "cpu" and len(x) else max(1, len(x))
    return [slice(start, start + count) for start in range(0, len(x), count)]


def _rows(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H / 8, 8, W): rows of blocks."""
    return x.view(*x.shape[:2], -1, BLOCK, x.shape[3])


def _sum_blocks(z: Tensor) -> Tensor:
    """Sum (B, 3, H / 8, 8, W) over images and blocks -> float64 (3, 8, 8)."""
    total = z.sum(0).sum(1) if z.shape[0] > z.shape[2] else z.sum(2).sum(0)  # whichever reads memory in long runs
    return total.double().view(3, BLOCK, -1, BLOCK).sum(2)
