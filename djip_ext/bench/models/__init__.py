"""The CIFAR classifiers of the distillation benchmarks.

Every factory takes ``num_classes`` and returns a module that maps normalised images to ``(logits, Features)``. Names,
state-dict keys, initialisation and features follow mdistiller (Zhao et al., *Decoupled Knowledge Distillation*, CVPR
2022) and RepDistiller (Tian et al., ICLR 2020), whose published teachers load strictly from ``torch.load(path)["model"]``.
"""

import os
from collections.abc import Callable

from torch import nn

from .features import Features
from .mobilenetv2 import mobile_half
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

__all__ = ["Features", "checkpoint_path", "cifar_model_dict"]


def checkpoint_path(name: str) -> str:
    """Where the published CIFAR-100 teacher ``name`` lies in mdistiller's layout.

    The root is ``$DJIP_CKPT_ROOT``, else the working directory. The file need not exist.
    """
    root = os.environ.get("DJIP_CKPT_ROOT", "")
    return os.path.join(
        root, "download_ckpts", "cifar_teachers", f"{name}_vanilla", "ckpt_epoch_240.pth"
    )


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
