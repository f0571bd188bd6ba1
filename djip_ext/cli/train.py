"""``djip train``: the benchmark's train.py, with ``--djip-lens``."""

import argparse

from djip_ext.bench.engine.run import behind_lens, train
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.cli.options import add_benchmark_arguments, benchmark_cfg
from djip_ext.errors import DJIPError
from djip_ext.hosts.activation import check_any_teacher
from djip_ext.hosts.registry import install, uninstall
from djip_ext.lens.io import lens_name, read_lens

HOST = "djip_ext.bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip train``."""
    add_benchmark_arguments(parser)
    parser.add_argument(
        "--djip-lens",
        metavar="LENS",
        help="lens file in front of the teacher, 'identity': the fair baseline, "
        "or 'temperature:K': its logits / K",
    )
    parser.add_argument(
        "--djip-any-teacher",
        action="store_true",
        help="accept a lens that was fitted for other weights",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of weights, order and augmentation (default: BENCH.SEED)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted run, to the same numbers"
    )


def run(args: argparse.Namespace) -> None:
    """Train, behind the lens if there is one.

    Raises:
        DJIPError: anything wrong with configuration, data, teacher or lens.
    """
    check_any_teacher(args)
    cfg = benchmark_cfg(args)
    try:
        if args.djip_lens:
            lens = read_lens(args.djip_lens)
            if not needs_teacher(cfg.DISTILLER.TYPE):
                raise DJIPError(
                    "--djip-lens goes in front of a teacher, but DISTILLER.TYPE is "
                    f"{cfg.DISTILLER.TYPE}; "
                    "name a distiller, or a file that does with --cfg"
                )
            cfg.EXPERIMENT.PROJECT = behind_lens(cfg.EXPERIMENT.PROJECT, lens_name(lens))
            print(install(lens, HOST, args.djip_any_teacher))
        result = train(cfg, args.resume)
    finally:
        uninstall(HOST)
    print(
        f"last {result['last_acc']:.2f} %, best {result['best_acc']:.2f} % "
        f"(epoch {result['best_epoch']} of {result['epochs']}): {result['folder']}"
    )
