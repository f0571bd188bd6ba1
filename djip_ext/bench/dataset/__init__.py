"""The images: CIFAR-100, folders of classes, and a generated set, with mdistiller's ``get_dataset``."""

from djip_ext.bench.dataset.image_sets import get_dataset

__all__ = ["get_dataset"]
