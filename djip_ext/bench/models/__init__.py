"""The classifiers of the distillation benchmarks, by mdistiller's names.

May use ``djip_ext.utils`` and ``djip_ext.errors`` only.

``cifar_model_dict`` and ``tiny_imagenet_model_dict`` hold ``name -> (factory, checkpoint or
None)``, ``imagenet_model_dict`` (which imports torchvision when it is asked for) ``name ->
factory``.  Every factory takes ``num_classes`` and returns a module that maps normalised images to
``(logits, Features)``.  Names, state-dict keys, initialisation and features follow mdistiller (Zhao
et al., *Decoupled Knowledge Distillation*, CVPR 2022) and RepDistiller (Tian et al., ICLR 2020),
whose published teachers load strictly from ``torch.load(path)["model"]``.

Two methods of the networks are there for mdistiller's OFD, which calls them on its teacher and
student; nothing in this package does: ``get_stage_channels()``, the channels of each map in
``feats``, and ``get_bn_before_relu()``, the batch normalisations before the ReLUs that end the
stages.
"""

import os
from collections.abc import Callable
from typing import Any

from torch import nn

from .features import Features
from .mobilenetv2 import mobile_half
from .mobilenetv2_tiny import MobileNetV2 as mobilenetv2_tinyimagenet
from .resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from .resnetv2 import ResNet18, ResNet50
from .shufflenetv1 import ShuffleV1
from .shufflenetv2 import ShuffleV2
from .vgg import vgg8_bn, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn
from .wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "Features",
    "checkpoint_path",
    "cifar_model_dict",
    "imagenet_model_dict",
    "tiny_imagenet_model_dict",
]


def checkpoint_path(name: str, dataset: str = "cifar", file: str = "ckpt_epoch_240.pth") -> str:
    """Where the published teacher ``name`` lies in mdistiller's layout; CIFAR-100's by default.

    The root is ``$DJIP_CKPT_ROOT``, else the working directory. The file need not exist.
    """
    root = os.environ.get("DJIP_CKPT_ROOT", "")
    return os.path.join(root, "download_ckpts", f"{dataset}_teachers", f"{name}_vanilla", file)


_teachers: dict[str, Callable[..., nn.Module]] = {
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet32x4": resnet32x4,
    "ResNet50": ResNet50,
    "wrn_40_2": wrn_40_2,
    "vgg13": vgg13_bn,
}
_students: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet8x4": resnet8x4,
    "ResNet18": ResNet18,
    "wrn_16_1": wrn_16_1,
    "wrn_16_2": wrn_16_2,
    "wrn_40_1": wrn_40_1,
    "vgg8": vgg8_bn,
    "vgg11": vgg11_bn,
    "vgg16": vgg16_bn,
    "vgg19": vgg19_bn,
    "MobileNetV2": mobile_half,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}

cifar_model_dict: dict[str, tuple[Callable[..., nn.Module], str | None]] = {
    **{name: (factory, checkpoint_path(name)) for name, factory in _teachers.items()},
    **{name: (factory, None) for name, factory in _students.items()},
}
"""``name -> (factory, checkpoint path of the published teacher or None)``; paths as of import."""

tiny_imagenet_model_dict: dict[str, tuple[Callable[..., nn.Module], str | None]] = {
    "ResNet18": (ResNet18, checkpoint_path("ResNet18", "tiny_imagenet", "ti_res18")),
    "MobileNetV2": (mobilenetv2_tinyimagenet, None),
    "ShuffleV2": (ShuffleV2, None),
}
"""The same for Tiny ImageNet's 64x64 images."""


def __getattr__(name: str) -> Any:
    if name != "imagenet_model_dict":  # torchvision is slow to import
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .imagenet import imagenet_model_dict

    return imagenet_model_dict
