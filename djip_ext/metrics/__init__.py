"""Measures of a classifier's predictions: conditional mutual information, cross entropy, accuracy.

Uses :mod:`djip_ext.utils`; a lens is any function from images to images here.

* :mod:`~djip_ext.metrics.cmi`: CMI, Gamma and NCMI of a set of predictions in one pass.
* :mod:`~djip_ext.metrics.measurement`: a network on a data set, as it is or through a lens.
* :mod:`~djip_ext.metrics.predictions`: the loop over a data set that these share.
* :mod:`~djip_ext.metrics.spectrum`: CMI as a function of the temperature.
* :mod:`~djip_ext.metrics.softening`: a lens beside the temperature of equal entropy.
* :mod:`~djip_ext.metrics.class_simplex`: the predictions for one class, for a picture.
"""

from djip_ext.metrics.cmi import CMI, ClassStatistics, conditional_mutual_information
from djip_ext.metrics.measurement import Measurement, measure
from djip_ext.metrics.softening import Softening, entropy_among_others, measure_softening
from djip_ext.metrics.spectrum import cmi_spectrum, measure_spectrum

__all__ = [
    "CMI",
    "ClassStatistics",
    "Measurement",
    "Softening",
    "cmi_spectrum",
    "conditional_mutual_information",
    "entropy_among_others",
    "measure",
    "measure_softening",
    "measure_spectrum",
]
