"""Class means of a network's softened answers over a training set, in eval mode."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

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
