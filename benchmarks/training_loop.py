"""Images per second of this benchmark's training loop and of mdistiller's own, KD, same networks.

    python benchmarks/training_loop.py [--mdistiller CHECKOUT] [--pairs TEACHER:STUDENT ...]
                                       [--batches 20] [--rounds 7] [--threads N] [--compile]

Every loop trains on random images with its own data pipeline (mdistiller: PIL in two worker
processes; here: batches augmented on the device), its own trainer and its own networks, without
evaluation and without files.  Loops take turns, some batches each; the medians are compared.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from timing import interleaved, machine, write  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from djip_ext.bench.dataset.imageset import ImageSet  # noqa: E402
from djip_ext.bench.dataset.loader import DeviceLoader  # noqa: E402
from djip_ext.bench.distillers import distiller_dict  # noqa: E402
from djip_ext.bench.engine.cfg import load_cfg  # noqa: E402
from djip_ext.bench.engine.run import build_model, compile_networks, resolve_device  # noqa: E402
from djip_ext.bench.engine.teacher_cache import CachedTeacher  # noqa: E402
from djip_ext.bench.engine.trainer import BaseTrainer  # noqa: E402
from djip_ext.hosts.workarounds import Host, cuda_means_cpu  # noqa: E402

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
Step = Callable[[], object]


def ours(
    teacher: str,
    student: str,
    data: ImageSet,
    batch: int,
    precision: str = "float32",
    views: int = 0,
    compiled: bool = False,
    captured: bool = False,
) -> Step:
    """One training step of this benchmark; with ``views``, the teacher's answers are kept ones."""
    options = ["SOLVER.BATCH_SIZE", str(batch), "BENCH.PRECISION", precision]
    cfg = load_cfg(None, [*options, "BENCH.CUDA_GRAPH", str(captured)])
    device = resolve_device("auto")
    distiller = distiller_dict["KD"](build_model(student, 100), build_model(teacher, 100), cfg)
    distiller.to(device, memory_format=torch.channels_last)
    if views:
        distiller.teacher = CachedTeacher(
            {"logits": torch.randn(views, len(data.labels), 100, device=device).half()}, "none"
        )
    if compiled:
        compile_networks(distiller)
    loader = DeviceLoader(data, batch, device, augment=True, views=views)
    trainer = BaseTrainer(Path("."), distiller, loader, loader, cfg)
    distiller.train()
    batches = _forever(loader)
    return lambda: trainer.step(next(batches), 0)


def mdistillers(checkout: str, teacher: str, student: str, data: ImageSet, batch: int) -> Step:
    """One training step of mdistiller's BaseTrainer."""
    sys.path.insert(0, checkout)
    cuda_means_cpu(Host("mdistiller", Path(checkout), "", False))
    from mdistiller.dataset.cifar100 import CIFAR100Instance, get_cifar100_train_transform
    from mdistiller.distillers import distiller_dict as theirs
    from mdistiller.engine.cfg import CFG
    from mdistiller.engine.trainer import BaseTrainer as Trainer
    from mdistiller.engine.utils import AverageMeter
    from mdistiller.models import cifar_model_dict

    cfg = CFG.clone()
    cfg.SOLVER.BATCH_SIZE = batch
    cfg.LOG.PREFIX = tempfile.mkdtemp()
    cfg.LOG.WANDB = False
    dataset = object.__new__(CIFAR100Instance)  # its files replaced by the same random images
    dataset.data = data.images.numpy()
    dataset.targets = data.labels.tolist()
    dataset.transform = get_cifar100_train_transform()
    dataset.target_transform = None
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, shuffle=True, num_workers=cfg.DATASET.NUM_WORKERS
    )
    networks = (cifar_model_dict[name][0](num_classes=100) for name in (student, teacher))
    trainer = Trainer(
        "speed", torch.nn.DataParallel(theirs["KD"](*networks, cfg).cuda()), loader, loader, cfg
    )
    trainer.distiller.train()
    batches = _forever(loader)

    def step() -> object:
        meters = {
            name: AverageMeter()
            for name in ("training_time", "data_time", "losses", "top1", "top5")
        }
        return trainer.train_iter(next(batches), 1, meters)

    return step


def _forever(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def rates(loops: dict[str, Step], batch: int, batches: int, rounds: int) -> dict[str, float]:
    """Images per second of each loop, the median over ``rounds`` turns of ``batches`` steps."""
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, step in loops.items():
            started = time.perf_counter()
            for _ in range(batches):
                step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {
        name: batch * batches / sorted(values)[len(values) // 2] for name, values in seconds.items()
    }


def multiplications(name: str) -> float:
    """Multiplications of one image's forward pass, in millions."""
    network = build_model(name, 100).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() / 2e6


def product_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """10^9 multiplications per second in a matrix product, more than any network reaches."""
    a = torch.randn(size, size, device=resolve_device("auto")).to(dtype)
    return size**3 / interleaved({"product": lambda: a @ a}, rounds=9)["product"] / 1e9


def loops_of(pair: str, data: ImageSet, args: argparse.Namespace) -> dict[str, Step]:
    """The loops that are compared for TEACHER:STUDENT ``pair``, by name."""
    teacher, student = pair.split(":")
    batch = args.batch_size
    loops: dict[str, Step] = {}
    if args.mdistiller:
        checkout = os.path.abspath(args.mdistiller)
        loops["mdistiller"] = mdistillers(checkout, teacher, student, data, batch)
    loops |= {
        "this loop": ours(teacher, student, data, batch),
        "this loop, bfloat16": ours(teacher, student, data, batch, "bfloat16"),
        "this loop, teacher asked once (VIEWS)": ours(teacher, student, data, batch, views=4),
        "this loop, bfloat16, VIEWS": ours(teacher, student, data, batch, "bfloat16", views=4),
    }
    if args.compile:
        for precision in ("float32", "bfloat16"):
            loops[f"this loop, {precision}, compiled"] = ours(
                teacher, student, data, batch, precision, compiled=True
            )
    if torch.cuda.is_available():
        graph = {"precision": "bfloat16", "captured": True}
        loops["this loop, bfloat16, CUDA graph"] = ours(teacher, student, data, batch, **graph)
        loops["this loop, bfloat16, CUDA graph, VIEWS"] = ours(
            teacher, student, data, batch, views=4, **graph
        )
    return loops


def compare(pair: str, data: ImageSet, args: argparse.Namespace) -> list[dict[str, object]]:
    """A row per loop: images and multiplications per second."""
    teacher, student = pair.split(":")
    found = rates(loops_of(pair, data, args), args.batch_size, args.batches, args.rounds)
    base = found.get("mdistiller")
    of_teacher = multiplications(teacher)
    of_student = 3 * multiplications(student)  # forward; and backward to weights and to maps
    rows = []
    for name, rate in found.items():
        work = of_student + (0 if "VIEWS" in name else of_teacher)
        row: dict[str, object] = {"teacher": teacher, "student": student, "loop": name}
        row |= {"images / s": rate, "10^9 multiplications / s": rate * work / 1e3}
        if base:
            row["times mdistiller"] = rate / base
        rows.append(row)
    return rows


def main() -> None:
    """Time the loops, and write their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mdistiller", metavar="CHECKOUT")
    parser.add_argument(
        "--pairs",
        nargs="+",
        default=["resnet20:resnet8", "wrn_16_2:resnet8"],
        metavar="TEACHER:STUDENT",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20, help="in a turn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="of torch; 0: all. One is steadier on a machine that others use",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="show the loops of this benchmark with BENCH.COMPILE, too",
    )
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("docs/performance/training_loop"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.randint(256, (args.images, 32, 32, 3), dtype=torch.uint8)
    data = ImageSet(images, torch.arange(args.images) % 100, 100, MEAN, STD)
    rows = [row for pair in args.pairs for row in compare(pair, data, args)]
    product = " and ".join(
        f"{product_rate(dtype):.0f} in {str(dtype).removeprefix('torch.')}"
        for dtype in (torch.float32, torch.bfloat16)
    )
    title = (
        f"{machine()}; KD, batch {args.batch_size}, 32 x 32; "
        f"a matrix product: {product} (10^9 multiplications / s)"
    )
    print(write(rows, args.out, title))


if __name__ == "__main__":
    main()
