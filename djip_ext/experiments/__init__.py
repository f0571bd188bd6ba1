"""Tables of results: from one file to hundreds of runs, and from their records to a report.

Uses :mod:`djip_ext.bench` for what a run is and :mod:`djip_ext.fit` for what a lens is; draws
nothing (:mod:`djip_ext.plots` does).

Before the runs:

* :mod:`~djip_ext.experiments.table`: a table of results as a file.
* :mod:`~djip_ext.experiments.axes`: options that vary within a table.
* :mod:`~djip_ext.experiments.plan`: the commands that it takes, in their order.
* :mod:`~djip_ext.experiments.cost`: what they cost.
* :mod:`~djip_ext.experiments.scheduler`: running them, here or on a cluster.
* :mod:`~djip_ext.experiments.tuning`: the choice of what goes before a teacher.

After the runs:

* :mod:`~djip_ext.experiments.runs`: their records as files, a folder per run or a row per run.
* :mod:`~djip_ext.experiments.records`: the students among them by pair, row, arm and seed.
* :mod:`~djip_ext.experiments.lenses`: the lenses of their teachers.
* :mod:`~djip_ext.experiments.statistics`: means and paired differences over seeds.
* :mod:`~djip_ext.experiments.published`: what papers published.
* :mod:`~djip_ext.experiments.differences`: how the arms of a table differ.
* :mod:`~djip_ext.experiments.report`: a table of results in Markdown and LaTeX.
"""
