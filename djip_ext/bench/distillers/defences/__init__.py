"""Networks that are trained so that no other can be distilled from them."""

from typing import Any

from djip_ext.bench.distillers._base import Training

methods: dict[str, type[Training]] = {}
"""``DISTILLER.TYPE -> class``."""

defaults: dict[str, dict[str, Any]] = {}
"""The configuration node of each method that has one."""
