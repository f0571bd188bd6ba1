"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016), widths 16-16k-32k-64k."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features
from .init import he_fan_out_


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice and a shortcut.

    Returns the sum and the first normalised input, before its ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            if in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = self.bn1(x)
        h = F.relu(preact)
        shortcut = x if self.convShortcut is None else self.convShortcut(h)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(h)))), preact


class Stage(nn.Module):
    """Pre-activation blocks of one resolution; returns its output and its normalised input."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = PreActBlock(in_channels, out_channels, stride)
        self.layer = nn.Sequential(
            first, *(PreActBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, *rest = self.layer
        x, preact = first(x)
        for block in rest:
            x, _ = block(x)
        return x, preact


class WideResNet(nn.Module):
    """Stem and three stages of pre-activation blocks.

    Args:
        depth: 6n + 4 for n blocks per stage.
        widen_factor: k.
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 32.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 1, 1, 2, 4.
          ``feats`` are the raw sums, ``preact_feats`` the same after the batch normalisation that
          reads them.

    Raises:
        ValueError: ``depth`` is not 6n + 4.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int = 100) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4, got {depth}")
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.stage_channels = widths
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1 = Stage(widths[0], widths[1], blocks, stride=1)
        self.block2 = Stage(widths[1], widths[2], blocks, stride=2)
        self.block3 = Stage(widths[2], widths[3], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        he_fan_out_(self)
        nn.init.zeros_(self.fc.bias)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that reads the output of each stage."""
        readers = (self.block2.layer[0], self.block3.layer[0], self)
        return [cast(nn.BatchNorm2d, reader.bn1) for reader in readers]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return self.stage_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0 = self.conv1(x)
        f1, _ = self.block1(f0)
        f2, f1_pre = self.block2(f1)
        f3, f2_pre = self.block3(f2)
        f3_pre = self.bn1(f3)
        pooled = F.adaptive_avg_pool2d(F.relu(f3_pre), 1).flatten(1)
        feats: Features = {
            "feats": [f0, f1, f2, f3],
            "preact_feats": [f0, f1_pre, f2_pre, f3_pre],
            "pooled_feat": pooled,
        }
        return self.fc(pooled), feats


Factory = Callable[..., WideResNet]
wrn_16_1: Factory = partial(WideResNet, 16, 1)
wrn_16_2: Factory = partial(WideResNet, 16, 2)
wrn_40_1: Factory = partial(WideResNet, 40, 1)
wrn_40_2: Factory = partial(WideResNet, 40, 2)
