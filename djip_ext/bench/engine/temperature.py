"""The temperature at which a distiller reads its teacher's logits."""

from yacs.config import CfgNode

TEMPERATURE_KEYS = {"KD": "KD.TEMPERATURE", "DKD": "DKD.T", "DIST": "DIST.TAU"}
"""Distiller -> the configuration key of its temperature T, which divides the logits."""


def distiller_temperature(cfg: CfgNode) -> float | None:
    """T at which the distiller of ``cfg`` reads the teacher's logits; None for one that has none.

    WTTM raises probabilities to a power gamma, which is a temperature of 1 / gamma on the teacher's
    side.  LSKD standardises logits first, so that its T says nothing about those of the teacher;
    methods that read features have none.
    """
    kind = cfg.DISTILLER.TYPE
    if kind in TEMPERATURE_KEYS:
        node, key = TEMPERATURE_KEYS[kind].split(".")
        return float(cfg[node][key])
    if kind == "WTTM":
        return 1 / float(cfg.WTTM.GAMMA)
    return None
