"""The images, with mdistiller's ``get_dataset``: CIFAR-100, folders of classes, a generated set.

Sets and loaders have the surface that :mod:`~djip_ext.bench.dataset.protocols` describes.  May use
``bench.models`` (what a network expects of its images), ``bench.device``, ``djip_ext.lens``
(normalisations), ``djip_ext.utils`` and ``djip_ext.errors``.
"""

from djip_ext.bench.dataset.image_sets import get_dataset

__all__ = ["get_dataset"]
