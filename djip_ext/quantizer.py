r"""The soft quantizer of JPEG-DL (Salamah et al., ICLR 2025, arXiv 2410.07081), exact for every step and index range.

A coefficient z is replaced by q times the mean index under a Gaussian-shaped law over the integers i in [-L, L]:

    P(i | z) = exp(-alpha (z - i q)^2) / sum_j exp(-alpha (z - j q)^2),      Q_d(z) = q E[i]

With u = z / q and kappa = alpha q^2 the law is exp(-kappa (u - i)^2): everything depends on u and kappa alone.  From
the mean g, the variance V and the third central moment m of that law follow the value and all gradients:

    Q_d = q g                          dQ/dz     = 2 kappa V                 =: s
    t := kappa dg/dkappa               dQ/dq     = g - u s + 2 t
       = kappa (2 (u - g) V - m)       dQ/dalpha = q t / alpha

Summing 2 L + 1 exponentials per coefficient is never needed.  Let n be the integer nearest to u and r = u - n:

* kappa >= 1.76: the seven bins n-3 .. n+3 carry all but 2e-8 of the law;
* kappa < 1.76, away from the ends of the range: Poisson summation turns the sum into a Fourier series in r of which one
  term is left (error 3e-8);
* kappa < 1.76, near or beyond the ends: those few coefficients are summed directly over the bins that exist.
"""

import math

import torch
from torch import Tensor

SWITCH = 1.76  # kappa at which seven bins and one Fourier term are equally good, 3e-8
REACH = 3  # bins on either side of the nearest one, above the switch
TAIL = 24.0  # exp(-TAIL) is nothing in float32
MAX_KAPPA = 1e6  # beyond it the law is a point for any float32 u


def soft_quantize(
    z: Tensor, q: Tensor | float, alpha: Tensor | float, max_index: int, window: int | None = None
) -> Tensor:
    """Quantize ``z`` softly with step ``q``; differentiable in ``z``, ``q`` and ``alpha``.

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
    def forward(ctx, z: Tensor, q: Tensor, alpha: Tensor, max_index: int, window: int | None) -> Tensor:
        u = z / q
        kappa = (alpha * q * q).clamp_max(MAX_KAPPA)
        g, s, t = mean_index(u, kappa, max_index, window, slopes=any(ctx.needs_input_grad[:3]))
        saved = []
        if ctx.needs_input_grad[0]:
            saved.append(s)
        if ctx.needs_input_grad[1]:
            saved.append(g - u * s + 2 * t)
        if ctx.needs_input_grad[2]:
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


def mean_index(
    u: Tensor, kappa: Tensor, max_index: int, window: int | None = None, slopes: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean index g, its slope s = dg/du and t = kappa dg/dkappa (undefined when ``slopes`` is False).

    Shape: u any, kappa broadcastable to it; the results have the shape of u.
    """
    if window is not None:
        return _direct_sum(u, kappa, max_index, window // 2, slopes)
    if bool((kappa >= SWITCH).all()):
        return _direct_sum(u, kappa, max_index, REACH, slopes)
    smooth = (kappa < SWITCH).expand_as(u)
    low = kappa.clamp_max(SWITCH)
    result = _fourier(u, low, slopes)
    if bool((kappa >= SWITCH).any()):
        # Each branch is evaluated where the other is right too, but only with a kappa that it can bear.
        direct = _direct_sum(u, kappa.clamp_min(SWITCH), max_index, REACH, slopes)
        result = tuple(torch.where(smooth, f, d) for f, d in zip(result, direct))
    edge = smooth & (u.abs() > max_index - (TAIL / low).sqrt())
    if bool(edge.any()):
        u_edge, kappa_edge = u[edge], low.expand_as(u)[edge]
        exact = _direct_sum(u_edge, kappa_edge, max_index, _edge_reach(u_edge, kappa_edge, max_index), slopes)
        result = tuple(f.masked_scatter(edge, e) for f, e in zip(result, exact))
    return result


def _direct_sum(u: Tensor, kappa: Tensor, max_index: int, reach: int, slopes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Moments over the bins n - reach .. n + reach that lie in [-L, L], n the existing bin nearest to u."""
    n = u.round().clamp(-max_index, max_index)
    r = u - n  # |r| <= 1/2 unless u lies beyond the range; then r d <= 0 for every bin n + d that exists
    zero = torch.zeros_like(u)
    total, first, second, third = torch.ones_like(u), zero, zero, zero
    for d in range(-reach, reach + 1):
        if d == 0:
            continue
        # Relative to bin n, so that no exponent is positive and exp never overflows.
        weight = torch.exp(kappa * (d * (2 * r - d)))
        weight = torch.where((n + d).abs() <= max_index, weight, 0.0)
        total = total + weight
        first = first + d * weight
        if slopes:
            second = second + d * d * weight
            third = third + d**3 * weight
    mean = first / total
    g = n + mean
    if not slopes:
        return g, zero, zero
    second, third = second / total, third / total
    variance = second - mean * mean
    skew = third - 3 * mean * second + 2 * mean**3
    return g, 2 * kappa * variance, kappa * (2 * (r - mean) * variance - skew)


def _fourier(u: Tensor, kappa: Tensor, slopes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One term of the Poisson-summed series over *all* integers, for kappa <= SWITCH."""
    kappa = kappa.clamp_min(1e-3)  # e is 0 in float64 long before; keeps 1 / kappa^2 finite
    e = torch.exp(-math.pi**2 / kappa)
    phase = 2 * math.pi * (u - u.round())
    sine, cosine = torch.sin(phase), torch.cos(phase)
    over = 1 / (1 + 2 * e * cosine)
    shift = (2 * math.pi / kappa * e) * sine * over
    g = u - shift
    if not slopes:
        return g, g, g
    s = 1 - (4 * math.pi**2 / kappa * e) * (cosine + 2 * e) * over * over
    t = shift - (2 * math.pi**3 / (kappa * kappa) * e) * sine * over * over
    return g, s, t


def _edge_reach(u: Tensor, kappa: Tensor, max_index: int) -> int:
    """How many bins from the nearest existing one still weigh something: 2 k d x + k d^2 > TAIL, x = how far beyond."""
    beyond = (u.abs() - max_index).clamp_min(0)
    distance = TAIL / (kappa * beyond + torch.sqrt((kappa * beyond) ** 2 + TAIL * kappa))
    return math.ceil(min(2.0 * max_index, float(distance.max()) + 1))
