"""MobileNetV1 (Howard et al., *MobileNets*, arXiv 1704.04861, table 1).

The state-dict keys are mdistiller's.
"""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from .features import Features

# output channels and stride of each depthwise separable block
SETTING = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
STAGE_ENDS = (0, 3, 5, 11, 13)  # the stem, then the last block at stride 4, 8, 16, 32


def _conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class MobileNetV1(nn.Module):
    """A stem of stride 2 and thirteen depthwise separable blocks.

    mdistiller lists four maps and leaves out the stem's, so that its AT, which skips the first map,
    pairs stages of unequal size with a ResNet's.  Here the stem is listed first, as for all
    networks of this benchmark.

    Args:
        num_classes: number of logits.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 224.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 2 to 32.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        channels = 32
        blocks = [nn.Sequential(*_conv_bn_relu(3, channels, kernel=3, stride=2))]
        for out, stride in SETTING:
            depthwise = _conv_bn_relu(channels, channels, kernel=3, stride=stride, groups=channels)
            blocks.append(nn.Sequential(*depthwise, *_conv_bn_relu(channels, out, kernel=1)))
            channels = out
        self.model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(channels, num_classes)

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that ends each stage after the stem."""
        return [self._last_norm(i) for i in STAGE_ENDS[1:]]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return [self._last_norm(i).num_features for i in STAGE_ENDS]

    def _last_norm(self, block: int) -> nn.BatchNorm2d:
        return cast(nn.BatchNorm2d, cast(nn.Sequential, self.model[block])[-2])

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        x = self.model[0](x)
        feats = [x]
        preact = [x]
        for i, block in enumerate(self.model[1:-1], start=1):
            before = cast(nn.Sequential, block)[:-1](x)
            x = F.relu(before)
            if i in STAGE_ENDS:
                feats.append(x)
                preact.append(before)
        pooled = self.model[-1](x).flatten(1)
        return self.fc(pooled), {"feats": feats, "preact_feats": preact, "pooled_feat": pooled}
