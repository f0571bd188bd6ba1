"""djip_ext: amplify a frozen teacher for knowledge distillation with a fitted JPEG lens (DJIP, ICLR 2026).

Importing this package imports torch and nothing of torchvision, matplotlib or a benchmark.
"""

from .cmi import CMI, ClassStatistics, conditional_mutual_information
from .errors import DJIPError
from .fit import FitResult, fit_lens
from .fit_settings import FitSettings
from .install import install, uninstall
from .lens import JPEGLens
from .lens_file import load_lens
from .quantizer import hard_quantize, soft_quantize
from .teacher import DJIPTeacher

__version__ = "0.1.0"
__all__ = [
    "CMI",
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
