"""Training: configuration, optimiser, loop and runs, with mdistiller's names (``engine.cfg.CFG``, ``trainer_dict``)."""

from djip_ext.bench.engine.trainer import trainer_dict

__all__ = ["trainer_dict"]
