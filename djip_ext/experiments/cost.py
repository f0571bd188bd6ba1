"""What the steps of a plan cost: passes through teachers and students, and seconds.

Passes are counted, seconds are those of this machine, from a short measurement.  A pass is one
image through a network; a student's pass includes its way back.  A closed teacher is not asked: its
passes are queries, and its own time is not among the seconds.
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
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import load_run_sets, make_loader
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.distillers.rivals import adversarial_losses
from djip_ext.bench.distillers.rivals.adversarial import Adversarial
from djip_ext.bench.engine.coded_teacher import CANDIDATES
from djip_ext.bench.engine.run import build_distiller, build_model, resolve_device
from djip_ext.bench.engine.teacher_cache import CachedTeacher
from djip_ext.bench.engine.temperature import TEMPERATURE_KEYS, distiller_temperature
from djip_ext.bench.engine.trainer import evaluate, trainer_dict
from djip_ext.bench.models.closed import is_closed
from djip_ext.bench.models.families import is_family
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.experiments.arms import fit_flags
from djip_ext.experiments.plan import IMAGES, Step
from djip_ext.fit.batch import batch_of
from djip_ext.fit.black_box import PASSES
from djip_ext.fit.loop import default_start, fit_lens
from djip_ext.fit.settings import IMAGES_OF_A_CLASS
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
        self._measured: dict[tuple[Any, ...], Any] = {}

    def __call__(self, steps: Sequence[Step]) -> list[Cost]:
        """What is left of each step costs; nothing for a finished one.

        The teacher's answers that several students share are part of the first one's, unless one
        of ``steps`` has begun and has them.
        """
        done = [_epochs_done(step) for step in steps]
        begun = [step for step, epochs in zip(steps, done, strict=True) if epochs != 0]
        # Runs that have begun have asked, wherever they stand among the steps.
        shared = {_kept_answers(step) for step in begun}
        shown = tqdm(steps, desc="measuring", unit="step", leave=False)
        return [
            Cost() if epochs is None else self._cost(step, epochs, shared)
            for step, epochs in zip(shown, done, strict=True)
        ]

    def _cost(self, step: Step, done: int, shared: set[Any]) -> Cost:
        cfg = step.settings()
        cfg.BENCH.DEVICE = str(resolve_device(cfg.BENCH.DEVICE))
        train, test = self._once(("data", *data_key(cfg)), lambda: load_run_sets(cfg))
        if step.kind == "lens":
            return self._fit(step, cfg, train, test)
        count = len(train.labels)
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
        key = ("run", *_training_key(cfg), *_images_key(cfg, train), len(train.labels))
        times: Times = self._once(key, lambda: time_training(cfg, train, test))
        return times

    def _cached_answers(
        self, step: Step, cfg: CfgNode, train: LabelledImages, shared: set[Any]
    ) -> Cost:
        """The teacher's answers to all views, unless another student has asked for them."""
        key = _kept_answers(step)
        if key in shared:
            return Cost()
        shared.add(key)
        asked = 1 + (CANDIDATES if cfg.BENCH.CKD else 0)
        passes = asked * cfg.BENCH.VIEWS * len(train.labels)
        return Cost(passes, 0, passes * self._per_answer(cfg, train))

    def _fit(self, step: Step, cfg: CfgNode, train: LabelledImages, test: LabelledImages) -> Cost:
        flags = fit_flags(step.flags)
        images = IMAGES_OF_A_CLASS * train.num_classes if flags.images is None else flags.images
        count = min(images or len(train.labels), len(train.labels))
        if flags.black_box:  # nothing is asked beyond the budget
            queries = PASSES * count if flags.queries is None else flags.queries
            return Cost(queries, 0, queries * self._per_answer(cfg, train))
        if is_closed(cfg.DISTILLER.TEACHER):  # tables that are measured without and behind them
            return Cost(2 * count, 0, 2 * count * self._per_answer(cfg, train))
        passes = fit_passes(count, flags.rounds)
        measured = _passes_after_fit(cfg, count, train, test)
        batch = batch_of(count) if flags.batch_size is None else flags.batch_size
        key = ("fit", cfg.DISTILLER.TEACHER, batch, *_images_key(cfg, train))
        per_pass = self._once(key, lambda: time_fit(cfg, train, batch))
        seconds = passes * per_pass + measured * self._per_answer(cfg, train)
        return Cost(passes + measured, 0, seconds)

    def _per_answer(self, cfg: CfgNode, train: LabelledImages) -> float:
        """Seconds per image that only asks the teacher."""
        batch = cfg.SOLVER.BATCH_SIZE
        key = ("teacher", cfg.DISTILLER.TEACHER, batch, *_images_key(cfg, train))
        seconds: float = self._once(key, lambda: time_teacher(cfg, train))
        return seconds

    def _once(self, key: tuple[Any, ...], measure: Callable[[], Any]) -> Any:
        if key not in self._measured:
            self._measured[key] = measure()
        return self._measured[key]


def _evaluations(done: int, last: int, every: int) -> int:
    """How many of the epochs after ``done`` end with one; the last epoch always does."""
    return sum(epoch % every == 0 or epoch == last for epoch in range(done + 1, last + 1))


def _epochs_done(step: Step) -> int | None:
    """How much of a run is there; None for a step that is finished."""
    return None if step.result() is not None else step.epochs_done()


def data_key(cfg: CfgNode) -> tuple[Any, ...]:
    """Equal for configurations that read the same data.

    A network of another library has its own input size.
    """
    network = cfg.DISTILLER.TEACHER if needs_teacher(cfg.DISTILLER.TYPE) else cfg.DISTILLER.STUDENT
    own = network if is_family(network) else ""
    return own, *(_hashable(cfg, key) for key in (*IMAGES, "BENCH.HOLDOUT"))


def _hashable(cfg: CfgNode, key: str) -> Any:
    """The value of a ``key`` such as BENCH.MEAN, a list as a tuple."""
    node, name = key.split(".")
    value = cfg[node][name]
    return tuple(value) if isinstance(value, list) else value


def _kept_answers(step: Step) -> tuple[Any, ...] | None:
    """Equal for students that share their teacher's answers; None where none are kept."""
    if step.kind == "lens":
        return None
    cfg = step.settings()
    bench = cfg.BENCH
    if not bench.VIEWS or not needs_teacher(cfg.DISTILLER.TYPE):
        return None
    # Without a checkpoint the published weights are those of the network's name.
    teacher = (cfg.DISTILLER.TEACHER, bench.TEACHER_CHECKPOINT, step.lens, bench.PRECISION)
    return *teacher, bench.ANSWERS, bench.CKD, bench.VIEWS, *data_key(cfg)


def _images_key(cfg: CfgNode, data: LabelledImages) -> tuple[Any, ...]:
    """What the time of any network for an image depends on, the network and the batch apart."""
    return cfg.BENCH.PRECISION, cfg.DATASET.TYPE, data.size, data.num_classes


def _training_key(cfg: CfgNode) -> tuple[Any, ...]:
    """What the time of a step depends on, the images apart.

    A temperature only divides: that of the distiller is left out, since ``djip tune`` tries several
    and would time each.
    """
    names = cfg.DISTILLER
    extra = cfg.BENCH.ADVERSARIAL
    method = dict(cfg.get(names.TYPE, {}))
    method.pop(TEMPERATURE_KEYS.get(names.TYPE, "").rpartition(".")[2], None)
    views = bool(cfg.BENCH.VIEWS)  # however many: a step reads one of them
    settings = (extra, str(method), str(cfg.get(extra)))
    return names.TYPE, names.TEACHER, names.STUDENT, cfg.SOLVER.BATCH_SIZE, views, *settings


def _passes_after_fit(cfg: CfgNode, count: int, train: LabelledImages, test: LabelledImages) -> int:
    """Teacher passes that measure what a fit on ``count`` images has done.

    Each set is measured without and with the lens.
    """
    measured = len(test.labels)
    if count < len(train.labels) and isinstance(train, ImageSet):  # of a folder only the fit's
        measured += len(train.labels)
    if distiller_temperature(cfg) is not None:  # once more at the distiller's
        measured += count
    return 2 * measured


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
    kept = {"logits": torch.randn(1, count, num_classes)}
    if "pooled_feat" in features:  # a closed teacher has none
        kept["pooled_feat"] = torch.randn(1, count, features["pooled_feat"].shape[1])
    return CachedTeacher({name: values.to(loader.device) for name, values in kept.items()}, "")


class _Unasked(nn.Module):
    """In the place of a closed teacher: answers of its size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        brightness = image.mean((1, 2, 3))[:, None]
        return brightness * torch.arange(self.num_classes, device=image.device), {}


def random_teacher(cfg: CfgNode, data: LabelledImages) -> nn.Module:
    """The teacher of ``cfg`` with random weights; a stand-in for a closed one.

    Its batch normalisation has the statistics of noise, without which the numbers of a deep one
    explode.
    """
    if is_closed(cfg.DISTILLER.TEACHER):
        return _Unasked(data.num_classes)
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


def time_fit(cfg: CfgNode, data: LabelledImages, batch: int) -> float:
    """Seconds per pass of a fit, from one of a single round on a few images.

    ``batch`` images make a step: a GPU takes for a few as long as for many.
    """
    teacher = random_teacher(cfg, data)
    by_class = torch.argsort(data.labels, stable=True)
    part = data.select(by_class[: STEPS * batch])  # a fit wants several images of a class
    loader = make_loader(part, batch, cfg.BENCH.DEVICE, shuffle=True)

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

    return _quickest(fit) / fit_passes(len(part.labels), 1)


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
