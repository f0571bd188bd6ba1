"""Fitting a lens to a teacher: class centres and tables in turn, steered to a band of CMI.

Uses :mod:`djip_ext.lens` and :mod:`djip_ext.metrics`; the teacher is any classifier and the data
any loader.

* :mod:`~djip_ext.fit.objective`: CE + lambda L_rev (DJIP, Theorem 1), and its sign.
* :mod:`~djip_ext.fit.settings`: every number that a fit depends on.
* :mod:`~djip_ext.fit.batch`: how many images make a step.
* :mod:`~djip_ext.fit.start`, :mod:`~djip_ext.fit.result`: the lens it starts from, what it returns.
* :mod:`~djip_ext.fit.loop`: :func:`fit_lens`, the alternating optimisation.
* :mod:`~djip_ext.fit.black_box`: the same for a teacher that only answers, as a search.
* :mod:`~djip_ext.fit.checkpoint`: its state on disk.
* :mod:`~djip_ext.fit.sampling`: the order in which it reads a loader.
* :mod:`~djip_ext.fit.record`: what a fit leaves beside the lens, for reports and pictures.
"""

from djip_ext.fit.loop import FitResult, fit_lens
from djip_ext.fit.settings import FitSettings

__all__ = ["FitResult", "FitSettings", "fit_lens"]
