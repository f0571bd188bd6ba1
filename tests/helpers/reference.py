"""Slow and obvious float64 references: every sum written out, nothing shared with the package."""

import math

import torch
from torch import Tensor


def soft_quantize(
    z: Tensor, q: Tensor, alpha: Tensor, max_index: int, window: int | None = None
) -> tuple[Tensor, ...]:
    """E[i q] under P(i | z) ~ exp(-alpha (z - i q)^2), and its derivatives by z, q and alpha.

    All 2 L + 1 bins are summed, element by element, or those within ``window // 2`` of the existing
    bin nearest to z / q, taken as constants.  The derivatives are those of the definition, with
    u_i = i q: E, Var and Cov are under P.
    """
    z, q, alpha = torch.broadcast_tensors(
        z.double(), torch.as_tensor(q).double(), torch.as_tensor(alpha).double()
    )
    i = torch.arange(-max_index, max_index + 1, dtype=torch.float64)
    z, q, alpha = z[..., None], q[..., None], alpha[..., None]
    energy = -alpha * (z - i * q) ** 2
    if window is not None:
        nearest = torch.round(z / q).clamp(-max_index, max_index)
        energy = energy.masked_fill((i - nearest).abs() > window // 2, -math.inf)
    p = torch.softmax(energy, dim=-1)
    # e_i, moved by a constant of the sample: covariances stay the same, and float64 keeps its
    # digits at large z.
    near = torch.round(z / q).clamp(-max_index, max_index)
    e_alpha = -((i - near) * q) * ((i + near) * q - 2 * z)
    e_z = 2 * alpha * (i - near) * q
    e_q = 2 * alpha * ((z - i * q) * i - (z - near * q) * near)
    d = i - near
    mean = (p * d).sum(-1, keepdim=True)

    def slope(energy_slope: Tensor) -> Tensor:  # dE[i] = Cov(i, d energy)
        return (p * (d - mean) * energy_slope).sum(-1, keepdim=True)

    value = q * (near + mean)
    return tuple(
        t.squeeze(-1)
        for t in (value, q * slope(e_z), near + mean + q * slope(e_q), q * slope(e_alpha))
    )


def dct(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of one block (8, 8) by its double sum: entry [v, u]."""
    out = torch.zeros(8, 8, dtype=torch.float64)
    for v in range(8):
        for u in range(8):
            total = 0.0
            for row in range(8):
                for column in range(8):
                    wave = math.cos((2 * row + 1) * v * math.pi / 16) * math.cos(
                        (2 * column + 1) * u * math.pi / 16
                    )
                    total += x[row, column].item() * wave
            norm = (math.sqrt(0.5) if v == 0 else 1.0) * (math.sqrt(0.5) if u == 0 else 1.0)
            out[v, u] = total * norm / 4
    return out


def idct(z: Tensor) -> Tensor:
    """The inverse of :func:`dct` by its double sum."""
    out = torch.zeros(8, 8, dtype=torch.float64)
    values = z.double().tolist()
    for row in range(8):
        for column in range(8):
            total = 0.0
            for v in range(8):
                for u in range(8):
                    norm = (math.sqrt(0.5) if v == 0 else 1.0) * (math.sqrt(0.5) if u == 0 else 1.0)
                    wave = math.cos((2 * row + 1) * v * math.pi / 16) * math.cos(
                        (2 * column + 1) * u * math.pi / 16
                    )
                    total += norm * values[v][u] * wave / 4
            out[row, column] = total
    return out


def ycbcr(rgb: Tensor) -> Tensor:
    """BT.601, full range, chroma centred on 0: (3, H, W) -> (3, H, W)."""
    r, g, b = rgb.double()
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return torch.stack([y, (b - y) / 1.772, (r - y) / 1.402])


def rgb(ycc: Tensor) -> Tensor:
    """The inverse of :func:`ycbcr`."""
    y, cb, cr = ycc.double()
    r, b = y + 1.402 * cr, y + 1.772 * cb
    return torch.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b])


def lens(
    image: Tensor, tables: Tensor, alpha: Tensor, max_index: int, window: int | None = None
) -> Tensor:
    """J_d(x, w) of one image (3, H, W) in [0, 255], block by block.

    ``tables`` and ``alpha`` are (2, 8, 8).
    """
    height, width = image.shape[1:]
    rows = [min(i, height - 1) for i in range(-(-height // 8) * 8)]
    columns = [min(i, width - 1) for i in range(-(-width // 8) * 8)]
    x = ycbcr(image[:, rows][:, :, columns] - 128)
    for channel in range(3):
        table = 0 if channel == 0 else 1
        for top in range(0, len(rows), 8):
            for left in range(0, len(columns), 8):
                block = (channel, slice(top, top + 8), slice(left, left + 8))
                x[block] = idct(
                    soft_quantize(dct(x[block]), tables[table], alpha[table], max_index, window)[0]
                )
    return (rgb(x) + 128)[:, :height, :width]


def cmi(
    logits: Tensor, labels: Tensor, num_classes: int, temperature: float = 1.0
) -> tuple[float, list[float], float]:
    """CMI, its classes and Gamma in nats, by loops over samples, classes and pairs of samples."""
    f = [[math.exp(v) for v in row] for row in (logits.double() / temperature).tolist()]
    f = [[v / sum(row) for v in row] for row in f]
    y = labels.tolist()
    total, per_class = 0.0, []
    for c in range(num_classes):
        members = [row for row, label in zip(f, y, strict=True) if label == c]
        if not members:
            per_class.append(0.0)
            continue
        centre = [sum(row[i] for row in members) / len(members) for i in range(num_classes)]
        divergences = [
            sum(p * math.log(p / s) for p, s in zip(row, centre, strict=True)) for row in members
        ]
        per_class.append(sum(divergences) / len(members))
        total += sum(divergences) / len(f)
    crossings = [
        -sum(p * math.log(r) for p, r in zip(f[a], f[b], strict=True))
        for a in range(len(f))
        for b in range(len(f))
        if y[a] != y[b]
    ]
    return total, per_class, sum(crossings) / len(crossings) if crossings else math.nan
