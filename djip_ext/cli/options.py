"""The arguments that the benchmark's commands share, and what becomes of them."""

import argparse

from yacs.config import CfgNode

from djip_ext.bench.engine.cfg import load_cfg


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """``--cfg``, ``--data-root`` and the trailing ``KEY VALUE`` pairs."""
    parser.add_argument(
        "--cfg", help="YAML file of the benchmark, see configs/; default: the schema's defaults"
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder that holds cifar-100-python, or train/CLASS/* and val/CLASS/* (BENCH.DATA_ROOT)",
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="KEY VALUE",
        help="settings that override the file, e.g. SOLVER.EPOCHS 60",
    )


def benchmark_cfg(args: argparse.Namespace) -> CfgNode:
    """The configuration that those arguments describe; raises DJIPError for anything wrong with them."""
    options = list(args.options)
    if args.data_root:
        options += ["BENCH.DATA_ROOT", args.data_root]
    if getattr(args, "seed", None) is not None:
        options += ["BENCH.SEED", args.seed]
    return load_cfg(args.cfg, options)
