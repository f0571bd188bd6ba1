"""Training: configuration, optimiser, loop and runs, with mdistiller's names.

May use everything else in ``bench``: models, dataset and distillers.  Of mdistiller's engine there
are ``trainer_dict``, ``cfg`` (``CFG``, ``show_cfg``) and ``utils`` (``load_checkpoint``,
``validate`` and others); its DOT optimiser is left out.
"""

from djip_ext.bench.engine.trainer import BaseTrainer, CRDTrainer, trainer_dict

__all__ = ["BaseTrainer", "CRDTrainer", "trainer_dict"]
