"""MobileNetV2 at full width for Tiny ImageNet (Sandler et al., CVPR 2018, table 2).

The layers and state-dict keys are those of mdistiller's ``mobilenetv2_tinyimagenet``: convolutions
with a bias, a stem of stride 1, a convolution as the classifier.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features

# name, blocks, output channels, stride and expansion of each stage
SETTING = (
    ("stage1", 1, 16, 1, 1),
    ("stage2", 2, 24, 2, 6),
    ("stage3", 3, 32, 2, 6),
    ("stage4", 4, 64, 2, 6),
    ("stage5", 3, 96, 1, 6),
    ("stage6", 3, 160, 1, 6),
    ("stage7", 1, 320, 1, 6),
)
STEM = 32
HEAD = 1280


def _conv_bn_relu(in_channels: int, out_channels: int, padding: int = 0) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 1, padding=padding)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project linearly; a shortcut where the shape allows it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.residual = nn.Sequential(
            *_conv_bn_relu(in_channels, hidden),
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.residual(x)
        return h + x if self.shortcut else h


class MobileNetV2(nn.Module):
    """Stem, seven stages of inverted residuals, a 1280-wide head.

    mdistiller gives it neither the methods of an OFD teacher nor ``preact_feats``.  The bottlenecks
    are linear, so ``preact_feats`` here holds the same tensors as ``feats``.

    Args:
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 64.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 1, 2, 4, 8,
          8; the stem pads its 1x1 convolution, so that each side of its map has 2 pixels more.
    """

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        self.pre = nn.Sequential(*_conv_bn_relu(3, STEM, padding=1))
        channels = STEM
        for name, repeats, out, stride, expansion in SETTING:
            first = InvertedResidual(channels, out, stride, expansion)
            rest = [InvertedResidual(out, out, 1, expansion) for _ in range(repeats - 1)]
            # a stage of one block is that block itself: the keys are mdistiller's
            self.add_module(name, nn.Sequential(first, *rest) if rest else first)
            channels = out
        self.conv1 = nn.Sequential(*_conv_bn_relu(channels, HEAD))
        self.conv2 = nn.Conv2d(HEAD, num_classes, 1)

    def _through(self, x: Tensor, *stages: str) -> Tensor:
        for name in stages:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0 = self.pre(x)
        f1 = self._through(f0, "stage1", "stage2")
        f2 = self._through(f1, "stage3")
        f3 = self._through(f2, "stage4")
        f4 = self.conv1(self._through(f3, "stage5", "stage6", "stage7"))
        pooled = F.adaptive_avg_pool2d(f4, 1)
        maps = [f0, f1, f2, f3, f4]
        feats: Features = {
            "feats": maps,
            "preact_feats": list(maps),
            "pooled_feat": pooled.flatten(1),
        }
        return self.conv2(pooled).flatten(1), feats
