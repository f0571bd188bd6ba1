"""An embedded knowledge-distillation benchmark with mdistiller's surface.

It exists so that the extension can be used and tested on a machine that has no mdistiller, through
exactly the seam that it uses there: ``djip_ext.bench.distillers.distiller_dict``.  The names that
mdistiller's tools/train.py and tools/eval.py import are in the modules of the same names here and
are called alike; ``tests/bench/test_surface.py`` lists them.

From the top down, each using only what stands below it:

    engine                  configuration, trainers, runs, evaluation
    dataset, distillers     images and loaders; one method per file
    models                  the networks, and those of other libraries
    device                  the device that a configuration names

Of the rest of the package the benchmark uses ``lens`` (normalisations, the hash of a network's
weights), ``utils`` and ``errors``.
"""
