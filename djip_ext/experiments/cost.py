"""What the steps of a plan cost: passes through teachers and students, and seconds.

Passes are counted, seconds are those of this machine, from a short measurement.  A pass is one
image through a network; a student's pass includes its way back.
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
from djip_ext.bench.distillers.rivals import adversarial_losses
from djip_ext.bench.distillers.rivals.adversarial import Adversarial
from djip_ext.bench.engine.coded_teacher import CANDIDATES
from djip_ext.bench.engine.run import build_distiller, build_model, resolve_device
from djip_ext.bench.engine.teacher_cache import CachedTeacher
from djip_ext.bench.engine.temperature import distiller_temperature
from djip_ext.bench.engine.trainer import evaluate, trainer_dict
from djip_ext.bench.models.families import is_family
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.experiments.plan import Step
from djip_ext.fit.loop import default_start, fit_lens
from djip_ext.fit.settings import IMAGES_OF_A_CLASS, FitSettings
from djip_ext.hosts.registry import put_behind
from djip_ext.utils.networks import autocast

if TYPE_CHECKING:
    from djip_ext.bench.dataset.protocols import LabelledImages, Loader

STEPS = 2  # training steps that are timed
# how often; the quickest counts: a first call and what else a machine does only ever add
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """Passes, and seconds on one worker of this machine."""

    teacher: int = 0
    student: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.teacher + other.teacher,
            self.student + other.student,
            self.seconds + other.seconds,
        )


class Estimate:
    """The costs of steps; what was measured or loaded once is kept."""

    def __init__(self) -> None:
        self._measured: dict[str, Any] = {}

    def __call__(self, steps: Sequence[Step]) -> list[Cost]:
        """What is left of each step costs; nothing for a finished one.

        The teacher's answers that several students share are part of the first one's.
        """
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
        train, test = self._once(f"data {data_key(cfg)}", lambda: load_run_sets(cfg))
        if step.kind == "lens":
            return self._fit(step, cfg, train, test)
        count = len(train.labels)
        done = step.epochs_done()
        last = cfg.SOLVER.EPOCHS
        epochs = last - done
        times = self._training_times(cfg, train, test)
        tested = _evaluations(done, last, cfg.BENCH.EVAL_EVERY) * len(test.labels)
        seconds = epochs * count * times.training + tested * times.testing
        adversarial = round(epochs * count * times.adversarial)  # passes; part of the step's time
        cost = Cost(adversarial, epochs * count, seconds)
        if not needs_teacher(cfg.DISTILLER.TYPE):
            return cost
        if cfg.BENCH.VIEWS:
            return cost + self._cached_answers(step, cfg, train, shared)
        pretrained = 0
        if cfg.DISTILLER.TYPE == "FT" and not done:
            pretrained = cfg.FT.PRETRAIN.EPOCHS * count
        return cost + Cost(epochs * count + pretrained, 0, pretrained * times.pretraining)

    def _training_times(self, cfg: CfgNode, train: LabelledImages, test: LabelledImages) -> Times:
        networks = f"{cfg.DISTILLER.TYPE} {cfg.DISTILLER.TEACHER} {cfg.DISTILLER.STUDENT}"
        networks = f"{networks} {cfg.BENCH.ADVERSARIAL}"
        views = bool(cfg.BENCH.VIEWS)  # however many: a step reads one of them
        key = f"run {networks} {cfg.BENCH.PRECISION} {views} {len(train.labels)}"
        times: Times = self._once(key, lambda: time_training(cfg, train, test))
        return times

    def _cached_answers(
        self, step: Step, cfg: CfgNode, train: LabelledImages, shared: set[str]
    ) -> Cost:
        """The teacher's answers to all views, unless a student before this one asks for them."""
        checkpoint, views = cfg.BENCH.TEACHER_CHECKPOINT, cfg.BENCH.VIEWS
        shown = f"{cfg.BENCH.ANSWERS} {cfg.BENCH.CKD}"
        key = f"{step.lens} {checkpoint} {data_key(cfg)} {views} {shown}"
        if key in shared:
            return Cost()
        shared.add(key)
        per_image = self._once(
            f"teacher {cfg.DISTILLER.TEACHER} {cfg.BENCH.PRECISION}",
            lambda: time_teacher(cfg, train),
        )
        asked = 1 + (CANDIDATES if cfg.BENCH.CKD else 0)
        passes = asked * views * len(train.labels)
        return Cost(passes, 0, passes * per_image)

    def _fit(self, step: Step, cfg: CfgNode, train: LabelledImages, test: LabelledImages) -> Cost:
        flags = list(step.flags)

        def number(flag: str, default: int) -> int:
            return int(flags[flags.index(flag) + 1]) if flag in flags else default

        rounds = number("--rounds", FitSettings.rounds)
        images = number("--images", IMAGES_OF_A_CLASS * train.num_classes)
        count = min(images or len(train.labels), len(train.labels))
        # At the end, without and with the lens
        measured = 2 * (len(test.labels) + (len(train.labels) if images else 0))
        if distiller_temperature(cfg) is not None:  # once more at the distiller's
            measured += 2 * count
        passes = fit_passes(count, rounds) + measured
        per_pass = self._once(
            f"fit {cfg.DISTILLER.TEACHER} {cfg.BENCH.PRECISION}", lambda: time_fit(cfg, train)
        )
        return Cost(passes, 0, passes * per_pass)

    def _once(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]


def _evaluations(done: int, last: int, every: int) -> int:
    """How many of the epochs after ``done`` end with one; the last epoch always does."""
    return sum(epoch % every == 0 or epoch == last for epoch in range(done + 1, last + 1))


def data_key(cfg: CfgNode) -> tuple[Any, ...]:
    """Equal for configurations that read the same data.

    A network of another library has its own input size.
    """
    network = cfg.DISTILLER.TEACHER if needs_teacher(cfg.DISTILLER.TYPE) else cfg.DISTILLER.STUDENT
    own = network if is_family(network) else ""
    bench = cfg.BENCH
    part = (bench.FRACTION, bench.FRACTION_SEED, bench.HOLDOUT)
    return own, cfg.DATASET.TYPE, bench.DATA_ROOT, *part


def fit_passes(images: int, rounds: int) -> int:
    """Teacher passes of a fit.

    One of the plain teacher, one before each round and after the last, two (there and back) in each
    round.
    """
    return images * (1 + (rounds + 1) + 2 * rounds)


class _Few:
    """The first batches of a loader."""

    def __init__(self, loader: Loader, batches: int) -> None:
        self.loader = loader
        self.batches = batches
        self.batch_size = loader.batch_size
        self.device = loader.device
        self.data = loader.data
        self.num_images = min(batches * loader.batch_size, loader.num_images)

    def __len__(self) -> int:
        return min(self.batches, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.loader, self.batches)


@dataclass(frozen=True)
class Times:
    """Seconds per image of a training step, of an epoch of FT's pretraining, of an evaluation.

    ``adversarial`` are the teacher passes per image of a ``BENCH.ADVERSARIAL``.
    """

    training: float
    pretraining: float
    testing: float
    adversarial: float


def time_training(cfg: CfgNode, train: LabelledImages, test: LabelledImages) -> Times:
    """Time a run of ``cfg`` with random weights.

    The teacher is behind a lens, or its answers are kept when ``BENCH.VIEWS`` says so.
    """
    cfg = cfg.clone()
    cfg.merge_from_list(["BENCH.STUDENT_CHECKPOINT", "", "BENCH.EVAL_EVERY", 10**9])
    # the last epoch of a run would be evaluated
    cfg.merge_from_list(["SOLVER.EPOCHS", cfg.SOLVER.EPOCHS + 1, "SOLVER.LR", 0.0])
    cfg.merge_from_list(["FT.PRETRAIN.EPOCHS", 1, "FT.PRETRAIN.LR", 0.0])
    loader = make_loader(train, cfg.SOLVER.BATCH_SIZE, cfg.BENCH.DEVICE, augment=True)
    teacher = lensed_teacher(cfg, train) if needs_teacher(cfg.DISTILLER.TYPE) else None
    distiller = build_distiller(cfg, teacher, loader.num_images, train.num_classes)
    if teacher is not None and cfg.BENCH.VIEWS:
        distiller.teacher = _random_answers(teacher, loader, train.num_classes)
    if teacher is not None and cfg.BENCH.ADVERSARIAL:
        distiller = adversarial_losses[cfg.BENCH.ADVERSARIAL](distiller, teacher, cfg)
        distiller.to(cfg.BENCH.DEVICE)
    few = _Few(loader, STEPS)
    pretraining = 0.0
    if hasattr(distiller, "pretrain"):
        pretrain: Callable[[Any], Any] = distiller.pretrain  # type: ignore[assignment]
        pretraining = _quickest(lambda: pretrain(few)) / few.num_images
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_dict[cfg.SOLVER.TRAINER](Path(folder), distiller, few, few, cfg)  # type: ignore[arg-type]
        training = _quickest(lambda: trainer.train_epoch(1)) / few.num_images
    tests = _Few(make_loader(test, cfg.DATASET.TEST.BATCH_SIZE, cfg.BENCH.DEVICE), STEPS)
    testing = _quickest(lambda: evaluate(distiller.student, tests, cfg.BENCH.PRECISION))  # type: ignore[arg-type]
    passes = 0.0
    if isinstance(distiller, Adversarial):
        passes = int(distiller.teacher_passes) / (REPEATS * few.num_images)
    return Times(training, pretraining, testing / tests.num_images, passes)


def _random_answers(teacher: nn.Module, loader: Loader, num_classes: int) -> CachedTeacher:
    """Kept answers of the right size."""
    with torch.no_grad():
        _, features = teacher(next(iter(loader))[0][:1])
    count = loader.num_images
    kept = {
        "logits": torch.randn(1, count, num_classes),
        "pooled_feat": torch.randn(1, count, features["pooled_feat"].shape[1]),
    }
    return CachedTeacher({name: values.to(loader.device) for name, values in kept.items()}, "")


def random_teacher(cfg: CfgNode, data: LabelledImages) -> nn.Module:
    """The teacher of ``cfg`` with random weights.

    Its batch normalisation has the statistics of noise, without which the numbers of a deep one
    explode.
    """
    teacher = build_model(cfg.DISTILLER.TEACHER, data.num_classes, cfg.DATASET.TYPE)
    teacher = teacher.to(cfg.BENCH.DEVICE).to(memory_format=torch.channels_last)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain average over all batches: this one
    with torch.no_grad():
        teacher.train()(torch.randn(8, 3, *data.size, device=cfg.BENCH.DEVICE))
    return teacher.eval()


def lensed_teacher(cfg: CfgNode, data: LabelledImages) -> nn.Module:
    """:func:`random_teacher` behind the default lens."""
    teacher: nn.Module = put_behind(
        random_teacher(cfg, data), default_start(), cfg, any_teacher=True
    )
    return teacher.to(cfg.BENCH.DEVICE)


@torch.no_grad()
def time_teacher(cfg: CfgNode, data: LabelledImages) -> float:
    """Seconds per image of the teacher behind a lens."""
    teacher = lensed_teacher(cfg, data)
    few = _Few(make_loader(data, cfg.SOLVER.BATCH_SIZE, cfg.BENCH.DEVICE), STEPS)

    def ask() -> None:
        for image, _ in few:
            with autocast(image.device, cfg.BENCH.PRECISION):
                teacher(image)

    return _quickest(ask) / few.num_images


def time_fit(cfg: CfgNode, data: LabelledImages) -> float:
    """Seconds per pass of a fit, from one of a single round on a few images."""
    teacher = random_teacher(cfg, data)
    by_class = torch.argsort(data.labels, stable=True)
    part = data.select(by_class[: STEPS * 64])  # a fit wants several images of a class
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


def _quickest(work: Callable[[], Any]) -> float:
    """The least wall time of :data:`REPEATS` calls of ``work``."""
    return min(_seconds(work) for _ in range(REPEATS))


def _seconds(work: Callable[[], Any]) -> float:
    """Wall time of ``work``, what it left to a GPU included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
