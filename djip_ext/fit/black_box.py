r"""Fitting a lens to a teacher that only answers: a search over a few numbers.

The teacher's gradient is not needed, since the frontier of CMI against cross entropy hardly depends
on which tables are used.  So the tables are q = q_0 exp(F theta) with few theta, in two stages:

1. *Factor*: one number, the common factor of all steps, until the gain in CMI meets g*, the middle
   of its band.  ln(gain) is nearly linear in ln(factor), so that a bracketed secant takes three to
   five passes.
2. *Shape*: level, slope and bend along the frequency v + u, for luma and for chroma, six numbers.
   Minimised is the cross entropy at equal CMI.  Along a factor the cross entropy paid grows as
   g^1.4 (measured), so that with (g_1, CE_1) of stage 1, lambda = dCE / dg = 1.4 CE_1 / g_1, and

       CE + lambda (g* - g) + lambda (g - g*)^2 / (high - low)

   whose last term keeps the search where that line holds.  Points of accuracy below the floor are
   added, each as 0.02 nats of CMI.

Stage 2 is COBYQA (Ragonneau and Zhang, 2024), SciPy's model-based trust-region method.  On a fixed
set of images the objective is nearly smooth and without noise, which a quadratic model uses and an
evolution strategy (pycma, nevergrad) does not: those spend tens of passes on their first
generations.  It is deterministic as well, so that a resumed search is the same search.
"""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from djip_ext.errors import DJIPError
from djip_ext.fit.checkpoint import (
    check_recognisable,
    not_a_checkpoint,
    pack_measurement,
    plain_numbers,
    unpack_measurement,
)
from djip_ext.fit.result import FitResult
from djip_ext.fit.sampling import CHANGED, begin_round, kept_random_state
from djip_ext.fit.settings import FitSettings
from djip_ext.fit.start import default_start
from djip_ext.inputs.batches import Batches, check_enough
from djip_ext.inputs.closed_teacher import ClosedTeacher
from djip_ext.lens.io import weight_hash
from djip_ext.lens.jpeg_lens import Q_MAX, JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.metrics.measurement import Measurement, measure
from djip_ext.ops.dct import BLOCK
from djip_ext.utils.distributed import processes, say
from djip_ext.utils.files import atomic_write
from djip_ext.utils.networks import frozen

PASSES = 30  # over the images, when no budget is given
NEAR = 0.15  # how far from g* stage 1 may end, in widths of the band
LONGEST_STEP = 1.5  # of ln(factor) in stage 1
RADIUS = 0.5  # first trust region of stage 2, as a change of ln q
LEAST_GAIN = 1e-4  # nats; below it ln(gain) is noise
CLOSEST = 0.02  # of two factors, as a difference of logarithms: nothing lies between them
POWER = 1.4  # d ln(cross entropy paid) / d ln(gain), 1.3 to 1.4 for WRN-16-2 on CIFAR-100
POINT = 0.02  # nats of CMI that a point of accuracy below the floor is worth
# settings that a search reads; the others are of the descent by gradients
READ = (
    "cmi_gain",
    "max_accuracy_drop",
    "tables",
    "temperature",
    "q_min",
    "precision",
    "seed",
)


class _Point(NamedTuple):
    """What one common factor does: ln(factor), gain in CMI, cross entropy paid, the whole row."""

    x: float
    gain: float
    ce: float
    row: dict[str, float]


class _Spent(Exception):
    """The budget does not hold another pass."""


def fit_black_box(
    teacher: nn.Module | Callable[[Tensor], Any],
    loader: Iterable[Any],
    num_classes: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    lens: JPEGLens | None,
    settings: FitSettings,
    queries: int | None,
    checkpoint: str | os.PathLike[str] | None,
    log: Callable[[dict[str, float]], None] | None,
    progress: bool,
) -> FitResult:
    """What :func:`djip_ext.fit_lens` does with ``gradients=False``; it describes the arguments.

    Of ``settings`` it uses those in :data:`READ`, which alone are part of a checkpoint's identity.
    Nor is ``queries``: a search may be continued with a larger budget, and is then the one that had
    that budget from the start.

    Raises:
        DJIPError: as :func:`djip_ext.fit_lens`; a budget below two passes, or below what the
            checkpoint holds; several processes; SciPy without COBYQA.
    """
    if settings.goal == "shield":
        raise DJIPError(
            "a shield is fitted by gradients, and who wants one has the model; leave out "
            "gradients=False (--black-box)"
        )
    if processes() > 1:
        raise DJIPError("a fit without gradients asks from one process; start it without torchrun")
    if not isinstance(teacher, nn.Module):
        teacher = ClosedTeacher(teacher, num_classes)
    if checkpoint is not None:
        check_recognisable(teacher)
    start = default_start() if lens is None else lens
    with frozen(teacher), kept_random_state(loader), torch.no_grad():
        begin_round(loader, settings.seed, 0)
        batches = Batches(loader, num_classes, mean, std)
        images, digest, counts = _count(batches, num_classes)
        if few := check_enough(counts):
            say(f"note: {few}")
        budget = PASSES * images if queries is None else queries
        if budget < 2 * images:
            raise DJIPError(
                f"the budget is {budget} queries, and one pass over the images takes {images}; "
                f"allow at least {2 * images}, or take fewer images"
            )
        search = _Search(
            teacher, batches, images, num_classes, Normalisation(mean, std), start, settings
        )
        identity = {
            "method": "black box",
            "settings": {name: getattr(settings, name) for name in READ},
            "teacher_hash": weight_hash(teacher),
            "start": search.start.flatten().tolist(),
            "quantizer": start.settings(),
            "scale": [list(search.normalisation.mean), list(search.normalisation.std)],
            "images": digest,
        }
        if checkpoint is not None and Path(checkpoint).exists():
            search.known = _read(checkpoint, identity)
            asked = len(search.known["rows"]) * images
            if asked > budget:
                raise DJIPError(
                    f"{checkpoint} holds {asked} queries already, and the budget is {budget}; "
                    f"allow at least {asked}, or delete the file to start afresh"
                )
        search.budget = budget
        bar = tqdm(
            total=budget, desc="asking the teacher", unit="query", disable=not progress, leave=True
        )

        def after_pass(row: dict[str, float]) -> None:
            bar.update(images)
            bar.set_postfix(CMI=f"{row['cmi']:.3f}", accuracy=f"{row['accuracy']:.1f}%")
            if len(search.rows) <= len(search.known.get("rows", ())):
                return  # an earlier run wrote and logged this one
            if log is not None and row["round"] >= 0:
                log(row)
            if checkpoint is not None:
                state = {"identity": plain_numbers(identity), **search.state()}
                atomic_write(checkpoint, lambda path: torch.save(state, path))

        search.after_pass = after_pass
        with bar:
            search.run()
    return search.result()


class _Search:
    """The state of a search: what was asked so far, and the best tables among it.

    Attributes:
        rows: one row per pass, the first one (round -1) without a lens.
        known: the state of an earlier run, whose answers are taken instead of asking again.
    """

    def __init__(
        self,
        teacher: nn.Module,
        batches: Batches,
        images: int,
        num_classes: int,
        normalisation: Normalisation,
        lens: JPEGLens,
        settings: FitSettings,
    ) -> None:
        self.teacher = teacher
        self.batches = batches
        self.images = images
        self.num_classes = num_classes
        self.normalisation = normalisation
        self.settings = settings
        self.codec = lens.settings()
        self.start = lens.q.detach().cpu().float()
        if settings.tables == "one":
            self.start = self.start.log().mean(0).exp().expand_as(self.start)
        self.target = sum(settings.cmi_gain) / 2
        self.rate = 0.0  # lambda, known after stage 1
        self.rows: list[dict[str, float]] = []
        self.tables: list[Tensor] = []
        self.known: dict[str, Any] = {}
        self.budget = 0
        self.minimise = _cobyqa()
        self.after_pass: Callable[[dict[str, float]], None] = lambda row: None
        self.before: Measurement
        self.best: tuple[tuple[float, ...], int, Measurement | None] | None = None

    def run(self) -> None:
        """Ask until the budget does not hold another pass, or the search has converged."""
        self.ask(None)
        try:
            found = self.find_factor()
            if found is not None:
                self.find_shape(found)
        except _Spent:
            pass

    def ask(self, ln_q: Tensor | None) -> dict[str, float]:
        """The row of the tables exp(``ln_q``), or of no lens: one pass over the images."""
        settings, index = self.settings, len(self.rows)
        if (index + 1) * self.images > self.budget:
            raise _Spent
        q = self.start if ln_q is None else ln_q.exp().clamp(settings.q_min, Q_MAX).float()
        if index < len(self.known.get("rows", ())):
            row: dict[str, float] = self.known["rows"][index]
            if not torch.equal(self.known["tables"][index], q):
                raise DJIPError(
                    "the checkpoint holds another search than this version of SciPy would make; "
                    "go on with the version that began it, or delete the file"
                )
            # None where later tables were better: those were kept instead.
            kept = self.known["kept"].get(index)
            now = None if kept is None else unpack_measurement(kept)
        else:
            row, now = self.measure(index, None if ln_q is None else q)
        if ln_q is None:
            assert now is not None
            self.before = now
        self.rows.append(row)
        self.tables.append(q)
        if ln_q is not None:
            rank = self.rank(row)
            if self.best is None or rank < self.best[0]:
                self.best = rank, index, now
        self.after_pass(row)
        return row

    def measure(self, index: int, q: Tensor | None) -> tuple[dict[str, float], Measurement]:
        settings, started, view = self.settings, time.perf_counter(), None
        begin_round(self.batches.loader, settings.seed, 0)
        if q is not None:
            lens = JPEGLens(q, **self.codec).freeze()

            def view(image: Tensor) -> Tensor:
                return self.normalisation.through(lens.to(image.device), image)

        now = measure(
            self.teacher,
            self.batches,
            self.num_classes,
            view,
            settings.temperature,
            settings.precision,
        )
        if int(now.cmi.counts.sum()) != self.images:
            raise DJIPError(CHANGED.format("other images"))
        row = {
            "round": index - 1,
            **now.summary(),
            "lam": self.rate,
            "q_low": float(1 if q is None else q.min()),
            "q_high": float(1 if q is None else q.max()),
            "queries": (index + 1) * self.images,
            "seconds": time.perf_counter() - started,
        }
        return row, now

    def rank(self, row: dict[str, float]) -> tuple[float, ...]:
        """Less is better: accuracy floor first, then the band, then the cost."""
        low, high = self.settings.cmi_gain
        gain = row["cmi"] - self.rows[0]["cmi"]
        return self.below(row), max(0.0, low - gain, gain - high), self.cost(row)

    def below(self, row: dict[str, float]) -> float:
        """By how many percentage points the accuracy lies below its floor."""
        floor = self.rows[0]["accuracy"] - self.settings.max_accuracy_drop
        return max(0.0, floor - row["accuracy"])

    def cost(self, row: dict[str, float]) -> float:
        """The objective of stage 2; in stage 1, which knows no lambda yet, the distance from g*."""
        low, high = self.settings.cmi_gain
        away = row["cmi"] - self.rows[0]["cmi"] - self.target
        if not self.rate:
            return abs(away)
        paid = row["ce"] - self.rows[0]["ce"] - self.rate * away
        width = max(high - low, 0.1 * high)
        return paid + self.rate * (away**2 / width + POINT * self.below(row))

    def find_factor(self) -> Tensor | None:
        """Stage 1: ln q of tables whose gain is near g*; ``None`` when no factor reaches it.

        Where these tables lie below the accuracy floor, a smaller factor that meets the floor is
        taken instead, within the band if one does.
        """
        low, high = self.settings.cmi_gain
        ln_start = self.start.log()
        smallest = math.log(self.settings.q_min) - float(ln_start.max())
        largest = math.log(Q_MAX) - float(ln_start.min())
        asked: list[_Point] = []
        x = min(max(0.0, smallest), largest)
        while True:
            asked.append(self.point(x, ln_start))
            under = max((p for p in asked if p.gain < self.target), default=None)
            over = min((p for p in asked if p.gain >= self.target), default=None)
            if abs(asked[-1].gain - self.target) <= NEAR * (high - low) and len(asked) > 1:
                break
            if under is not None and over is not None and abs(over.x - under.x) < CLOSEST:
                break
            x = min(max(_next(asked, under, over, self.target), smallest), largest)
            if any(abs(x - point.x) < 1e-6 for point in asked):
                return None  # at an end of the range, and g* lies beyond it
        found = min(asked, key=lambda p: abs(p.gain - self.target))
        self.rate = max(1e-6, POWER * found.ce / found.gain)
        while self.below(found.row) and found.gain > low:
            met = max((p for p in asked if not self.below(p.row) and p.x < found.x), default=None)
            if met is None or found.x - met.x < CLOSEST:
                break
            # Half a point above the floor, on the line through the two.
            wanted = self.below(found.row) + 0.5
            lost = met.row["accuracy"] - found.row["accuracy"]
            share = min(max(wanted / lost, 0.1), 0.9)
            found = self.point(found.x + share * (met.x - found.x), ln_start)
            asked.append(found)
        if self.best is not None:  # ranked anew, now that lambda is known
            _, index, now = self.best
            self.best = self.rank(self.rows[index]), index, now
        return ln_start + found.x

    def point(self, x: float, ln_start: Tensor) -> _Point:
        """Ask for the tables exp(``ln_start`` + x)."""
        row = self.ask(ln_start + x)
        plain = self.rows[0]
        return _Point(x, row["cmi"] - plain["cmi"], row["ce"] - plain["ce"], row)

    def find_shape(self, ln_q: Tensor) -> None:
        """Stage 2, from ``ln_q``."""
        shapes = _shapes(self.settings.tables)

        def cost(theta: Any) -> float:
            step = torch.as_tensor(theta, dtype=torch.float64)
            return self.cost(self.ask(ln_q.double() + torch.einsum("k,kcvu->cvu", step, shapes)))

        left = self.budget // self.images - len(self.rows)
        if left > 0:
            self.minimise(cost, [0.0] * len(shapes), left)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: all rows, and the full statistics of those that may still be needed."""
        kept = {0: pack_measurement(self.before)}
        if self.best is not None and self.best[2] is not None:
            kept[self.best[1]] = pack_measurement(self.best[2])
        return {"rows": self.rows, "tables": self.tables, "kept": kept}

    def result(self) -> FitResult:
        assert self.best is not None
        rank, index, after = self.best
        assert after is not None
        lens = JPEGLens(self.tables[index], **self.codec)
        in_band = rank[:2] == (0.0, 0.0)
        known = isinstance(self.teacher, ClosedTeacher)
        lens.metadata = {
            "mean": list(self.normalisation.mean),
            "std": list(self.normalisation.std),
            "pixel_range": [0, 255],
            "num_classes": self.num_classes,
            "teacher": self.teacher.name if known else type(self.teacher).__name__,
            "teacher_hash": weight_hash(self.teacher),
            "before": self.before.summary(),
            "after": after.summary(),
            "images": self.images,
            "fit": asdict(self.settings)
            | {"gradients": False, "chosen": index - 1, "in_band": in_band},
            "queries": len(self.rows) * self.images,
            "seconds": sum(row["seconds"] for row in self.rows),
        }
        return FitResult(lens, self.before, after, self.rows[1:], index - 1, in_band)


def _next(asked: list[_Point], under: _Point | None, over: _Point | None, target: float) -> float:
    """The ln(factor) to ask next: where ln(gain) meets ln(``target``) on a line.

    Between two points that enclose the target the line goes through them, and the answer keeps a
    tenth of their distance from both; otherwise through the last two points.  The first line of all
    has slope 2, as the error of a quantizer grows with the square of its steps.
    """
    goal = math.log(target)
    if under is not None and over is not None:
        weight = (goal - _ln(under.gain)) / (_ln(over.gain) - _ln(under.gain))
        return under.x + min(max(weight, 0.1), 0.9) * (over.x - under.x)
    last = asked[-1]
    slope = 2.0
    if len(asked) > 1:
        earlier = asked[-2]
        slope = max(0.5, (_ln(last.gain) - _ln(earlier.gain)) / (last.x - earlier.x))
    step = (goal - _ln(last.gain)) / slope
    return last.x + min(max(step, -LONGEST_STEP), LONGEST_STEP)


def _ln(gain: float) -> float:
    return math.log(max(gain, LEAST_GAIN))


def _shapes(tables: str) -> Tensor:
    """The changes of ln q that stage 2 tries, float64 (K, 2, 8, 8): level, slope and bend.

    They depend on v + u alone and are orthonormal under the mean over the 64 entries of a table,
    so that one trust region fits all.
    """
    frequency = torch.arange(BLOCK, dtype=torch.float64)
    radius = (frequency[:, None] + frequency).flatten() / (BLOCK - 1) - 1
    powers = torch.stack([radius**power for power in range(3)], dim=1)
    basis = torch.linalg.qr(powers).Q * BLOCK
    curves: Tensor = (basis * basis[-1].sign()).T.reshape(3, BLOCK, BLOCK)
    if tables == "one":
        return curves[:, None].expand(-1, 2, -1, -1)
    shapes = torch.zeros(6, 2, BLOCK, BLOCK, dtype=torch.float64)
    shapes[:3, 0] = curves
    shapes[3:, 1] = curves
    return shapes


def _cobyqa() -> Callable[[Callable[[Any], float], list[float], int], Any]:
    """``minimise(cost, start, evaluations)``."""
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise DJIPError(
            "a fit without gradients needs SciPy 1.14: pip install 'djip_ext[blackbox]'"
        ) from error

    def minimise(cost: Callable[[Any], float], start: list[float], evaluations: int) -> Any:
        # An attempt below its number of interpolation points would be stretched to them: the budget
        # is kept by the cost itself, which raises.
        options = {
            "maxfev": max(evaluations, 2 * len(start) + 2),
            "initial_tr_radius": RADIUS,
            "final_tr_radius": 1e-3,
        }
        return minimize(cost, start, method="COBYQA", options=options)

    return minimise


def _count(batches: Batches, num_classes: int) -> tuple[int, str, Tensor]:
    """How many images a pass holds, a digest of them, and the images of each class (C,).

    Nothing is asked.
    """
    counts = torch.zeros(num_classes, dtype=torch.int64)
    digest, images = hashlib.sha256(), 0
    for image, label, _ in batches:
        counts += torch.bincount(label.cpu().clamp(0, num_classes - 1), minlength=num_classes)
        images += len(label)
        pixels = image.detach().cpu().contiguous().flatten().view(torch.uint8)  # of any dtype
        digest.update(pixels.numpy().tobytes())
        digest.update(label.detach().cpu().long().numpy().tobytes())
    if images == 0:
        raise DJIPError("the loader is empty; a fit needs images")
    return images, digest.hexdigest()[:16], counts


def _read(path: str | os.PathLike[str], identity: dict[str, Any]) -> dict[str, Any]:
    """The state in a checkpoint of the search that ``identity`` describes."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = state["identity"]
        known = known | {"settings": _that_are_read(known["settings"])}
        differing = [key for key, value in identity.items() if known.get(key) != value]
        missing = {"rows", "tables", "kept"} - state.keys()
    except (
        AttributeError,
        RuntimeError,
        KeyError,
        TypeError,
        EOFError,
        OSError,
        pickle.UnpicklingError,
    ) as error:
        raise not_a_checkpoint(path, error) from error
    if missing or differing:
        raise DJIPError(
            f"{path} belongs to a fit with another {', '.join(differing) or 'version'}; "
            "delete it or name another checkpoint"
        )
    return state


def _that_are_read(settings: dict[str, Any]) -> dict[str, Any]:
    """Those in :data:`READ`, of which older versions kept the band as it was given."""
    known = {name: settings[name] for name in READ}
    return known | {"cmi_gain": tuple(known["cmi_gain"])}
