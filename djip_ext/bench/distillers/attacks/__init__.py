"""Knockoff students: what a black box gives away, beyond the methods of distillation."""

from typing import Any

from djip_ext.bench.distillers._base import Training

from . import ls

methods: dict[str, type[Training]] = {"LS": ls.LS}
"""``DISTILLER.TYPE -> class``."""

defaults: dict[str, dict[str, Any]] = {"LS": ls.DEFAULTS}
"""The configuration node of each method that has one."""
