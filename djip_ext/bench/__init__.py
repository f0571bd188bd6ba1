"""An embedded knowledge-distillation benchmark with mdistiller's surface.

It exists so that the extension can be used and tested on a machine that has no mdistiller, through
exactly the seam that it uses there: ``djip_ext.bench.distillers.distiller_dict``.
"""
