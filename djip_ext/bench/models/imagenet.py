"""The ImageNet classifiers of mdistiller, by its names.

The state-dict keys of the residual ones are torchvision's own.

torchvision builds and initialises the residual networks, so that its published weights load
strictly; the forward passes here differ only in keeping each stage's map before its last ReLU.
"""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet as torchvision_resnet

from djip_ext.bench.models.families import torchvision_state
from djip_ext.errors import DJIPError

from .features import Features
from .mobilenetv1 import MobileNetV1


class BasicBlock(torchvision_resnet.BasicBlock):  # type: ignore[misc]
    """torchvision's block whose last ReLU is the next one's first: returns the sum before it."""

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        norm: nn.BatchNorm2d = self.bn2
        return norm

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        h = F.relu(self.bn1(self.conv1(x)))
        shortcut = x if self.downsample is None else self.downsample(x)
        preact: Tensor = self.bn2(self.conv2(h)) + shortcut
        return preact


class Bottleneck(torchvision_resnet.Bottleneck):  # type: ignore[misc]
    """The same for the bottleneck, whose stride is on the 3x3 convolution."""

    @property
    def last_bn(self) -> nn.BatchNorm2d:
        norm: nn.BatchNorm2d = self.bn3
        return norm

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        shortcut = x if self.downsample is None else self.downsample(x)
        preact: Tensor = self.bn3(self.conv3(h)) + shortcut
        return preact


class ResNet(torchvision_resnet.ResNet):  # type: ignore[misc]
    """torchvision's network, returning what the benchmark's networks return.

    Shape:
        - input: ``(B, 3, H, W)``, normalised; the benchmark has H = W = 224.
        - output: logits ``(B, num_classes)`` and :class:`Features` with maps of stride 2 to 32.
    """

    def _stages(self) -> list[nn.Sequential]:
        return [self.layer1, self.layer2, self.layer3, self.layer4]

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch normalisation that ends the residual branch of each stage."""
        return [cast(nn.BatchNorm2d, stage[-1].last_bn) for stage in self._stages()]

    def get_stage_channels(self) -> list[int]:
        """Channels of each map in ``feats``."""
        return [self.bn1.num_features, *(bn.num_features for bn in self.get_bn_before_relu())]

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        stem = F.relu(self.bn1(self.conv1(x)))
        h = self.maxpool(stem)
        preact = []
        for stage in self._stages():
            h = stage(h)
            preact.append(h)
        feats = [stem, *(F.relu(f) for f in preact)]
        pooled = self.avgpool(feats[-1]).flatten(1)
        return self.fc(pooled), {
            "feats": feats,
            "preact_feats": [stem, *preact],
            "pooled_feat": pooled,
        }


PUBLISHED = {
    "ResNet18": "resnet18",
    "ResNet34": "resnet34",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
}
"""``name -> torchvision's name`` of the network whose published weights fit."""


def published_state(name: str, num_classes: int, download: bool = False) -> dict[str, Tensor]:
    """torchvision's published weights of the network ``name``.

    Raises:
        DJIPError: there are none, they are not on this machine and ``download`` is not set, or
            ``num_classes`` is not ImageNet's 1000.
    """
    if name not in PUBLISHED:
        raise DJIPError(
            f"{name} has no published weights; train it, or choose from {', '.join(PUBLISHED)}"
        )
    if num_classes != 1000:
        raise DJIPError(
            f"{name}'s published weights know ImageNet's 1000 classes, the data have "
            f"{num_classes}; name yours with BENCH.TEACHER_CHECKPOINT"
        )
    return torchvision_state(f"{PUBLISHED[name]}@IMAGENET1K_V1", download)


def _factory(name: str, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def factory(
        pretrained: bool = False, num_classes: int = 1000, download: bool = False
    ) -> nn.Module:
        network = build(num_classes=num_classes)
        if pretrained:
            network.load_state_dict(published_state(name, num_classes, download))
        return network

    return factory


_networks: dict[str, Callable[..., nn.Module]] = {
    "ResNet18": partial(ResNet, BasicBlock, [2, 2, 2, 2]),
    "ResNet34": partial(ResNet, BasicBlock, [3, 4, 6, 3]),
    "ResNet50": partial(ResNet, Bottleneck, [3, 4, 6, 3]),
    "ResNet101": partial(ResNet, Bottleneck, [3, 4, 23, 3]),
    "MobileNetV1": MobileNetV1,
}

imagenet_model_dict: dict[str, Callable[..., nn.Module]] = {
    name: _factory(name, build) for name, build in _networks.items()
}
"""``name -> factory``, called with ``num_classes`` and, as in mdistiller, ``pretrained``.

Nothing is fetched unless ``download`` is set as well.
"""
