"""``djip eval``: the benchmark's eval.py, with ``--djip-lens``."""

import argparse

from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.evaluation import evaluate_teacher
from djip_ext.hosts.activation import check_any_teacher
from djip_ext.hosts.registry import put_behind
from djip_ext.lens.io import lens_name, read_lens
from djip_ext.teacher import DJIPTeacher

DATASETS = ("cifar100", "imagenet", "tiny_imagenet", "synthetic", "imagefolder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``djip eval``."""
    parser.add_argument(
        "-m",
        "--model",
        required=True,
        help="network of the benchmark, or FAMILY:NETWORK of torchvision, timm or hf",
    )
    parser.add_argument(
        "-c",
        "--ckpt",
        default="pretrain",
        help="checkpoint of its weights (default: pretrain, the published ones)",
    )
    parser.add_argument(
        "-d",
        "--dataset",
        choices=DATASETS,
        help="whose test images (default: DATASET.TYPE, cifar100)",
    )
    parser.add_argument(
        "-bs",
        "--batch-size",
        type=int,
        metavar="N",
        help="images in a batch (default: DATASET.TEST.BATCH_SIZE, 64)",
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder that holds cifar-100-python, or train/CLASS/* and val/CLASS/* "
        "(default: BENCH.DATA_ROOT)",
    )
    parser.add_argument(
        "--djip-lens",
        metavar="LENS",
        help="lens file in front of the network, 'identity', or 'temperature:K': its logits / K",
    )
    parser.add_argument(
        "--djip-any-teacher",
        action="store_true",
        help="accept a lens that was fitted for other weights",
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="KEY VALUE",
        help="settings of the benchmark, e.g. BENCH.DEVICE cpu",
    )


def configuration(args: argparse.Namespace) -> CfgNode:
    """The defaults, then the flags, then the ``KEY VALUE`` pairs; raises as :func:`load_cfg`."""
    flags = {
        "DISTILLER.TEACHER": args.model,
        "DATASET.TYPE": args.dataset,
        "DATASET.TEST.BATCH_SIZE": args.batch_size,
        "BENCH.TEACHER_CHECKPOINT": None if args.ckpt == "pretrain" else args.ckpt,
        "BENCH.DATA_ROOT": args.data_root or None,
    }
    pairs = [word for pair in flags.items() if pair[1] is not None for word in pair]
    return load_cfg(None, [*pairs, *args.options])


def run(args: argparse.Namespace) -> None:
    """Print accuracy and cross entropy; raises DJIPError for anything the user can fix."""
    check_any_teacher(args)
    cfg = configuration(args)
    if args.djip_lens is None:
        row = evaluate_teacher(cfg)
        what = cfg.DISTILLER.TEACHER
    else:
        lens = read_lens(args.djip_lens)

        def behind(network: nn.Module, scaled: CfgNode) -> DJIPTeacher:
            return put_behind(network, lens, scaled, args.djip_any_teacher)

        row = evaluate_teacher(cfg, behind)
        what = f"{cfg.DISTILLER.TEACHER} behind {lens_name(lens)}"
    print(
        f"{what}: top-1 {row['test_acc']:.2f} %, top-5 {row['test_acc_top5']:.2f} %, "
        f"cross entropy {row['test_loss']:.4f} nats"
    )
