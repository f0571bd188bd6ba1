r"""The soft quantizer of JPEG-DL (Salamah et al., ICLR 2025, arXiv 2410.07081).

It is exact for every step and index range.

A coefficient z is replaced by q times the mean index under a Gaussian-shaped distribution over the
integers i in [-L, L]:

    P(i | z) = exp(-alpha (z - i q)^2) / sum_j exp(-alpha (z - j q)^2),      Q_d(z) = q E[i]

With u = z / q and kappa = alpha q^2 the weights are exp(-kappa (u - i)^2): everything depends on u
and kappa alone.  From the mean g, the variance V and the third central moment m of that
distribution follow the value and all gradients:

    Q_d = q g                          dQ/dz     = 2 kappa V                 =: s
    t := kappa dg/dkappa               dQ/dq     = g - u s + 2 t
       = kappa (2 (u - g) V - m)       dQ/dalpha = q t / alpha

Let n be the integer nearest to u and r = u - n.  Inside the range g = n + h(r, kappa), one period
of which :mod:`djip_ext.ops.curves` knows for every table entry; near or beyond the ends the bins
that exist are summed directly, for those few coefficients.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from djip_ext.ops.curves import TAIL, Buffers, Curves, no_buffers

MAX_KAPPA = 1e6  # beyond it the distribution is a point for any float32 u


class Ends(NamedTuple):
    """The index range -L .. L, whose ends saturate the quantizer: kappa (float64), L and window."""

    kappa: Tensor
    max_index: int
    window: int | None


def soft_quantize(
    z: Tensor, q: Tensor | float, alpha: Tensor | float, max_index: int, window: int | None = None
) -> Tensor:
    """Quantize ``z`` softly with step ``q``; differentiable in ``z``, ``q`` and ``alpha``.

    Made for many coefficients and few different steps.

    Args:
        z: coefficients, any shape and any real dtype; computed in float32 (float64 stays) whatever
            autocast says.
        q: step, positive, broadcastable to ``z``.
        alpha: sharpness, positive, broadcastable to ``z``; rounding to multiples of q as it grows.
        max_index: L >= 1; the output stays within [-L q, L q].
        window: ``None`` sums the whole range exactly; an odd number sums only that many bins
            nearest to z/q (JPEG-DL's code takes 5), which for kappa < 3 is another function.

    Shape: the output has the shape of ``z``.

    Raises:
        ValueError: L below 1, or a window that is not an odd positive number.
    """
    if max_index < 1:
        raise ValueError(f"max_index is {max_index}; it must be at least 1")
    if window is not None and (window < 1 or window % 2 == 0):
        raise ValueError(f"window is {window}; it must be None or an odd positive number of bins")
    with torch.autocast(z.device.type, enabled=False):
        dtype = z.dtype if z.dtype == torch.float64 else torch.float32
        z = z.to(dtype)
        q = torch.as_tensor(q, dtype=dtype, device=z.device)
        alpha = torch.as_tensor(alpha, dtype=dtype, device=z.device)
        quantized: Tensor = _SoftQuantize.apply(z, q, alpha, max_index, window)
        return quantized


def hard_quantize(z: Tensor, q: Tensor | float, max_index: int) -> Tensor:
    """Round ``z`` to the nearest of the multiples -L q .. L q; not differentiable.

    The limit of :func:`soft_quantize` for alpha -> infinity. The steps get no gradient: what
    autograd sees of them here is the last factor alone, n in place of n - z / q.
    """
    if isinstance(q, Tensor) and q.requires_grad:
        q = q.detach()
    return torch.round(z / q).clamp(-max_index, max_index) * q


class _SoftQuantize(torch.autograd.Function):
    """Forward computes the derivatives that will be asked for; backward only multiplies."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, q: Tensor, alpha: Tensor, max_index: int, window: int | None
    ) -> Tensor:
        by_z, by_q, by_alpha = ctx.needs_input_grad[:3]
        kappa = kappa_of(q, alpha)
        u = z / q
        curves = Curves.of(kappa, z.dtype, window)
        ends = Ends(kappa, max_index, window)
        g, s, t = mean_index(u, curves, ends, slope=by_z or by_q, turn=by_q or by_alpha)
        saved = []
        if by_z and s is not None:
            saved.append(s)
        if by_q and s is not None and t is not None:
            saved.append(g - u * s + 2 * t)
        if by_alpha and t is not None:
            saved.append(q / alpha * t)
        ctx.save_for_backward(*saved)
        ctx.shapes = (z.shape, q.shape, alpha.shape)
        return q * g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes = iter(ctx.saved_tensors)
        grads = (
            (grad * next(slopes)).sum_to_size(shape) if needed else None
            for needed, shape in zip(ctx.needs_input_grad[:3], ctx.shapes, strict=True)
        )
        return *grads, None, None


def mean_index(
    u: Tensor,
    curves: Curves,
    ends: Ends | None,
    slope: bool,
    turn: bool,
    buffers: Buffers = no_buffers,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mean index g of u = z / q, s (if ``slope``) and t (if ``turn``), in the shape of u.

    Args:
        u: coefficients in units of their steps; the tables of ``curves`` must broadcast to it.
        ends: the index range; ``None`` where no u comes near an end of it.
        buffers: where results and intermediate results are written.
    """
    n = torch.round(u, out=buffers("n"))
    r = torch.sub(u, n, out=buffers("r"))
    h, s, t = curves.at(r, slope=slope, turn=turn, buffers=buffers)
    g = h.add_(n)
    if ends is not None:
        set_ends(u, ends, g, s, t)
    return g, s, t


def kappa_of(q: Tensor, alpha: Tensor) -> Tensor:
    """kappa = alpha q^2 in float64, where neither overflows, at most MAX_KAPPA."""
    return (alpha.double() * q.double().square()).clamp_max(MAX_KAPPA)


def end_width(kappa: Tensor, window: int | None) -> Tensor:
    """How far from the ends of the range the missing bins still weigh something.

    At most half the window.
    """
    width = (TAIL / kappa).sqrt()
    return width if window is None else width.clamp_max(window // 2)


def set_ends(u: Tensor, ends: Ends, g: Tensor, s: Tensor | None, t: Tensor | None) -> None:
    """Put the direct sum into g, s and t wherever u lies near or beyond an end of the range.

    Reads the coefficients, which synchronises with their device.
    """
    kappa, max_index, window = ends
    edge = u.abs() > (max_index - end_width(kappa, window)).to(u.dtype)
    if not bool(edge.any()):
        return
    u_edge = u[edge].double()
    kappa_edge = kappa.expand_as(u)[edge]
    reach = _reach_from_the_end(u_edge, kappa_edge, max_index) if window is None else window // 2
    exact = direct_sum(u_edge, kappa_edge, max_index, reach)
    for found, right in zip((g, s, t), exact, strict=True):
        if found is not None:
            found.masked_scatter_(edge, right.to(u.dtype))


def direct_sum(
    u: Tensor, kappa: Tensor, max_index: int, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """g, s and t from the bins within ``reach`` of the existing one nearest to u, if in [-L, L]."""
    n = u.round().clamp(-max_index, max_index)
    # |r| <= 1/2 unless u lies beyond the range; then r d <= 0 for every bin n + d that exists.
    r = u - n
    total = torch.ones_like(u)
    first = torch.zeros_like(u)
    second = torch.zeros_like(u)
    third = torch.zeros_like(u)
    for d in range(-reach, reach + 1):
        if d == 0:
            continue
        # Relative to bin n, so that no exponent is positive and exp never overflows.
        weight = torch.exp(kappa * (d * (2 * r - d)))
        weight = torch.where((n + d).abs() <= max_index, weight, 0.0)
        total = total + weight
        first = first + d * weight
        second = second + d * d * weight
        third = third + d**3 * weight
    first = first / total
    second = second / total
    third = third / total
    variance = second - first * first
    skew = third - 3 * first * second + 2 * first**3
    return n + first, 2 * kappa * variance, kappa * (2 * (r - first) * variance - skew)


def _reach_from_the_end(u: Tensor, kappa: Tensor, max_index: int) -> int:
    """How many bins from the nearest existing one still weigh something.

    They are those with 2 kappa d x + kappa d^2 <= TAIL, where x is how far u lies beyond the range.
    """
    beyond = (u.abs() - max_index).clamp_min(0)
    distance = TAIL / (kappa * beyond + torch.sqrt((kappa * beyond) ** 2 + TAIL * kappa))
    return math.ceil(min(2.0 * max_index, float(distance.max()) + 1))
