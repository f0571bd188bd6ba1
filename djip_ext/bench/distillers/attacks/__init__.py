"""Knockoff students: what a black box gives away, beyond the methods of distillation."""

from typing import Any

from djip_ext.bench.distillers._base import Training

from . import avg, erkd, htc, ls, mkd

methods: dict[str, type[Training]] = {
    "LS": ls.LS,
    "HTC": htc.HTC,
    "ERKD": erkd.ERKD,
    "AVG": avg.AVG,
    "MKD": mkd.MKD,
}
"""``DISTILLER.TYPE -> class``."""

defaults: dict[str, dict[str, Any]] = {
    "LS": ls.DEFAULTS,
    "HTC": htc.DEFAULTS,
    "ERKD": erkd.DEFAULTS,
    "AVG": avg.DEFAULTS,
    "MKD": mkd.DEFAULTS,
}
"""The configuration node of each method that has one."""

BY_CLASS = frozenset({"AVG", "MKD"})
"""Types that are called with ``(student, teacher, cfg, num_classes)``."""
