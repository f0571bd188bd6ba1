r"""One period of the soft quantizer, for every table entry at once.

Away from the ends of the index range g = n + h(r, kappa): only the residual r = u - n in [-1/2, 1/2] matters, and there are only
128 kappas.  So the transcendental work is done per *table entry*, in float64, and a coefficient costs a few multiplications:

* kappa < 9: h / r, s = dh/dr and t / r = kappa dh/dkappa / r are even and smooth in r, hence polynomials in y = 8 r^2 - 1, fitted
  through the direct sum at Chebyshev nodes to the last digit of the dtype;
* kappa >= 9: by the Jacobi triple product g is a staircase of sigmoids with risers at the half-integers, and only the nearest
  ones count:

      h = sum_{c = 1/2, 3/2, ..} a_c - b_c,    a_c = sigmoid(2 kappa (r - c)),    b_c = sigmoid(-2 kappa (r + c))

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

Room = Callable[
    [str], Tensor | None
]  # name of an intermediate result -> the buffer to put it into; None: a new one


def fresh(name: str) -> None:
    """The room of those who do not mind an allocation at every step."""
    return None


@dataclass(frozen=True)
class Curves:
    """h, s and t of every table entry.

    Attributes:
        twice: 2 kappa.
        h, s, t: coefficients of h / r, s and t / r as polynomials in y, highest power first, each of the shape of ``kappa``; empty when
            no entry is below the switch.
        sharp: 1 for entries above the switch, else 0; ``None`` when there are none above, or none below.
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
        """The curves of ``kappa`` (float64, any shape, few entries) to the precision of ``dtype``; looks at the values of kappa."""
        single = dtype != torch.float64
        sharp = kappa >= (SWITCH if window != 1 else math.inf)
        some, every = bool(sharp.any()), bool(sharp.all())
        pairs = (1 if single else 2) if some else 0
        twice, minus_one = (2 * kappa).to(dtype), torch.tensor(-1, dtype=dtype, device=kappa.device)
        if every:
            return cls(twice, (), (), (), None, pairs, minus_one)
        nodes, tolerance = (24, 6e-8) if single else (40, 1e-14)
        entries = kappa.clamp_max(SWITCH).reshape(-1)
        samples = torch.cat([_samples(part, nodes, window) for part in entries.split(512)], dim=2)
        spectrum = torch.matmul(_chebyshev(nodes).to(kappa.device), samples)  # (3, nodes, entries)
        scale = samples.abs().amax((1, 2)).clamp_min(1)
        tail = (
            spectrum.abs().flip(1).cumsum(1).flip(1).amax(2) / scale[:, None]
        )  # what is lost from a power on, at worst
        polynomials = []
        for terms, lost in zip(spectrum, tail):
            count = max(2, int((lost > tolerance).sum()))
            powers = _monomials(count).to(kappa.device) @ terms[:count]
            polynomials.append(tuple(power.view(kappa.shape).to(dtype) for power in powers.flip(0)))
        return cls(twice, *polynomials, sharp.to(dtype) if some else None, pairs, minus_one)

    def map(self, lay_out: Callable[[Tensor], Tensor]) -> "Curves":
        """The same curves with every table laid out by ``lay_out``."""
        h, s, t = (tuple(lay_out(c) for c in polynomial) for polynomial in (self.h, self.s, self.t))
        sharp = None if self.sharp is None else lay_out(self.sharp)
        return Curves(lay_out(self.twice), h, s, t, sharp, self.pairs, self.minus_one)

    def at(
        self, r: Tensor, slope: bool = False, turn: bool = False, room: Room = fresh
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """h, s (if ``slope``) and t (if ``turn``) at r, in buffers from ``room``; the tables must broadcast to r."""
        if not self.h:
            return self._risers(r, slope, turn, room)
        y = torch.addcmul(self.minus_one, r, r, value=8, out=room("y"))
        h = _horner(self.h, y, room("h")).mul_(r)
        s = _horner(self.s, y, room("s")) if slope else None
        t = _horner(self.t, y, room("t")).mul_(r) if turn else None
        if self.pairs:
            for smooth, risen in zip((h, s, t), self._risers(r, slope, turn, room, "risen ")):
                if smooth is not None:
                    torch.lerp(smooth, risen, self.sharp, out=smooth)
        return h, s, t

    def _risers(
        self, r: Tensor, slope: bool, turn: bool, room: Room, prefix: str = ""
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        h = s = t = None
        for k in range(self.pairs):
            c, name = k + 0.5, f"{prefix}{k}"
            a = torch.sub(r, c, out=room(name + "a")).mul_(self.twice).sigmoid_()
            b = torch.add(r, c, out=room(name + "b")).mul_(self.twice).neg_().sigmoid_()
            h = _plus(h, torch.sub(a, b, out=room(name + "h")))
            if slope or turn:
                a, b = (
                    torch.addcmul(a, a, a, value=-1, out=a),
                    torch.addcmul(b, b, b, value=-1, out=b),
                )  # the sigmoids' slopes
                both = torch.add(a, b, out=room(name + "both"))
                if turn:  # 2 kappa ((r - c) a' + (r + c) b')
                    t = _plus(t, a.sub_(b).mul_(-c).addcmul_(r, both).mul_(self.twice))
                s = _plus(s, both.mul_(self.twice)) if slope else None
        return h, s, t


def law(r: Tensor, kappa: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """h, s and t by the definition: moments of the bins -reach .. reach under weights exp(-kappa (r - d)^2), in float64."""
    d = torch.arange(-reach, reach + 1, dtype=torch.float64, device=r.device).view(
        -1, *[1] * max(r.dim(), kappa.dim())
    )
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
    h, s, t = law(r, kappa, reach)
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
    """Coefficients of T_0, T_1, ... -> coefficients of 1, y, y^2, ... (count, count), by T_{k+1} = 2 y T_k - T_{k-1}."""
    table = torch.zeros(count, count, dtype=torch.float64)
    table[0, 0] = table[1, 1] = 1
    for k in range(1, count - 1):
        table[1:, k + 1] = 2 * table[:-1, k]
        table[:, k + 1] -= table[:, k - 1]
    return table


def _horner(coefficients: tuple[Tensor, ...], y: Tensor, out: Tensor | None) -> Tensor:
    value = torch.addcmul(coefficients[1], coefficients[0], y, out=out)
    for coefficient in coefficients[2:]:
        value = torch.addcmul(coefficient, value, y, out=value)
    return value


def _plus(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total.add_(term)
