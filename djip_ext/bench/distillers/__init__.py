"""Distillation methods, by the names and with the configuration nodes of mdistiller.

Each module holds the loss of one paper as pure functions, a small class that reads its configuration node, and the
defaults of that node.
"""

from typing import Any

from torch import nn

from . import at, dkd, kd, rkd, sp
from ._base import Distiller, Vanilla

__all__ = ["Distiller", "distiller_defaults", "distiller_dict"]

distiller_dict: dict[str, type[nn.Module]] = {
    "NONE": Vanilla,
    "KD": kd.KD,
    "AT": at.AT,
    "RKD": rkd.RKD,
    "SP": sp.SP,
    "DKD": dkd.DKD,
}
"""``DISTILLER.TYPE -> class``, called with ``(student, teacher, cfg)``; ``NONE`` takes the student alone."""

distiller_defaults: dict[str, dict[str, Any]] = {
    "KD": kd.DEFAULTS,
    "AT": at.DEFAULTS,
    "RKD": rkd.DEFAULTS,
    "SP": sp.DEFAULTS,
    "DKD": dkd.DEFAULTS,
}
"""The configuration node of each method that has one."""
