"""The lens: a differentiable JPEG codec whose 128 quantization steps stand in front of a network.

Uses :mod:`djip_ext.ops` and :mod:`djip_ext.utils`; knows nothing of objectives, fits or benchmarks.

* :mod:`~djip_ext.lens.file_format`: the layout of a lens file, in tensors and dictionaries.
* :mod:`~djip_ext.lens.jpeg_file`: quantization tables from and to real JPEG files.
* :mod:`~djip_ext.lens.jpeg_lens`: :class:`JPEGLens`, the module.
* :mod:`~djip_ext.lens.io`: lenses from and to files, their ids, and which teacher they belong to.
* :mod:`~djip_ext.lens.hub`: lenses on the Hugging Face Hub, an optional extra.
* :mod:`~djip_ext.lens.initial_tables`: the quantization tables that a fit can start from.
* :mod:`~djip_ext.lens.normalisation`: between a network's normalised input and pixels in [0, 255].
"""

from djip_ext.lens.io import load_lens
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import Normalisation

__all__ = ["JPEGLens", "Normalisation", "load_lens"]
