"""Pictures, with matplotlib; uses all packages below it, and none of them uses this one.

* :mod:`~djip_ext.plots.style`: how all pictures look, and how they are written.
* :mod:`~djip_ext.plots.images`: images beside what the teacher sees of them.
* :mod:`~djip_ext.plots.cmi`: CMI class by class.
* :mod:`~djip_ext.plots.lens`: a lens from its record.
* :mod:`~djip_ext.plots.comparison`: arms of students, paired by seed.
* :mod:`~djip_ext.plots.table`: a table of results.
"""
