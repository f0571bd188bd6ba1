"""Distillation methods, by the names and with the configuration nodes of mdistiller.

Each module holds the loss of one paper as pure functions, a small class that reads its
configuration node, and the defaults of that node.
"""

from typing import Any

from . import (
    at,
    attacks,
    cc,
    crd,
    defences,
    dist,
    dkd,
    fitnet,
    ft,
    itrd,
    kd,
    lskd,
    rivals,
    rkd,
    sp,
    wttm,
)
from ._base import Distiller, Training, Vanilla

__all__ = [
    "Distiller",
    "Training",
    "Vanilla",
    "distiller_defaults",
    "distiller_dict",
    "methods",
]

methods: dict[str, type[Training]] = {
    "KD": kd.KD,
    "AT": at.AT,
    "RKD": rkd.RKD,
    "FITNET": fitnet.FitNet,
    "CRD": crd.CRD,
    "SP": sp.SP,
    "DKD": dkd.DKD,
    # not in mdistiller
    "DIST": dist.DIST,
    "WTTM": wttm.WTTM,
    "LSKD": lskd.LSKD,
    "CC": cc.CC,
    "FT": ft.FT,
    "ITRD": itrd.ITRD,
}
"""The methods of distillation that the paper compares, in its order."""

distiller_dict: dict[str, type[Training]] = {
    "NONE": Vanilla,
    **methods,
    **rivals.methods,
    **attacks.methods,
    **defences.methods,
}
"""``DISTILLER.TYPE -> class``, called with ``(student, teacher, cfg)``.

``NONE`` takes the student alone, the other types of :mod:`djip_ext.bench.teacherless` take
``(student, cfg, num_classes)``, ``CRD`` also the number of training images and those of
``attacks.BY_CLASS`` the number of classes.  A method with a
``pretrain`` method needs it called, with the training loader, before its first step.
"""

distiller_defaults: dict[str, dict[str, Any]] = {
    "KD": kd.DEFAULTS,
    "AT": at.DEFAULTS,
    "RKD": rkd.DEFAULTS,
    "FITNET": fitnet.DEFAULTS,
    "CRD": crd.DEFAULTS,
    "SP": sp.DEFAULTS,
    "DKD": dkd.DEFAULTS,
    "DIST": dist.DEFAULTS,
    "WTTM": wttm.DEFAULTS,
    "LSKD": lskd.DEFAULTS,
    "CC": cc.DEFAULTS,
    "FT": ft.DEFAULTS,
    "ITRD": itrd.DEFAULTS,
    **rivals.defaults,
    **attacks.defaults,
    **defences.defaults,
}
"""The configuration node of each method that has one."""
