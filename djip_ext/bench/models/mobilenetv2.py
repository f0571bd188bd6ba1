"""MobileNetV2 at half width for small images (Sandler et al., CVPR 2018, table 2)."""

from functools import partial
from typing import cast

from torch import Tensor, nn

from .features import Features
from .init import he_fan_out_, small_linear_

# expansion t, channels c, repeats n, first stride s: table 2, but stride 1 at 24 channels
SETTING = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project linearly; a shortcut where the shape allows it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *_conv_bn_relu(in_channels, hidden, kernel=1),
            *_conv_bn_relu(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv(x)
        return x + h if self.residual else h


class MobileNetV2(nn.Module):
    """Stem of stride 2, seven stages of inverted residuals, a 1280-wide head.

    Args:
        width_mult: factor on every width but the head's.
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 32.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 2, 2, 4, 8,
          16. The bottlenecks are linear, so a map is its own pre-activation: ``preact_feats`` holds
          the same tensors as ``feats``.
    """

    def __init__(self, width_mult: float, num_classes: int = 100) -> None:
        super().__init__()
        channels = int(32 * width_mult)
        self.conv1 = _conv_bn_relu(3, channels, kernel=3, stride=2)
        self.blocks = nn.ModuleList()
        for expansion, out, repeats, stride in SETTING:
            out = int(out * width_mult)
            blocks = [InvertedResidual(channels, out, stride, expansion)]
            blocks += [InvertedResidual(out, out, 1, expansion) for _ in range(repeats - 1)]
            self.blocks.append(nn.Sequential(*blocks))
            channels = out
        self.conv2 = _conv_bn_relu(channels, 1280, kernel=1)
        linear = nn.Linear(1280, num_classes)
        self.classifier = nn.Sequential(linear)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        he_fan_out_(self)
        small_linear_(linear)
        self.stage_channels = [int(width * width_mult) for width in (32, 24, 32, 96, 320)]

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that ends the linear bottleneck of each map after the stem's."""
        ends = [cast(nn.Sequential, self.blocks[i])[-1] for i in (1, 2, 4, 6)]
        return [cast(nn.BatchNorm2d, cast(InvertedResidual, end).conv[-1]) for end in ends]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return self.stage_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0 = self.conv1(x)
        f1 = self.blocks[1](self.blocks[0](f0))
        f2 = self.blocks[2](f1)
        f3 = self.blocks[4](self.blocks[3](f2))
        f4 = self.blocks[6](self.blocks[5](f3))
        pooled = self.avgpool(self.conv2(f4)).flatten(1)
        feats: Features = {
            "feats": [f0, f1, f2, f3, f4],
            "preact_feats": [f0, f1, f2, f3, f4],
            "pooled_feat": pooled,
        }
        return self.classifier(pooled), feats


mobile_half = partial(MobileNetV2, 0.5)
