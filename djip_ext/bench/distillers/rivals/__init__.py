"""What is compared with a lens: other ways to a teacher, or to inputs, that teach better.

* :mod:`~djip_ext.bench.distillers.rivals.mcmi`: a teacher fine-tuned for more CMI.
"""

from typing import Any

from djip_ext.bench.distillers._base import Training

from . import mcmi

methods: dict[str, type[Training]] = {"MCMI": mcmi.MCMI}
"""``DISTILLER.TYPE -> class``."""

defaults: dict[str, dict[str, Any]] = {"MCMI": mcmi.DEFAULTS}
"""The configuration nodes of the methods, and of the additional losses."""
