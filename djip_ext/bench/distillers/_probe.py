"""The shapes of a network's features, found without disturbing the network."""

import torch
from torch import nn

from djip_ext.bench.models import Features
from djip_ext.utils.networks import device_of


@torch.no_grad()
def probe(network: nn.Module, input_size: tuple[int, int]) -> Features:
    """Features of one image of zeros, ``(1, 3, *input_size)``.

    Runs in eval mode, so that no running statistic moves, and draws no random number; every mode is
    restored.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    output: tuple[torch.Tensor, Features]
    output = network(torch.zeros(1, 3, *input_size, device=device_of(network)))
    for module, mode in modes:
        module.training = mode
    return output[1]
