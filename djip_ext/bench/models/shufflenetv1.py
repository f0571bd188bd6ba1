"""ShuffleNet with 3 groups for small images (Zhang et al., CVPR 2018, figure 2 and table 1)."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features
from .resnet import Stage

STEM = 24
WIDTHS = (240, 480, 960)
DEPTHS = (4, 8, 4)
GROUPS = 3


class Bottleneck(nn.Module):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; returns the joined map *before* its ReLU.

    With stride 2 the averaged input is concatenated, with stride 1 the input is added.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        branch = out_channels - in_channels if stride == 2 else out_channels
        mid = branch // 4
        self.stride = stride
        # the paper leaves the narrow first layer ungrouped
        self.groups = 1 if in_channels == STEM else GROUPS
        self.conv1 = nn.Conv2d(in_channels, mid, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, branch, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.channel_shuffle(h, self.groups)
        h = F.relu(self.bn2(self.conv2(h)))
        branch: Tensor = self.bn3(self.conv3(h))
        if self.stride == 2:
            return torch.cat([branch, F.avg_pool2d(x, 3, stride=2, padding=1)], dim=1)
        return branch + x


class ShuffleNet(nn.Module):
    """1x1 stem and three stages of shuffled bottlenecks.

    Args:
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 32.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 1, 2, 4, 8.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, WIDTHS[0], DEPTHS[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], DEPTHS[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], DEPTHS[2])
        self.linear = nn.Linear(WIDTHS[2], num_classes)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that ends the residual branch of each stage."""
        stages = (self.layer1, self.layer2, self.layer3)
        return [cast(nn.BatchNorm2d, stage[-1].bn3) for stage in stages]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return [STEM, *WIDTHS]

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0 = F.relu(self.bn1(self.conv1(x)))
        f1, f1_pre = self.layer1(f0)
        f2, f2_pre = self.layer2(f1)
        f3, f3_pre = self.layer3(f2)
        pooled = F.adaptive_avg_pool2d(f3, 1).flatten(1)
        feats: Features = {
            "feats": [f0, f1, f2, f3],
            "preact_feats": [f0, f1_pre, f2_pre, f3_pre],
            "pooled_feat": pooled,
        }
        return self.linear(pooled), feats


def _stage(in_channels: int, out_channels: int, depth: int) -> Stage:
    first = Bottleneck(in_channels, out_channels, 2)
    return Stage(first, *(Bottleneck(out_channels, out_channels, 1) for _ in range(depth - 1)))


ShuffleV1 = ShuffleNet
