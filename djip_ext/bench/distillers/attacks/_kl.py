"""The Kullback-Leibler term of the knockoff attacks, divided as one chooses."""

import torch
from torch import Tensor

from djip_ext.bench.distillers._precision import full_precision
from djip_ext.errors import DJIPError

FLOOR = 1e-12  # of a target's probability, inside the logarithm
REDUCTIONS = ("batchmean", "mean")


@full_precision
def kl_to_student(
    p_t: Tensor, z_s: Tensor, temperature: float, reduction: str, weight: Tensor | None = None
) -> Tensor:
    """T^2 times the mean over the batch of KL(p_t || softmax(z_s / T)), in nats.

    Args:
        p_t: target probabilities (B, C), already softened; zeros are allowed.
        z_s: the student's logits (B, C).
        temperature: T.
        reduction: "batchmean" divides the sum by B, "mean" by B C, as ``torch``'s own "mean" does:
            C times weaker.
        weight: (B,) of the images; None: all 1.
    """
    ln_p_s = torch.log_softmax(z_s / temperature, dim=1)
    kl = (p_t * (p_t.clamp_min(FLOOR).log() - ln_p_s)).sum(1)
    if weight is not None:
        kl = weight * kl
    classes = z_s.shape[1] if reduction == "mean" else 1
    return temperature**2 * kl.mean() / classes


def check_reduction(name: str, reduction: str) -> str:
    """``reduction``, if ``NAME.REDUCTION`` may be it.

    Raises:
        DJIPError: it may not.
    """
    if reduction not in REDUCTIONS:
        choices = " or ".join(REDUCTIONS)
        raise DJIPError(f"{name}.REDUCTION is '{reduction}'; choose {choices}")
    return reduction
