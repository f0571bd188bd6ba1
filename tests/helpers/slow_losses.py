"""The distillers' losses and layers one number at a time, float64, in the order of the papers.

The fast ones are compared with these.
"""

import math

import torch
from torch import Tensor


def probabilities(row: Tensor) -> list[Tensor]:
    powers = [value.exp() for value in row]
    return [power / sum(powers) for power in powers]


def divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum(a * (a / b).log() for a, b in zip(p, q, strict=True))


def mean(values: list[Tensor]) -> Tensor:
    return sum(values) / len(values)


def length(values: list[Tensor]) -> Tensor:
    return sum(value**2 for value in values) ** 0.5


def unit(values: list[Tensor]) -> list[Tensor]:
    size = length(values)
    return [value / size for value in values] if size > 0 else values


def huber(a: Tensor, b: Tensor) -> Tensor:
    gap = abs(a - b)
    return gap**2 / 2 if gap < 1 else gap - 0.5


def kd_reference(z_s: Tensor, z_t: Tensor, temperature: float) -> Tensor:
    rows = zip(z_t / temperature, z_s / temperature, strict=True)
    return temperature**2 * mean([divergence(probabilities(t), probabilities(s)) for t, s in rows])


def dkd_reference(
    z_s: Tensor, z_t: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    losses = []
    for s, t, y in zip(z_s / temperature, z_t / temperature, target.tolist(), strict=True):
        p_s, p_t = probabilities(s), probabilities(t)
        rest_s = [p for i, p in enumerate(p_s) if i != y]
        rest_t = [p for i, p in enumerate(p_t) if i != y]
        tckd = divergence([p_t[y], sum(rest_t)], [p_s[y], sum(rest_s)])
        nckd = divergence([p / sum(rest_t) for p in rest_t], [p / sum(rest_s) for p in rest_s])
        losses.append(alpha * tckd + beta * nckd)
    return temperature**2 * mean(losses)


def pooled_to(f: Tensor, side: int) -> list[list[list[Tensor]]]:
    """One image's map ``(C, H, W)`` as nested lists, averaged over square blocks."""
    block = f.shape[1] // side
    cells = range(block)
    return [
        [
            [
                mean([c[block * i + u, block * j + v] for u in cells for v in cells])
                for j in range(side)
            ]
            for i in range(side)
        ]
        for c in f
    ]


def attention_reference(f: Tensor, side: int, p: int) -> list[Tensor]:
    channels = pooled_to(f, side)
    return unit([mean([c[i][j] ** p for c in channels]) for i in range(side) for j in range(side)])


def at_reference(feats_s: list[Tensor], feats_t: list[Tensor], p: int) -> Tensor:
    total = 0
    for f_s, f_t in zip(feats_s, feats_t, strict=False):  # stages that both networks have
        side = min(f_s.shape[2], f_t.shape[2])
        maps = [
            (attention_reference(s, side, p), attention_reference(t, side, p))
            for s, t in zip(f_s, f_t, strict=True)
        ]
        total = total + mean(
            [(a - b) ** 2 for q_s, q_t in maps for a, b in zip(q_s, q_t, strict=True)]
        )
    return total


def dot(a: Tensor, b: Tensor) -> Tensor:
    return sum(x * y for x, y in zip(a.flatten(), b.flatten(), strict=True))


def sp_reference(f_s: Tensor, f_t: Tensor) -> Tensor:
    g_s = [unit([dot(a, b) for b in f_s]) for a in f_s]
    g_t = [unit([dot(a, b) for b in f_t]) for a in f_t]
    return mean(
        [
            (s - t) ** 2
            for row_s, row_t in zip(g_s, g_t, strict=True)
            for s, t in zip(row_s, row_t, strict=False)
        ]
    )


def relative_distances_reference(f: Tensor, squared: bool) -> list[Tensor]:
    pairs = [(i, j) for i in range(len(f)) for j in range(len(f))]
    power = 2 if squared else 1
    d = [f.new_zeros(()) if i == j else length(list(f[i] - f[j])) ** power for i, j in pairs]
    scale = mean([value for value in d if value > 0])
    return [value / scale for value in d]


def rkd_distance_reference(f_s: Tensor, f_t: Tensor, squared: bool) -> Tensor:
    pairs = zip(
        relative_distances_reference(f_s, squared),
        relative_distances_reference(f_t, squared),
        strict=True,
    )
    return mean([huber(s, t) for s, t in pairs])


def cosines_reference(f: Tensor) -> list[Tensor]:
    cosines = []
    for i in range(len(f)):
        e = [
            [f.new_zeros(())] * f.shape[1] if j == i else unit(list(f[j] - f[i]))
            for j in range(len(f))
        ]
        cosines += [sum(x * y for x, y in zip(a, b, strict=True)) for a in e for b in e]
    return cosines


def rkd_angle_reference(f_s: Tensor, f_t: Tensor) -> Tensor:
    return mean(
        [huber(s, t) for s, t in zip(cosines_reference(f_s), cosines_reference(f_t), strict=True)]
    )


def correlation(a: list[Tensor], b: list[Tensor]) -> Tensor:
    a, b = [x - mean(a) for x in a], [x - mean(b) for x in b]
    return sum(x * y for x, y in zip(a, b, strict=True)) / (length(a) * length(b) + 1e-8)


def dist_reference(z_s: Tensor, z_t: Tensor, beta: float, gamma: float, tau: float) -> Tensor:
    rows_s = [probabilities(row) for row in z_s / tau]
    rows_t = [probabilities(row) for row in z_t / tau]
    inter = 1 - mean([correlation(s, t) for s, t in zip(rows_s, rows_t, strict=True)])
    intra = 1 - mean(
        [
            correlation(list(s), list(t))
            for s, t in zip(zip(*rows_s, strict=True), zip(*rows_t, strict=False), strict=False)
        ]
    )
    return tau**2 * (beta * inter + gamma * intra)


def wttm_reference(z_s: Tensor, z_t: Tensor, gamma: float) -> Tensor:
    losses = []
    for s, t in zip(z_s, z_t, strict=True):
        powers = [p**gamma for p in probabilities(t)]
        u = sum(powers)
        losses.append(u * divergence([power / u for power in powers], probabilities(s)))
    return mean(losses)


def cc_reference(f_s: Tensor, f_t: Tensor) -> Tensor:
    gaps = [[abs(a - b) for a, b in zip(s, t, strict=True)] for s, t in zip(f_s, f_t, strict=True)]
    return mean(
        [
            sum(a * b for a, b in zip(gaps[i], gaps[i + 1], strict=True))
            for i in range(len(gaps) - 1)
        ]
    )


def ft_reference(f_s: Tensor, f_t: Tensor) -> Tensor:
    side = min(f_s.shape[2], f_t.shape[2])
    factors = [
        (attention_reference(s, side, 2), attention_reference(t, side, 2))
        for s, t in zip(f_s, f_t, strict=True)
    ]
    return mean([abs(a - b) for q_s, q_t in factors for a, b in zip(q_s, q_t, strict=True)])


def z_scores(values: list[Tensor], eps: float) -> list[Tensor]:
    centre = mean(values)
    deviation = (sum((value - centre) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return [(value - centre) / (deviation + eps) for value in values]


def itrd_correlation_reference(f_s: Tensor, f_t: Tensor, alpha: float) -> Tensor:
    total = 0
    for s, t in zip(f_s.T, f_t.T, strict=True):
        pairs = zip(z_scores(list(s), 1e-8), z_scores(list(t), 1e-8), strict=True)
        c = mean([a * b for a, b in pairs])
        total = total + abs(c - 1) ** (2 * alpha)
    return total.log() / math.log(2)


def gram(f: Tensor) -> list[list[Tensor]]:
    rows = [unit(list(row)) for row in f]
    return [[sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]


def itrd_mutual_reference(f_s: Tensor, f_t: Tensor) -> Tensor:
    g_s, g_t = gram(f_s), gram(f_t)
    g_st = [
        [a * b for a, b in zip(row_s, row_t, strict=True)]
        for row_s, row_t in zip(g_s, g_t, strict=False)
    ]
    energies = []
    for g in (g_s, g_st):
        trace = sum(g[i][i] for i in range(len(g)))
        energies.append(sum((value / trace) ** 2 for row in g for value in row))
    return energies[0] - energies[1]


def standardised_reference(z: Tensor) -> Tensor:
    return torch.stack([torch.stack(z_scores(list(row), 1e-7)) for row in z])


def nce_reference(scores: Tensor, num_data: int) -> Tensor:
    noise = (scores.shape[1] - 1) / num_data
    losses = []
    for positive, *negatives in scores:
        hit = positive / (positive + noise + 1e-7)
        misses = [noise / (negative + noise + 1e-7) for negative in negatives]
        losses.append(-hit.log() - sum(miss.log() for miss in misses))
    return mean(losses)


def cross_entropy_reference(z: Tensor, target: Tensor) -> Tensor:
    return mean([-probabilities(row)[y].log() for row, y in zip(z, target.tolist(), strict=True)])


def crd_reference(
    v_s: Tensor,
    v_t: Tensor,
    memory_s: Tensor,
    memory_t: Tensor,
    contrastive_index: Tensor,
    temperature: float,
) -> Tensor:
    """The first step, which sets the normalising constants."""
    total = 0
    for v, memory in ((v_s, memory_t), (v_t, memory_s)):
        raw = [
            [(dot(v[b], memory[i]) / temperature).exp() for i in row]
            for b, row in enumerate(contrastive_index.tolist())
        ]
        z = len(memory) * mean([score for row in raw for score in row]).detach()
        total = total + nce_reference(
            torch.stack([torch.stack(row) for row in raw]) / z, len(memory)
        )
    return total


def linear_reference(f: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.stack(
        [torch.stack([dot(row, w) + b for w, b in zip(weight, bias, strict=True)]) for row in f]
    )


def convolution_reference(
    f: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """Maps (B, C, H, W) by kernels (D, C, k, k)."""
    batch, channels, height, width = f.shape
    size = weight.shape[2]
    padded = f.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = f
    starts = [range(0, side + 2 * padding - size + 1, stride) for side in (height, width)]
    columns = [
        [
            [
                (padded[:, :, i : i + size, j : j + size] * w).sum(dim=(1, 2, 3)) + b
                for j in starts[1]
            ]
            for i in starts[0]
        ]
        for w, b in zip(weight, bias, strict=True)
    ]
    return torch.stack(
        [torch.stack([torch.stack(row, dim=1) for row in channel], dim=1) for channel in columns],
        dim=1,
    )


def transposed_convolution_reference(
    f: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
) -> Tensor:
    """Lay a kernel (C, D, k, k) over the output for every value (B, C, i, j), ``stride`` apart.

    The border is cut off.
    """
    batch, _, height, width = f.shape
    _, channels, size, _ = weight.shape
    canvas = f.new_zeros(batch, channels, (height - 1) * stride + size, (width - 1) * stride + size)
    for i in range(height):
        for j in range(width):
            laid = torch.einsum("bc,cduv->bduv", f[:, :, i, j], weight)
            canvas[:, :, i * stride : i * stride + size, j * stride : j * stride + size] += laid
    canvas = canvas + bias[:, None, None]
    return canvas[:, :, padding : canvas.shape[2] - padding, padding : canvas.shape[3] - padding]


def batch_norm_reference(f: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels = []
    for c in range(f.shape[1]):
        values = list(f[:, c].flatten())
        centre = mean(values)
        variance = mean([(value - centre) ** 2 for value in values])
        channels.append((f[:, c] - centre) / (variance + 1e-5) ** 0.5 * weight[c] + bias[c])
    return torch.stack(channels, dim=1)


def leaky_reference(f: Tensor, slope: float) -> Tensor:
    return torch.where(f > 0, f, slope * f)
