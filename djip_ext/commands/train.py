"""``djip train``: the benchmark's train.py, with ``--djip-lens``."""

import argparse

from ..bench.run import behind_lens, train
from ..errors import DJIPError
from ..install import install, uninstall
from ..lens_file import lens_name, read_lens
from .options import add_benchmark_arguments, benchmark_cfg

HOST = "djip_ext.bench"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_benchmark_arguments(parser)
    parser.add_argument("--djip-lens", metavar="LENS", help="lens file in front of the teacher, 'identity': the fair baseline, or 'temperature:K': its logits / K")
    parser.add_argument("--djip-any-teacher", action="store_true", help="accept a lens that was fitted for other weights")
    parser.add_argument("--seed", type=int, help="of weights, order and augmentation (BENCH.SEED)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run, to the same numbers")


def run(args: argparse.Namespace) -> None:
    cfg = benchmark_cfg(args)
    try:
        if args.djip_lens:
            lens = read_lens(args.djip_lens)
            if cfg.DISTILLER.TYPE == "NONE":
                raise DJIPError("--djip-lens goes in front of a teacher, but DISTILLER.TYPE is NONE; name a distiller, or a file that does with --cfg")
            cfg.EXPERIMENT.PROJECT = behind_lens(cfg.EXPERIMENT.PROJECT, lens_name(lens))
            print(install(lens, HOST, args.djip_any_teacher))
        result = train(cfg, args.resume)
    finally:
        uninstall(HOST)
    print(f"last {result['last_acc']:.2f} %, best {result['best_acc']:.2f} % (epoch {result['best_epoch']} of {result['epochs']}): {result['folder']}")
