"""VGG with batch normalisation for small images (Simonyan & Zisserman, ICLR 2015, table 1).

Five blocks and one linear classifier; the fully connected layers of the paper are replaced by
average pooling. ``vgg8`` keeps one convolution per block (Tian et al., *Contrastive Representation
Distillation*, ICLR 2020).
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features
from .init import he_fan_out_, small_linear_

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five convolutional blocks.

    Args:
        depths: convolutions of each block.
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised, H >= 16.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 1, 2, 4, 8,
          8; from H = 64 on the last block has stride 16.
    """

    def __init__(self, depths: tuple[int, int, int, int, int], num_classes: int = 100) -> None:
        super().__init__()
        self.block0 = _block(3, WIDTHS[0], depths[0])
        self.block1 = _block(WIDTHS[0], WIDTHS[1], depths[1])
        self.block2 = _block(WIDTHS[1], WIDTHS[2], depths[2])
        self.block3 = _block(WIDTHS[2], WIDTHS[3], depths[3])
        self.block4 = _block(WIDTHS[3], WIDTHS[4], depths[4])
        self.pool0 = nn.MaxPool2d(2)
        self.pool1 = nn.MaxPool2d(2)
        self.pool2 = nn.MaxPool2d(2)
        self.pool3 = nn.MaxPool2d(2)
        self.pool4 = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(WIDTHS[4], num_classes)
        he_fan_out_(self)
        small_linear_(self.classifier)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that ends each block after the first."""
        blocks = (self.block1, self.block2, self.block3, self.block4)
        return [cast(nn.BatchNorm2d, block[-1]) for block in blocks]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return list(WIDTHS)

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        f0 = F.relu(self.block0(x))
        f1_pre = self.block1(self.pool0(f0))
        f1 = F.relu(f1_pre)
        f2_pre = self.block2(self.pool1(f1))
        f2 = F.relu(f2_pre)
        f3_pre = self.block3(self.pool2(f2))
        f3 = F.relu(f3_pre)
        last = self.pool3(f3) if x.shape[2] >= 64 else f3  # 4x4 maps of 32x32 images stay whole
        f4_pre = self.block4(last)
        f4 = F.relu(f4_pre)
        pooled = self.pool4(f4).flatten(1)
        feats: Features = {
            "feats": [f0, f1, f2, f3, f4],
            "preact_feats": [f0, f1_pre, f2_pre, f3_pre, f4_pre],
            "pooled_feat": pooled,
        }
        return self.classifier(pooled), feats


def _block(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """``depth`` 3x3 convolutions with batch normalisation, without the ReLU of the last."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
        in_channels = out_channels
    return nn.Sequential(*layers[:-1])


Factory = Callable[..., VGG]
vgg8_bn: Factory = partial(VGG, (1, 1, 1, 1, 1))
vgg11_bn: Factory = partial(VGG, (1, 1, 2, 2, 2))
vgg13_bn: Factory = partial(VGG, (2, 2, 2, 2, 2))
vgg16_bn: Factory = partial(VGG, (2, 2, 3, 3, 3))
vgg19_bn: Factory = partial(VGG, (2, 2, 4, 4, 4))
