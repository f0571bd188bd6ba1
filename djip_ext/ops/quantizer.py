r"""The soft quantizer of JPEG-DL (Salamah et al., ICLR 2025, arXiv 2410.07081), exact for every step and index range.

A coefficient z is replaced by q times the mean index under a Gaussian-shaped law over the integers i in [-L, L]:

    P(i | z) = exp(-alpha (z - i q)^2) / sum_j exp(-alpha (z - j q)^2),      Q_d(z) = q E[i]

With u = z / q and kappa = alpha q^2 the law is exp(-kappa (u - i)^2): everything depends on u and kappa alone.  From
the mean g, the variance V and the third central moment m of that law follow the value and all gradients:

    Q_d = q g                          dQ/dz     = 2 kappa V                 =: s
    t := kappa dg/dkappa               dQ/dq     = g - u s + 2 t
       = kappa (2 (u - g) V - m)       dQ/dalpha = q t / alpha

Let n be the integer nearest to u and r = u - n.  Inside the range g = n + h(r, kappa), one period of which :mod:`djip_ext.ops.curves` knows for
every table entry; near or beyond the ends the bins that exist are summed directly, for those few coefficients.
"""

import math

import torch
from torch import Tensor

from djip_ext.ops.curves import TAIL, Curves

MAX_KAPPA = 1e6  # beyond it the law is a point for any float32 u


def soft_quantize(
    z: Tensor, q: Tensor | float, alpha: Tensor | float, max_index: int, window: int | None = None
) -> Tensor:
    """Quantize ``z`` softly with step ``q``; differentiable in ``z``, ``q`` and ``alpha``.

    Made for many coefficients and few different steps.

    Args:
        z: coefficients, any shape and any real dtype; computed in float32 (float64 stays) whatever autocast says.
        q: step, positive, broadcastable to ``z``.
        alpha: sharpness, positive, broadcastable to ``z``; rounding to multiples of q as it grows.
        max_index: L >= 1; the output stays within [-L q, L q].
        window: ``None`` sums the whole range exactly; an odd number sums only that many bins nearest to z/q (JPEG-DL's
            code takes 5), which for kappa < 3 is another function.

    Shape: the output has the shape of ``z``.
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
        return _SoftQuantize.apply(z, q, alpha, max_index, window)


def hard_quantize(z: Tensor, q: Tensor | float, max_index: int) -> Tensor:
    """Round ``z`` to the nearest of the multiples -L q .. L q, the limit alpha -> infinity; not differentiable."""
    return torch.round(z / q).clamp(-max_index, max_index) * q


class _SoftQuantize(torch.autograd.Function):
    """Forward computes the derivatives that will be asked for; backward only multiplies."""

    @staticmethod
    def forward(
        ctx, z: Tensor, q: Tensor, alpha: Tensor, max_index: int, window: int | None
    ) -> Tensor:
        by_z, by_q, by_alpha = ctx.needs_input_grad[:3]
        kappa = kappa_of(q, alpha)
        u = z / q
        n = u.round()
        h, s, t = Curves.of(kappa, z.dtype, window).at(
            u - n, slope=by_z or by_q, turn=by_q or by_alpha
        )
        g = n + h
        set_ends(u, kappa, max_index, window, g, s, t)
        saved = []
        if by_z:
            saved.append(s)
        if by_q:
            saved.append(g - u * s + 2 * t)
        if by_alpha:
            saved.append(q / alpha * t)
        ctx.save_for_backward(*saved)
        ctx.shapes = (z.shape, q.shape, alpha.shape)
        return q * g

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        slopes = iter(ctx.saved_tensors)
        grads = (
            (grad * next(slopes)).sum_to_size(shape) if needed else None
            for needed, shape in zip(ctx.needs_input_grad, ctx.shapes)
        )
        return *grads, None, None


def kappa_of(q: Tensor, alpha: Tensor) -> Tensor:
    """kappa = alpha q^2 in float64, where neither overflows, at most MAX_KAPPA."""
    return (alpha.double() * q.double().square()).clamp_max(MAX_KAPPA)


def end_width(kappa: Tensor, window: int | None) -> Tensor:
    """How far from the ends of the range the missing bins still weigh something; at most the window's half."""
    width = (TAIL / kappa).sqrt()
    return width if window is None else width.clamp_max(window // 2)


def set_ends(
    u: Tensor,
    kappa: Tensor,
    max_index: int,
    window: int | None,
    g: Tensor,
    s: Tensor | None,
    t: Tensor | None,
) -> None:
    """Put the direct sum into g, s and t wherever u lies near or beyond an end of the range; looks at the coefficients."""
    edge = u.abs() > (max_index - end_width(kappa, window)).to(u.dtype)
    if not bool(edge.any()):
        return
    u_edge, kappa_edge = u[edge].double(), kappa.expand_as(u)[edge]
    reach = (
        window // 2 if window is not None else _reach_from_the_end(u_edge, kappa_edge, max_index)
    )
    for found, exact in zip((g, s, t), direct_sum(u_edge, kappa_edge, max_index, reach)):
        if found is not None:
            found.masked_scatter_(edge, exact.to(u.dtype))


def direct_sum(
    u: Tensor, kappa: Tensor, max_index: int, reach: int
) -> tuple[Tensor, Tensor, Tensor]:
    """g, s and t from the bins within ``reach`` of the existing one nearest to u, those that lie in [-L, L]."""
    n = u.round().clamp(-max_index, max_index)
    r = (
        u - n
    )  # |r| <= 1/2 unless u lies beyond the range; then r d <= 0 for every bin n + d that exists
    total, first, second, third = torch.ones_like(u), *(torch.zeros_like(u) for _ in range(3))
    for d in range(-reach, reach + 1):
        if d == 0:
            continue
        # Relative to bin n, so that no exponent is positive and exp never overflows.
        weight = torch.exp(kappa * (d * (2 * r - d)))
        weight = torch.where((n + d).abs() <= max_index, weight, 0.0)
        total, first, second, third = (
            total + weight,
            first + d * weight,
            second + d * d * weight,
            third + d**3 * weight,
        )
    first, second, third = first / total, second / total, third / total
    variance = second - first * first
    skew = third - 3 * first * second + 2 * first**3
    return n + first, 2 * kappa * variance, kappa * (2 * (r - first) * variance - skew)


def _reach_from_the_end(u: Tensor, kappa: Tensor, max_index: int) -> int:
    """How many bins from the nearest existing one still weigh something: 2 k d x + k d^2 > TAIL, x = how far beyond."""
    beyond = (u.abs() - max_index).clamp_min(0)
    distance = TAIL / (kappa * beyond + torch.sqrt((kappa * beyond) ** 2 + TAIL * kappa))
    return math.ceil(min(2.0 * max_index, float(distance.max()) + 1))
