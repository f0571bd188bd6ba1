"""Tables of a paper: from one file to hundreds of runs, and from their records to a report.

Uses :mod:`djip_ext.bench` for what a run is; draws nothing (:mod:`djip_ext.plots` does).

* :mod:`~djip_ext.experiments.table`: a table as a file.
* :mod:`~djip_ext.experiments.plan`: the commands that it takes, in their order.
* :mod:`~djip_ext.experiments.cost`: what they cost.
* :mod:`~djip_ext.experiments.scheduler`: running them, here or on a cluster.
* :mod:`~djip_ext.experiments.records`: reading what the runs left.
* :mod:`~djip_ext.experiments.statistics`: paired statistics over seeds.
* :mod:`~djip_ext.experiments.lenses`: the lenses of a table.
* :mod:`~djip_ext.experiments.report`: the table in Markdown and LaTeX.
"""
