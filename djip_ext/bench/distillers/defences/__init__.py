"""Networks that are trained so that no other can be distilled from them."""

from typing import Any

from djip_ext.bench.distillers._base import Training

from . import cmim, nasty, stingy

methods: dict[str, type[Training]] = {
    "CMIM": cmim.CMIM,
    "NASTY": nasty.NASTY,
    "STINGY": stingy.STINGY,
}
"""``DISTILLER.TYPE -> class``."""

defaults: dict[str, dict[str, Any]] = {
    "CMIM": cmim.DEFAULTS,
    "NASTY": nasty.DEFAULTS,
    "STINGY": stingy.DEFAULTS,
}
"""The configuration node of each method that has one."""
