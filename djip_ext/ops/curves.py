r"""One period of the soft quantizer, for every table entry at once.

Away from the ends of the index range g = n + h(r, kappa): only the residual r = u - n in
[-1/2, 1/2] matters, and there are only 128 kappas.  So the transcendental work is done per *table
entry*, in float64, and a coefficient costs a few multiplications:

* kappa < 9: h / r, s = dh/dr and t / r = kappa dh/dkappa / r are even and smooth in r, hence
  polynomials in y = 8 r^2 - 1, fitted through the direct sum at Chebyshev nodes to the last digit
  of the dtype;
* kappa >= 9: by the Jacobi triple product g is a staircase of sigmoids with risers at the
  half-integers, and only the nearest ones count:

      h = sum_{c = 1/2, 3/2, ..} a_c - b_c,
      a_c = sigmoid(2 kappa (r - c)),    b_c = sigmoid(-2 kappa (r + c))

  one pair for float32, two for float64.

A window of 2 m + 1 bins is another smooth h, fitted in the same way.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

SWITCH = 9.0  # kappa from which a pair of risers is float32's h
LINEAR = 0.25  # kappa up to which h = r, s = 1 and t = 0 to 1e-16
TAIL = 40.0  # exp(-TAIL) is nothing in float64

# Name of an intermediate result -> the buffer to write it into; None: a new tensor.
Buffers = Callable[[str], Tensor | None]


def no_buffers(name: str) -> None:
    """Let torch allocate every intermediate result: the :data:`Buffers` that hold none."""
    return None


@dataclass(frozen=True)
class Curves:
    """h, s and t of every table entry.

    Attributes:
        twice: 2 kappa.
        h, s, t: coefficients of h / r, s and t / r as polynomials in y, highest power first, each
            of the shape of ``kappa``; empty when no entry is below the switch.
        sharp: 1 for entries above the switch, else 0; ``None`` when there are none above, or none
            below.
        pairs: of risers to sum; 0 when no entry is above the switch.
        minus_one: a constant.
    """

    twice: Tensor
    h: tuple[Tensor, ...]
    s: tuple[Tensor, ...]
    t: tuple[Tensor, ...]
    sharp: Tensor | None
    pairs: int
    minus_one: Tensor

    @classmethod
    def of(cls, kappa: Tensor, dtype: torch.dtype, window: int | None = None) -> "Curves":
        """The curves of ``kappa`` (float64, any shape, few entries) to the precision of ``dtype``.

        Reads the values of ``kappa``, which synchronises with its device.
        """
        single = dtype != torch.float64
        sharp = kappa >= (SWITCH if window != 1 else math.inf)
        some_sharp = bool(sharp.any())
        enough = 1 if single else 2
        pairs = enough if some_sharp else 0
        twice = (2 * kappa).to(dtype)
        minus_one = torch.tensor(-1, dtype=dtype, device=kappa.device)
        if bool(sharp.all()):
            return cls(twice, (), (), (), None, pairs, minus_one)
        nodes, tolerance = (24, 6e-8) if single else (40, 1e-14)
        entries = kappa.clamp_max(SWITCH).reshape(-1)
        parts = torch.split(entries, 512)
        samples = torch.cat([_samples(part, nodes, window) for part in parts], dim=2)
        spectrum = torch.matmul(_chebyshev(nodes).to(kappa.device), samples)  # (3, nodes, entries)
        scale = samples.abs().amax((1, 2)).clamp_min(1)
        # What is lost, at worst, by leaving out a power and all above it.
        tail = spectrum.abs().flip(1).cumsum(1).flip(1).amax(2) / scale[:, None]
        polynomials = []
        for terms, lost in zip(spectrum, tail, strict=True):
            count = max(2, int((lost > tolerance).sum()))
            powers = _monomials(count).to(kappa.device) @ terms[:count]
            polynomials.append(tuple(power.view(kappa.shape).to(dtype) for power in powers.flip(0)))
        h, s, t = polynomials
        return cls(twice, h, s, t, sharp.to(dtype) if some_sharp else None, pairs, minus_one)

    def map(self, lay_out: Callable[[Tensor], Tensor]) -> "Curves":
        """The same curves with every table laid out by ``lay_out``."""
        h, s, t = (tuple(lay_out(c) for c in polynomial) for polynomial in (self.h, self.s, self.t))
        sharp = None if self.sharp is None else lay_out(self.sharp)
        return Curves(lay_out(self.twice), h, s, t, sharp, self.pairs, self.minus_one)

    def at(
        self, r: Tensor, slope: bool = False, turn: bool = False, buffers: Buffers = no_buffers
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """h, s (if ``slope``) and t (if ``turn``) at r; the tables must broadcast to r.

        Args:
            r: the residuals, in [-1/2, 1/2].
            slope: whether s is needed; else ``None`` takes its place.
            turn: whether t is needed; else ``None`` takes its place.
            buffers: where results and intermediate results are written.
        """
        if not self.h:
            return self._risers(r, slope, turn, buffers)
        y = torch.addcmul(self.minus_one, r, r, value=8, out=buffers("y"))
        h = _horner(self.h, y, buffers("h")).mul_(r)
        s = _horner(self.s, y, buffers("s")) if slope else None
        t = _horner(self.t, y, buffers("t")).mul_(r) if turn else None
        if self.sharp is None:
            return h, s, t
        risen_h, risen_s, risen_t = self._risers(r, slope, turn, buffers, "risen ")
        torch.lerp(h, risen_h, self.sharp, out=h)
        if s is not None and risen_s is not None:
            torch.lerp(s, risen_s, self.sharp, out=s)
        if t is not None and risen_t is not None:
            torch.lerp(t, risen_t, self.sharp, out=t)
        return h, s, t

    def _risers(
        self, r: Tensor, slope: bool, turn: bool, buffers: Buffers, prefix: str = ""
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """h, s and t as sums over the pairs of risers nearest to r, nearest first."""
        h, s, t = self._pair(r, 0, slope, turn, buffers, prefix)
        for k in range(1, self.pairs):
            next_h, next_s, next_t = self._pair(r, k, slope, turn, buffers, prefix)
            h.add_(next_h)
            if s is not None and next_s is not None:
                s.add_(next_s)
            if t is not None and next_t is not None:
                t.add_(next_t)
        return h, s, t

    def _pair(
        self, r: Tensor, k: int, slope: bool, turn: bool, buffers: Buffers, prefix: str
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What the two risers at c = k + 1/2 and at -c add to h, s and t."""
        c = k + 0.5
        name = f"{prefix}{k}"
        a = torch.sub(r, c, out=buffers(name + "a")).mul_(self.twice).sigmoid_()
        b = torch.add(r, c, out=buffers(name + "b")).mul_(self.twice).neg_().sigmoid_()
        h = torch.sub(a, b, out=buffers(name + "h"))
        if not (slope or turn):
            return h, None, None
        # The slopes of the sigmoids, a' = a (1 - a), take the place of their values.
        torch.addcmul(a, a, a, value=-1, out=a)
        torch.addcmul(b, b, b, value=-1, out=b)
        both = torch.add(a, b, out=buffers(name + "both"))
        t = None
        if turn:  # 2 kappa ((r - c) a' + (r + c) b')
            t = a.sub_(b).mul_(-c).addcmul_(r, both).mul_(self.twice)
        return h, both.mul_(self.twice) if slope else None, t


def moments(r: Tensor, kappa: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """h, s and t by the definition, in float64.

    They are moments of the bins d = -reach .. reach under the weights exp(-kappa (r - d)^2).
    """
    dims = max(r.dim(), kappa.dim())
    d = torch.arange(-reach, reach + 1, dtype=torch.float64, device=r.device)
    d = d.view(-1, *[1] * dims)
    weight = torch.exp(kappa * d * (2 * r - d))  # relative to bin 0, so that nothing overflows
    weight = weight / weight.sum(0)
    first, second, third = ((weight * d**power).sum(0) for power in (1, 2, 3))
    variance = second - first * first
    skew = third - 3 * first * second + 2 * first**3
    return first, 2 * kappa * variance, kappa * (2 * (r - first) * variance - skew)


def _samples(kappa: Tensor, nodes: int, window: int | None) -> Tensor:
    """h / r, s and t / r at the Chebyshev nodes of y, float64 (3, nodes, entries)."""
    angle = (torch.arange(nodes, dtype=torch.float64, device=kappa.device) + 0.5) * (
        math.pi / nodes
    )
    r = ((torch.cos(angle) + 1) / 8).sqrt()[:, None]
    if window is None:
        kappa = kappa.clamp_min(LINEAR)
        reach = math.ceil(math.sqrt(TAIL / float(kappa.min())))
    else:
        reach = window // 2
    h, s, t = moments(r, kappa, reach)
    return torch.stack([h / r, s, t / r])


@lru_cache
def _chebyshev(nodes: int) -> Tensor:
    """Samples at the nodes -> coefficients of T_0, T_1, ... (nodes, nodes)."""
    k = torch.arange(nodes, dtype=torch.float64)
    transform = torch.cos(k[:, None] * (k + 0.5) * (math.pi / nodes)) * (2 / nodes)
    transform[0] /= 2
    return transform


@lru_cache
def _monomials(count: int) -> Tensor:
    """Coefficients of T_0, T_1, ... -> coefficients of 1, y, y^2, ... (count, count).

    By the recurrence T_{k+1} = 2 y T_k - T_{k-1}.
    """
    matrix = torch.zeros(count, count, dtype=torch.float64)
    matrix[0, 0] = 1
    matrix[1, 1] = 1
    for k in range(1, count - 1):
        matrix[1:, k + 1] = 2 * matrix[:-1, k]
        matrix[:, k + 1] -= matrix[:, k - 1]
    return matrix


def _horner(coefficients: tuple[Tensor, ...], y: Tensor, out: Tensor | None) -> Tensor:
    """The polynomial in y with these ``coefficients``, highest power first, by Horner's rule."""
    value = torch.addcmul(coefficients[1], coefficients[0], y, out=out)
    for coefficient in coefficients[2:]:
        value = torch.addcmul(coefficient, value, y, out=value)
    return value
