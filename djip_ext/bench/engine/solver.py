"""The optimiser and the learning rate of each epoch, as ``cfg.SOLVER`` says.

They are mdistiller's, and those that transformers are trained with.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from yacs.config import CfgNode

from djip_ext.errors import DJIPError


def make_optimizer(parameters: Sequence[nn.Parameter], cfg: CfgNode) -> torch.optim.Optimizer:
    """Make SGD with momentum, or AdamW without weight decay of biases and norms, as in timm.

    Raises:
        DJIPError: another ``SOLVER.TYPE``.
    """
    solver = cfg.SOLVER
    if solver.TYPE == "SGD":
        return torch.optim.SGD(
            parameters, lr=solver.LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY
        )
    if solver.TYPE == "AdamW":
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": solver.WEIGHT_DECAY},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=solver.LR)
    raise DJIPError(f"SOLVER.TYPE is '{solver.TYPE}'; choose SGD or AdamW")


def learning_rate(cfg: CfgNode, epoch: int) -> float:
    """The rate of ``epoch``, counted from 1.

    It falls in steps or along half a cosine, after ``BENCH.WARMUP`` epochs of a linear rise.

    Raises:
        DJIPError: another ``BENCH.SCHEDULE``, or a warm-up that leaves no epoch.
    """
    solver = cfg.SOLVER
    schedule = cfg.BENCH.SCHEDULE
    warmup: int = cfg.BENCH.WARMUP
    lr: float = solver.LR
    if schedule not in ("steps", "cosine"):
        raise DJIPError(f"BENCH.SCHEDULE is '{schedule}'; choose steps or cosine")
    if not 0 <= warmup < solver.EPOCHS:
        raise DJIPError(
            f"BENCH.WARMUP is {warmup}; it must be at least 0 and below SOLVER.EPOCHS, "
            f"{solver.EPOCHS}"
        )
    if epoch <= warmup:
        return lr * epoch / (warmup + 1)
    if schedule == "cosine":
        progress = math.pi * (epoch - 1 - warmup) / (solver.EPOCHS - warmup)
        return lr * 0.5 * (1 + math.cos(progress))
    steps = sum(epoch > stage for stage in solver.LR_DECAY_STAGES)
    factor: float = solver.LR_DECAY_RATE**steps
    return lr * factor
