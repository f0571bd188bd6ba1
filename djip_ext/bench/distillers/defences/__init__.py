"""Networks that are trained so that no other can be distilled from them."""

from typing import Any

from djip_ext.bench.distillers._base import Training

from . import cmim

methods: dict[str, type[Training]] = {"CMIM": cmim.CMIM}
"""``DISTILLER.TYPE -> class``."""

defaults: dict[str, dict[str, Any]] = {"CMIM": cmim.DEFAULTS}
"""The configuration node of each method that has one."""
