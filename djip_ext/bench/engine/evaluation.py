"""Evaluating a trained network on the test images: what mdistiller's tools/eval.py does."""

from collections.abc import Callable

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import get_test_loader
from djip_ext.bench.engine.networks import build_teacher
from djip_ext.bench.engine.run import scaled_as
from djip_ext.bench.engine.utils import evaluate


def evaluate_teacher(
    cfg: CfgNode, wrap: Callable[[nn.Module, CfgNode], nn.Module] | None = None
) -> dict[str, float]:
    """Evaluate the trained network that ``DISTILLER.TEACHER`` names on the test set.

    Args:
        cfg: also names the data, ``BENCH.TEACHER_CHECKPOINT`` and the device.
        wrap: makes the module to evaluate of the network and of the configuration with the test
            set's normalisation, to put a lens in front of it; None: the network itself.

    Returns:
        ``test_loss`` (nats), ``test_acc`` and ``test_acc_top5`` (%).

    Raises:
        DJIPError: an unknown network, missing or unfitting weights, missing data.
    """
    loader = get_test_loader(cfg, cfg.DISTILLER.TEACHER)
    network = build_teacher(cfg, loader.data.num_classes)
    if wrap is not None:
        network = wrap(network, scaled_as(cfg, loader.data))
    network.to(loader.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return evaluate(network, loader, cfg.BENCH.PRECISION)
