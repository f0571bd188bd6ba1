"""Class centres of a network's softened answers, and the divergence of its answers from them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from djip_ext.bench.distillers._precision import full_precision
from djip_ext.metrics.cmi import FLOOR
from djip_ext.utils.distributed import sum_all
from djip_ext.utils.networks import autocast


@torch.no_grad()
def class_centres(
    network: nn.Module,
    loader: Iterable[tuple[Tensor, ...]],
    epoch: int,
    powers: Sequence[float],
    like: Tensor,
    precision: str = "float32",
) -> Tensor:
    """Q[a, y] = mean of softmax(a z(x)) over the images of class y, a = 1 / T, in one pass.

    The network runs in eval mode without gradients and gets its modes back.  Sums are float64; in
    a process group they are those of all processes.

    Args:
        network: returns ``(logits (B, C), features)``; one that answers from memory is told the
            indices of each batch and ``epoch`` first (its ``select``).
        loader: batches that begin with images (B, 3, H, W), labels (B,) and, for a network that
            answers from memory, indices (B,).
        epoch: counted from 1.
        powers: the A values of a.
        like: (A, C, C); the centres have its device and its dtype.
        precision: of the network, "float32" or "bfloat16".

    Returns:
        (A, C, C); uniform for a class without images.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    select = getattr(network, "select", None)
    sums = torch.zeros_like(like, dtype=torch.float64)
    counts = torch.zeros_like(sums[0, 0])
    for image, label, *index in loader:
        image = image.to(like.device)
        label = label.to(like.device)
        if select is not None:
            select(index[0], epoch)
        with autocast(image.device, precision):
            logits = network(image)[0]
        for sum_f, power in zip(sums, powers, strict=True):
            sum_f.index_add_(0, label, torch.softmax(power * logits.double(), dim=1))
        counts += label.bincount(minlength=len(counts))
    for module, mode in modes:
        module.training = mode
    sums = sum_all(sums)
    counts = sum_all(counts)
    centres = sums / counts.clamp_min(1)[:, None]
    centres[:, counts == 0] = 1 / len(counts)
    return centres.to(like.dtype)


@full_precision
def cmi_of_powers(
    logits: Tensor, target: Tensor, centres: Tensor, powers: Sequence[float]
) -> Tensor:
    """For each power a, the batch mean of KL(softmax(a z) || Q_{y,a}), in nats.

    At centres that are the batch's class means this is the batch's conditional mutual information;
    at those of a whole set it averages to the set's.

    Shape:
        logits ``(B, C)``, target ``(B,)``, centres ``(A, C, C)`` with Q_{y,a} in ``[a, y]``;
        output ``(A,)``, differentiable in the logits.
    """
    a = torch.as_tensor(powers, dtype=logits.dtype, device=logits.device)
    ln_f = torch.log_softmax(a[:, None, None] * logits, dim=2)
    ln_q = centres.to(logits.dtype).clamp_min(FLOOR).log()[:, target]
    return (ln_f.exp() * (ln_f - ln_q)).sum(2).mean(1)
