"""What a plan costs: passes through teachers and students, counted; hours on this machine, from a short measurement.

A pass is one image through a network; a student's pass includes its way back.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import load_run_sets, make_loader
from djip_ext.bench.engine.run import build_distiller, build_model, resolve_device
from djip_ext.bench.engine.teacher_cache import CachedTeacher
from djip_ext.bench.engine.trainer import evaluate, trainer_dict
from djip_ext.bench.models.families import is_family
from djip_ext.experiments.plan import Step
from djip_ext.fit.loop import default_start, fit_lens
from djip_ext.hosts.registry import put_behind
from djip_ext.utils.networks import autocast

if TYPE_CHECKING:
    from djip_ext.bench.dataset.imagefolder import FolderSet
    from djip_ext.bench.dataset.imageset import ImageSet
    from djip_ext.bench.dataset.protocols import Loader

STEPS = 2  # training steps that are timed, after one that is not


@dataclass(frozen=True)
class Cost:
    """Passes, and seconds on one worker of this machine."""

    teacher: int = 0
    student: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.teacher + other.teacher, self.student + other.student, self.seconds + other.seconds
        )


class Estimate:
    """The costs of steps; what was measured or loaded once is remembered."""

    def __init__(self) -> None:
        self._measured: dict[str, Any] = {}

    def __call__(self, steps: Sequence[Step]) -> list[Cost]:
        """The cost of each step that is not finished, of what is left of it; answers that several students share are the first one's."""
        shared: set[str] = set()
        return [
            self._cost(step, shared)
            for step in tqdm(steps, desc="measuring", unit="step", leave=False)
        ]

    def _cost(self, step: Step, shared: set[str]) -> Cost:
        if step.result() is not None:
            return Cost()
        cfg = step.settings()
        cfg.BENCH.DEVICE = str(resolve_device(cfg.BENCH.DEVICE))
        where = data_key(cfg)
        train, test = self._once(f"data {where}", lambda: load_run_sets(cfg))
        if step.kind == "lens":
            return self._fit(step, cfg, train, test)
        done, last, count = step.epochs_done(), cfg.SOLVER.EPOCHS, len(train.labels)
        epochs = last - done
        evaluations = sum(
            epoch % cfg.BENCH.EVAL_EVERY == 0 or epoch == last
            for epoch in range(done + 1, last + 1)
        )
        networks = f"{cfg.DISTILLER.TYPE} {cfg.DISTILLER.TEACHER} {cfg.DISTILLER.STUDENT} {cfg.BENCH.PRECISION} {cfg.BENCH.VIEWS} {count}"
        per_image, pretraining, per_test = self._once(
            f"run {networks}", lambda: time_training(cfg, train, test)
        )
        cost = Cost(
            0,
            epochs * count,
            epochs * count * per_image + evaluations * len(test.labels) * per_test,
        )
        if cfg.DISTILLER.TYPE == "NONE":
            return cost
        if cfg.BENCH.VIEWS:
            key = f"{step.lens} {cfg.BENCH.TEACHER_CHECKPOINT} {where} {cfg.BENCH.VIEWS}"
            asked = 0 if key in shared else cfg.BENCH.VIEWS * count
            shared.add(key)
            looking = (
                self._once(
                    f"look {cfg.DISTILLER.TEACHER} {cfg.BENCH.PRECISION}",
                    lambda: time_teacher(cfg, train),
                )
                if asked
                else 0.0
            )
            return cost + Cost(asked, 0, asked * looking)
        paraphrased = (
            cfg.FT.PRETRAIN.EPOCHS * count if cfg.DISTILLER.TYPE == "FT" and not done else 0
        )
        return cost + Cost(epochs * count + paraphrased, 0, paraphrased * pretraining)

    def _fit(
        self, step: Step, cfg: CfgNode, train: ImageSet | FolderSet, test: ImageSet | FolderSet
    ) -> Cost:
        flags = list(step.flags)

        def number(flag: str, default: int) -> int:
            return int(flags[flags.index(flag) + 1]) if flag in flags else default

        rounds, images = number("--rounds", 20), number("--images", 0)
        count = min(images or len(train.labels), len(train.labels))
        measured = 2 * (
            len(test.labels) + (len(train.labels) if images else 0)
        )  # at the end, without and with the lens
        passes = fit_passes(count, rounds) + measured
        per_pass = self._once(
            f"fit {cfg.DISTILLER.TEACHER} {cfg.BENCH.PRECISION}", lambda: time_fit(cfg, train)
        )
        return Cost(passes, 0, passes * per_pass)

    def _once(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]


def data_key(cfg: CfgNode) -> tuple[Any, ...]:
    """Equal for configurations that read the same data; a network of another library has its own input size."""
    network = cfg.DISTILLER.STUDENT if cfg.DISTILLER.TYPE == "NONE" else cfg.DISTILLER.TEACHER
    own = network if is_family(network) else ""
    return own, cfg.DATASET.TYPE, cfg.BENCH.DATA_ROOT, cfg.BENCH.FRACTION, cfg.BENCH.FRACTION_SEED


def fit_passes(images: int, rounds: int) -> int:
    """Teacher passes of a fit: the plain teacher, a look before each round and after the last, and the way there and back in each."""
    return images * (1 + (rounds + 1) + 2 * rounds)


class _Few:
    """The first batches of a loader."""

    def __init__(self, loader: Loader, batches: int) -> None:
        self.loader, self.batches, self.batch_size = loader, batches, loader.batch_size
        self.device, self.data, self.num_images = (
            loader.device,
            loader.data,
            min(batches * loader.batch_size, loader.num_images),
        )

    def __len__(self) -> int:
        return min(self.batches, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.loader, self.batches)


def time_training(
    cfg: CfgNode, train: ImageSet | FolderSet, test: ImageSet | FolderSet
) -> tuple[float, float, float]:
    """Seconds an image of a training step of ``cfg``, of an epoch of FT's pretraining, and of an evaluation; with random weights.

    The teacher looks through a lens, or only remembers when ``BENCH.VIEWS`` says so.
    """
    cfg = cfg.clone()
    cfg.merge_from_list(
        [
            "BENCH.STUDENT_CHECKPOINT",
            "",
            "BENCH.EVAL_EVERY",
            10**9,
            "SOLVER.EPOCHS",
            10**9,
            "SOLVER.LR",
            0.0,
        ]
    )
    cfg.merge_from_list(["FT.PRETRAIN.EPOCHS", 1, "FT.PRETRAIN.LR", 0.0])
    loader = make_loader(train, cfg.SOLVER.BATCH_SIZE, cfg.BENCH.DEVICE, augment=True)
    teacher = None if cfg.DISTILLER.TYPE == "NONE" else lensed_teacher(cfg, train)
    distiller = build_distiller(cfg, teacher, loader.num_images, train.num_classes)
    if teacher is not None and cfg.BENCH.VIEWS:
        with torch.no_grad():
            _, features = teacher(next(iter(loader))[0][:1])
        count = loader.num_images
        kept = {
            "logits": torch.randn(1, count, train.num_classes),
            "pooled_feat": torch.randn(1, count, features["pooled_feat"].shape[1]),
        }
        distiller.teacher = CachedTeacher(
            {name: values.to(loader.device) for name, values in kept.items()}, ""
        )
    warm, few = _Few(loader, 1), _Few(loader, STEPS)
    pretraining = (
        _seconds(lambda: distiller.pretrain(few)) / few.num_images
        if hasattr(distiller, "pretrain")
        else 0.0
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_dict[cfg.SOLVER.TRAINER](Path(folder), distiller, warm, warm, cfg)  # type: ignore[arg-type]
        trainer.train_epoch(1)
        trainer.train_loader = few  # type: ignore[assignment]
        per_image = _seconds(lambda: trainer.train_epoch(2)) / few.num_images
    tests = _Few(make_loader(test, cfg.DATASET.TEST.BATCH_SIZE, cfg.BENCH.DEVICE), STEPS)
    testing = _seconds(lambda: evaluate(distiller.student, tests, cfg.BENCH.PRECISION))  # type: ignore[arg-type]
    return per_image, pretraining, testing / tests.num_images


def random_teacher(cfg: CfgNode, data: ImageSet | FolderSet) -> nn.Module:
    """The teacher of ``cfg`` with random weights, and with the statistics of noise, without which a deep one's numbers explode."""
    teacher = build_model(cfg.DISTILLER.TEACHER, data.num_classes, cfg.DATASET.TYPE).to(
        cfg.BENCH.DEVICE, memory_format=torch.channels_last
    )
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average over all batches: this one
    with torch.no_grad():
        teacher.train()(torch.randn(8, 3, *data.size, device=cfg.BENCH.DEVICE))
    return teacher.eval()


def lensed_teacher(cfg: CfgNode, data: ImageSet | FolderSet) -> nn.Module:
    """That teacher behind the default lens."""
    return put_behind(random_teacher(cfg, data), default_start(), cfg, any_teacher=True).to(
        cfg.BENCH.DEVICE
    )


@torch.no_grad()
def time_teacher(cfg: CfgNode, data: ImageSet | FolderSet) -> float:
    """Seconds an image of the teacher behind a lens."""
    teacher = lensed_teacher(cfg, data)
    few = _Few(make_loader(data, cfg.SOLVER.BATCH_SIZE, cfg.BENCH.DEVICE), STEPS)

    def look() -> None:
        for image, _ in few:
            with autocast(image.device, cfg.BENCH.PRECISION):
                teacher(image)

    look()
    return _seconds(look) / few.num_images


def time_fit(cfg: CfgNode, data: ImageSet | FolderSet) -> float:
    """Seconds a pass of a fit, from one of a single round on a few images."""
    teacher = random_teacher(cfg, data)
    part = data.select(torch.arange(min(STEPS * 64, len(data.labels))))
    loader = make_loader(part, 64, cfg.BENCH.DEVICE, shuffle=True)

    def fit() -> None:
        fit_lens(
            teacher,
            loader,
            data.num_classes,
            mean=data.mean,
            std=data.std,
            rounds=1,
            progress=False,
            precision=cfg.BENCH.PRECISION,
        )

    return _seconds(fit) / fit_passes(len(part.labels), 1)


def _seconds(work: Callable[[], Any]) -> float:
    """Wall time of ``work``, with what it left to a GPU."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
