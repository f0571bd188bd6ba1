"""ShuffleNetV2 1x for small images (Ma et al., ECCV 2018, figure 3 c-d and table 5)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features

STEM = 24
WIDTHS = (116, 232, 464)
DEPTHS = (3, 7, 3)  # blocks after the down-sampling one
HEAD = 1024


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def _pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


class BasicBlock(nn.Module):
    """Passes one half of the channels on and transforms the other.

    Returns both, the second before its ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = _pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, stride=1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, h = x.chunk(2, dim=1)
        h = F.relu(self.bn1(self.conv1(h)))
        h = self.bn2(self.conv2(h))
        return kept, self.bn3(self.conv3(h))


class DownBlock(nn.Module):
    """Two down-sampling branches of the whole input; returns both, the second before its ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv1 = _depthwise(in_channels, stride=2)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = _pointwise(in_channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(in_channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, stride=2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return left, right


class ShuffleStage(nn.Sequential):
    """Blocks joined by concatenation and shuffle.

    Returns the last map after, and unshuffled before, its ReLU.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = preact = x
        for block in self:
            kept, preact = block(x)
            x = F.channel_shuffle(torch.cat([kept, F.relu(preact)], dim=1), 2)
        return x, torch.cat([kept, preact], dim=1)


class ShuffleNetV2(nn.Module):
    """1x1 stem, three stages, a 1024-wide head.

    Args:
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 32.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 1, 2, 4, 8.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.conv1 = _pointwise(3, STEM)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1 = _stage(STEM, WIDTHS[0], DEPTHS[0])
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], DEPTHS[1])
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], DEPTHS[2])
        self.conv2 = _pointwise(WIDTHS[2], HEAD)
        self.bn2 = nn.BatchNorm2d(HEAD)
        self.linear = nn.Linear(HEAD, num_classes)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """Raise NotImplementedError: half of a stage's channels pass no batch normalisation."""
        raise NotImplementedError("no single batch normalisation precedes a stage of ShuffleNetV2")

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return [STEM, *WIDTHS]

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0 = F.relu(self.bn1(self.conv1(x)))
        f1, f1_pre = self.layer1(f0)
        f2, f2_pre = self.layer2(f1)
        f3, f3_pre = self.layer3(f2)
        head = F.relu(self.bn2(self.conv2(f3)))
        pooled = F.adaptive_avg_pool2d(head, 1).flatten(1)
        feats: Features = {
            "feats": [f0, f1, f2, f3],
            "preact_feats": [f0, f1_pre, f2_pre, f3_pre],
            "pooled_feat": pooled,
        }
        return self.linear(pooled), feats


def _stage(in_channels: int, out_channels: int, depth: int) -> ShuffleStage:
    return ShuffleStage(
        DownBlock(in_channels, out_channels), *(BasicBlock(out_channels) for _ in range(depth))
    )


ShuffleV2 = ShuffleNetV2
