"""Plugging a lens into a benchmark that is not ours: mdistiller, its forks, and the embedded one alike.

Uses the lens, :mod:`djip_ext.teacher` and, for distillers that a host lacks, :mod:`djip_ext.bench`.

* :mod:`~djip_ext.hosts.registry`: the seam, ``<package>.distillers.distiller_dict``.
* :mod:`~djip_ext.hosts.activation`: flags, seed, workarounds and lens, shared by launcher and autoload.
* :mod:`~djip_ext.hosts.extra_distillers`: the paper's distillers that a host lacks.
* :mod:`~djip_ext.hosts.workarounds`: faults of hosts that would ruin a run.
* :mod:`~djip_ext.hosts.task`: teacher and images of a host, for a fit.
* :mod:`~djip_ext.hosts.spawn`: processes that a host starts itself.
"""
