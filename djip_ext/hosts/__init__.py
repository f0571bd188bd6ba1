"""Put a lens into a benchmark: mdistiller, its forks, and the embedded benchmark alike.

Uses the lens, :mod:`djip_ext.teacher` and, for distillers that a host lacks, :mod:`djip_ext.bench`.

* :mod:`~djip_ext.hosts.registry`: the place to plug in, ``<package>.distillers.distiller_dict``.
* :mod:`~djip_ext.hosts.activation`: flags, seed, workarounds and lens, for launcher and autoload.
* :mod:`~djip_ext.hosts.seeding`: the launcher's seed in a script that seeds itself.
* :mod:`~djip_ext.hosts.extra_distillers`: the paper's distillers that a host lacks.
* :mod:`~djip_ext.hosts.workarounds`: faults of hosts that would ruin a run.
* :mod:`~djip_ext.hosts.task`: teacher and images of a host, for a fit.
* :mod:`~djip_ext.hosts.spawn`: processes that a host starts itself.
"""
