"""djip_ext: amplify a frozen teacher for knowledge distillation with a fitted JPEG lens.

The method is DJIP (ICLR 2026).
Importing this package imports torch and nothing of torchvision, matplotlib or a benchmark.
"""

from djip_ext.errors import DJIPError
from djip_ext.fit.loop import FitResult, fit_lens
from djip_ext.fit.settings import FitSettings
from djip_ext.hosts.registry import install, uninstall
from djip_ext.inputs.closed_teacher import ClosedTeacher
from djip_ext.lens.io import load_lens
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.metrics.cmi import CMI, ClassStatistics, conditional_mutual_information
from djip_ext.ops.quantizer import hard_quantize, soft_quantize
from djip_ext.teacher import DJIPTeacher

__version__ = "0.1.0"
__all__ = [
    "CMI",
    "ClosedTeacher",
    "ClassStatistics",
    "DJIPError",
    "DJIPTeacher",
    "FitResult",
    "FitSettings",
    "JPEGLens",
    "conditional_mutual_information",
    "fit_lens",
    "hard_quantize",
    "install",
    "load_lens",
    "soft_quantize",
    "uninstall",
]
