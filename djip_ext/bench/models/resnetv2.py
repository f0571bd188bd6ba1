"""ImageNet-style ResNets with a 3x3 stem of stride 1 (He et al., CVPR 2016, table 1)."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features
from .init import he_fan_out_
from .resnet import Stage


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The identity where the shape allows it, else a 1x1 projection."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns the sum *before* its ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        preact: Tensor = self.bn2(self.conv2(h)) + self.shortcut(x)
        return preact


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; returns the sum *before* its ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        preact: Tensor = self.bn3(self.conv3(h)) + self.shortcut(x)
        return preact


class ResNet(nn.Module):
    """Stem and four stages.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks of each stage.
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 32.
        - output: logits ``(B, num_classes)`` and :class:`Features`, maps of stride 1, 1, 2, 4, 8.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        num_classes: int = 100,
    ) -> None:
        super().__init__()
        outs = [block.expansion * width for width in (64, 128, 256, 512)]
        self.stage_channels = [64, *outs]

        def stage(in_channels: int, width: int, depth: int, stride: int) -> Stage:
            first = block(in_channels, width, stride)
            return Stage(
                first, *(block(block.expansion * width, width, 1) for _ in range(depth - 1))
            )

        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, depths[0], stride=1)
        self.layer2 = stage(outs[0], 128, depths[1], stride=2)
        self.layer3 = stage(outs[1], 256, depths[2], stride=2)
        self.layer4 = stage(outs[2], 512, depths[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(outs[3], num_classes)
        he_fan_out_(self)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that ends the residual branch of each stage."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [cast(nn.BatchNorm2d, stage[-1].last_bn) for stage in stages]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return self.stage_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0 = F.relu(self.bn1(self.conv1(x)))
        f1, f1_pre = self.layer1(f0)
        f2, f2_pre = self.layer2(f1)
        f3, f3_pre = self.layer3(f2)
        f4, f4_pre = self.layer4(f3)
        pooled = self.avgpool(f4).flatten(1)
        feats: Features = {
            "feats": [f0, f1, f2, f3, f4],
            "preact_feats": [f0, f1_pre, f2_pre, f3_pre, f4_pre],
            "pooled_feat": pooled,
        }
        return self.linear(pooled), feats


Factory = Callable[..., ResNet]
ResNet18: Factory = partial(ResNet, BasicBlock, (2, 2, 2, 2))
ResNet50: Factory = partial(ResNet, Bottleneck, (3, 4, 6, 3))
