"""The helpers of mdistiller's ``engine.utils``: evaluation, meters, messages, checkpoints."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from djip_ext.bench.dataset.protocols import Loader
from djip_ext.bench.engine.solver import learning_rate
from djip_ext.utils.files import atomic_write
from djip_ext.utils.networks import autocast

COLOURS = {"INFO": 36, "TRAIN": 32, "EVAL": 31}  # ANSI foreground colours of the message kinds


class AverageMeter:
    """The last value and the running mean of a quantity.

    Attributes:
        val: the last value.
        sum, count: of all values, weighted.
        avg: ``sum / count``.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val: float = 0
        self.sum: float = 0
        self.count: int = 0
        self.avg: float = 0

    def update(self, val: float, n: int = 1) -> None:
        """Add ``val``, the mean of ``n`` samples."""
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


@torch.no_grad()
def evaluate(network: nn.Module, loader: Loader, precision: str = "float32") -> dict[str, float]:
    """Measure ``network`` over ``loader`` in eval mode.

    Args:
        network: maps normalised images to logits or to ``(logits, ...)``; its mode is restored.
        loader: test batches ``(image, target)``.
        precision: of the network, "float32" or "bfloat16"; the cross entropy is float32.

    Returns:
        ``test_loss`` (cross entropy, nats), ``test_acc`` and ``test_acc_top5`` (%).
    """
    was_training = network.training
    network.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=loader.device)  # read once, at the end
    for image, target in loader:
        with autocast(image.device, precision):
            output = network(image)
        logits = (output[0] if isinstance(output, tuple) else output).float()
        hit = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
        totals += torch.stack(
            [F.cross_entropy(logits, target, reduction="sum"), hit[:, 0].sum(), hit.sum()]
        )
    network.train(was_training)
    loss, top1, top5 = (totals / loader.num_images).tolist()
    return {"test_loss": loss, "test_acc": 100 * top1, "test_acc_top5": 100 * top5}


def validate(val_loader: Loader, distiller: nn.Module) -> tuple[float, float, float]:
    """Measure the student of ``distiller`` (bare or in ``DataParallel``) and print its accuracy.

    Returns:
        top-1 accuracy (%), top-5 accuracy (%), cross entropy (nats): mdistiller's order.
    """
    bare: Any = getattr(distiller, "module", distiller)
    row = evaluate(bare.student, val_loader)
    message = f"Top-1:{row['test_acc']:.3f}| Top-5:{row['test_acc_top5']:.3f}"
    print(log_msg(message, "EVAL"))
    return row["test_acc"], row["test_acc_top5"], row["test_loss"]


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Percentage of a batch whose label is among the ``k`` largest logits, for every ``k``.

    Shape:
        output: logits ``(B, C)``, C >= max(topk); target: ``(B,)``; each result: ``(1,)``.
    """
    ranked = output.detach().topk(max(topk), dim=1).indices
    hit = (ranked == target[:, None]).float()
    return [hit[:, :k].sum(dim=1).mean(dim=0, keepdim=True) * 100 for k in topk]


def log_msg(msg: str, mode: str = "INFO") -> str:
    """Put ``[mode]`` before ``msg``, both in the terminal colour that COLOURS has for ``mode``."""
    return f"\033[{COLOURS[mode]}m[{mode}] {msg}\033[0m"


def adjust_learning_rate(epoch: int, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> float:
    """Give every parameter group the learning rate of ``epoch``, counted from 1, and return it."""
    lr = learning_rate(cfg, epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    return lr


def save_checkpoint(obj: Any, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that leaves either the whole file or the one that was there.

    Raises:
        DJIPError: the operating system refused; ``path`` is then as it was before.
    """
    atomic_write(path, lambda temporary: torch.save(obj, temporary))


def load_checkpoint(path: str | os.PathLike[str]) -> Any:
    """What :func:`save_checkpoint` wrote, on the CPU; ``weights_only``, so that no code runs."""
    return torch.load(path, map_location="cpu", weights_only=True)
