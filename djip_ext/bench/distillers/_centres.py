"""Class means of a network's softened answers over a training set, in eval mode."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from djip_ext.utils.distributed import sum_all
from djip_ext.utils.networks import autocast, device_of


@torch.no_grad()
def class_centres(
    network: nn.Module,
    loader: Iterable[tuple[Tensor, ...]],
    num_classes: int,
    powers: Sequence[float],
    precision: str = "float32",
) -> Tensor:
    """Q[a, y] = mean of softmax(a z(x)) over the images of class y, a = 1 / T, in one pass.

    The network runs in eval mode without gradients and gets its modes back.  Sums are float64; in
    a process group they are those of all processes.

    Args:
        network: returns ``(logits (B, C), features)``.
        loader: batches that begin with images (B, 3, H, W) and labels (B,).
        num_classes: C.
        powers: the values of a.
        precision: of the network, "float32" or "bfloat16".

    Returns:
        (A, C, C) float32 on the network's device; uniform for a class without images.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    device = device_of(network)
    sums = torch.zeros(len(powers), num_classes, num_classes, dtype=torch.float64, device=device)
    counts = torch.zeros(num_classes, dtype=torch.float64, device=device)
    for image, label, *_ in loader:
        image, label = image.to(device), label.to(device)
        with autocast(image.device, precision):
            logits = network(image)[0]
        for sum_f, power in zip(sums, powers, strict=True):
            sum_f.index_add_(0, label, torch.softmax(power * logits.double(), dim=1))
        counts.index_add_(0, label, torch.ones_like(label, dtype=torch.float64))
    for module, mode in modes:
        module.training = mode
    sums, counts = sum_all(sums), sum_all(counts)
    centres = sums / counts.clamp_min(1)[:, None]
    centres[:, counts == 0] = 1 / num_classes
    return centres.float()
