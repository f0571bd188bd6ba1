"""``djip eval``: the benchmark's eval.py, with ``--djip-lens``."""

import argparse

from torch import nn
from yacs.config import CfgNode

from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.evaluation import evaluate_teacher
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
        default="cifar100",
        choices=DATASETS,
        help="whose test images (default: %(default)s)",
    )
    parser.add_argument(
        "-bs",
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="images in a batch (default: %(default)s)",
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


def run(args: argparse.Namespace) -> None:
    """Print accuracy and cross entropy; raises DJIPError for anything the user can fix."""
    cfg = load_cfg(None, args.options)
    cfg.DATASET.TYPE = args.dataset
    cfg.DATASET.TEST.BATCH_SIZE = args.batch_size
    cfg.DISTILLER.TEACHER = args.model
    if args.ckpt != "pretrain":
        cfg.BENCH.TEACHER_CHECKPOINT = args.ckpt
    if args.data_root:
        cfg.BENCH.DATA_ROOT = args.data_root
    if args.djip_lens is None:
        row = evaluate_teacher(cfg)
        what = args.model
    else:
        lens = read_lens(args.djip_lens)

        def behind(network: nn.Module, scaled: CfgNode) -> DJIPTeacher:
            return put_behind(network, lens, scaled, args.djip_any_teacher)

        row = evaluate_teacher(cfg, behind)
        what = f"{args.model} behind {lens_name(lens)}"
    print(
        f"{what}: top-1 {row['test_acc']:.2f} %, top-5 {row['test_acc_top5']:.2f} %, "
        f"cross entropy {row['test_loss']:.4f} nats"
    )
