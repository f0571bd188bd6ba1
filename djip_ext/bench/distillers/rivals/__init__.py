"""What is compared with a lens: other ways to a teacher, or to inputs, that teach better.

* :mod:`~djip_ext.bench.distillers.rivals.mcmi`: a teacher fine-tuned for more CMI.
* :mod:`~djip_ext.bench.distillers.rivals.adversarial`: a distiller with one more loss, of
  :mod:`~djip_ext.bench.distillers.rivals.tald` or :mod:`~djip_ext.bench.distillers.rivals.bss`.
* :mod:`~djip_ext.bench.distillers.rivals.jpeg_dl`: network and quantization tables, trained
  together.

CKD, which changes what the teacher is shown, is :mod:`djip_ext.bench.engine.coded_teacher`.
"""

from collections.abc import Callable
from typing import Any

from djip_ext.bench.distillers._base import Training

from . import bss, jpeg_dl, mcmi, tald
from .adversarial import Adversarial

methods: dict[str, type[Training]] = {"MCMI": mcmi.MCMI, "JPEGDL": jpeg_dl.JPEGDL}
"""``DISTILLER.TYPE -> class``."""

adversarial_losses: dict[str, Callable[..., Adversarial]] = {"TALD": tald.TALD, "BSS": bss.BSS}
"""``BENCH.ADVERSARIAL ->`` class, called with ``(distiller, teacher, cfg)``."""

defaults: dict[str, dict[str, Any]] = {
    "MCMI": mcmi.DEFAULTS,
    "JPEGDL": jpeg_dl.DEFAULTS,
    "TALD": tald.DEFAULTS,
    "BSS": bss.DEFAULTS,
}
"""The configuration nodes of the methods, and of the additional losses."""
