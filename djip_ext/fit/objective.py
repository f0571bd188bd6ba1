r"""What the lens is fitted to (DJIP, Theorem 1).

L = L_CE + lambda L_rev, minimised over the tables w.

For any reverse channel Q(x | i, y), a distribution over the samples D_y of class y,

    CMI >= H(X | Y) + E sum_i f_x[i] ln Q(x | i, y),
    with equality at    Q*(x | i, y) = f_x[i] / (|D_y| S_y[i]),

so max over w of CMI is a joint max over w and Q, reached by alternating between them.  With Q
fixed,

    L_rev = -(1/|B|) sum_{(x, y) in B} sum_i f_x[i] ln Q(x | i, y).

The sign: summaries of the paper print L_CE - lambda L_rev.  That *lowers* CMI; with ``+`` its
gradient is the gradient of CE - lambda CMI whenever Q is fresh, which the tests hold against
float64.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from djip_ext.metrics.cmi import FLOOR


def reverse_channel(ln_f: Tensor, ln_centres: Tensor, counts: Tensor) -> Tensor:
    """ln Q* = ln f - ln S_y - ln |D_y|, a constant: no gradient flows into it.

    Shape: ln_f (B, C), the network's log probabilities; ln_centres (B, C) and counts (B,), those of
    each sample's class.
    """
    return (ln_f - ln_centres - counts.log()[:, None]).detach()


def reverse_loss(ln_f: Tensor, ln_q: Tensor) -> Tensor:
    """L_rev = -(1/|B|) sum sum_i f[i] ln Q, differentiable in ln_f (B, C); ln_q (B, C)."""
    return -(ln_f.exp() * ln_q).sum(1).mean()


def lens_objective(
    logits: Tensor,
    labels: Tensor,
    centres: Tensor,
    counts: Tensor,
    lam: Tensor | float,
    temperature: float = 1.0,
    ln_f_old: Tensor | None = None,
    ce_weight: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mini-batch objective and its two parts.

    Args:
        logits: (B, C), the teacher's on lensed images, with a graph back to the tables.
        labels: (B,).
        centres: (C, C), row y is S_y; constant.
        counts: (C,), |D_y|.
        lam: lambda, the price of a nat of CMI in nats of cross entropy.
        temperature: T of the CMI term; the cross entropy is always at T = 1.
        ln_f_old: (B, C), log probabilities from the last pass: the ``literal`` variant. ``None``:
            those of ``logits``.
        ce_weight: 0 leaves CMI alone.

    Returns:
        the loss; the cross entropy (nats, detached); KL(f || S_y) averaged over the batch (nats,
        detached), which at fresh centres averages to CMI over the set.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    ln_f = torch.log_softmax(logits / temperature, dim=1)
    ln_centres = centres.to(ln_f).clamp_min(FLOOR).log()[labels]
    ln_q = reverse_channel(
        ln_f if ln_f_old is None else ln_f_old, ln_centres, counts.to(ln_f)[labels]
    )
    ce = F.cross_entropy(logits, labels)
    loss = ce_weight * ce + lam * reverse_loss(ln_f, ln_q)
    kl = (ln_f.exp() * (ln_f - ln_centres)).sum(1).mean()
    return loss, ce.detach(), kl.detach()
