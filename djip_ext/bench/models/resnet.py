"""CIFAR ResNets of depth 6n + 2 (He et al., *Deep Residual Learning*, CVPR 2016, section 4.2).

``resnetD`` has widths 16-32-64 as in the paper; ``resnetDx4`` quadruples the stages and doubles the
stem, as the distillation benchmarks do (Tian et al., *Contrastive Representation Distillation*,
ICLR 2020).
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features
from .init import he_fan_out_


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum *before* its ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        h = F.relu(self.bn1(self.conv1(x)))
        preact: Tensor = self.bn2(self.conv2(h)) + shortcut
        return preact


class Stage(nn.Sequential):
    """Residual blocks of one resolution; returns the last map after and before its ReLU."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        preact = x
        for block in self:
            preact = block(x)
            x = F.relu(preact)
        return x, preact


class ResNet(nn.Module):
    """Stem and three stages of basic blocks.

    Args:
        depth: 6n + 2 for n blocks per stage.
        widths: channels of the stem and of the three stages.
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 32.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 1, 1, 2, 4.

    Raises:
        ValueError: ``depth`` is not 6n + 2.
    """

    def __init__(
        self, depth: int, widths: tuple[int, int, int, int], num_classes: int = 100
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, got {depth}")
        blocks = (depth - 2) // 6
        self.stage_channels = list(widths)
        self.conv1 = conv3x3(3, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = self._stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        he_fan_out_(self)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> Stage:
        downsample = None
        if stride != 1 or in_channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        first = BasicBlock(in_channels, out_channels, stride, downsample)
        return Stage(
            first, *(BasicBlock(out_channels, out_channels, 1, None) for _ in range(blocks - 1))
        )

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that ends the residual branch of each stage."""
        stages = (self.layer1, self.layer2, self.layer3)
        return [cast(nn.BatchNorm2d, stage[-1].bn2) for stage in stages]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return self.stage_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0_pre = self.bn1(self.conv1(x))
        f0 = self.relu(f0_pre)
        f1, f1_pre = self.layer1(f0)
        f2, f2_pre = self.layer2(f1)
        f3, f3_pre = self.layer3(f2)
        pooled = self.avgpool(f3).flatten(1)
        feats: Features = {
            "feats": [f0, f1, f2, f3],
            "preact_feats": [f0, f1_pre, f2_pre, f3_pre],
            "pooled_feat": pooled,
        }
        return self.fc(pooled), feats


NARROW = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)

Factory = Callable[..., ResNet]
resnet8: Factory = partial(ResNet, 8, NARROW)
resnet14: Factory = partial(ResNet, 14, NARROW)
resnet20: Factory = partial(ResNet, 20, NARROW)
resnet32: Factory = partial(ResNet, 32, NARROW)
resnet44: Factory = partial(ResNet, 44, NARROW)
resnet56: Factory = partial(ResNet, 56, NARROW)
resnet110: Factory = partial(ResNet, 110, NARROW)
resnet8x4: Factory = partial(ResNet, 8, WIDE)
resnet32x4: Factory = partial(ResNet, 32, WIDE)
