"""Fitting a lens: alternate between class centres and tables until the teacher's CMI is where it should be."""

import copy
import dataclasses
import math
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from djip_ext.errors import DJIPError, first_line
from djip_ext.fit.objective import lens_objective
from djip_ext.fit.settings import FitSettings
from djip_ext.lens.io import settings_of, weight_hash
from djip_ext.lens.jpeg_lens import Q_MAX, JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.metrics.cmi import CMI
from djip_ext.metrics.measurement import Measurement, measure
from djip_ext.utils.batches import Batches, check_enough
from djip_ext.utils.closed_teacher import ClosedTeacher
from djip_ext.utils.distributed import by_first, in_step, mean_all, processes, rank, say, sum_all
from djip_ext.utils.files import atomic_write
from djip_ext.utils.networks import autocast, device_of, logits_of
from djip_ext.utils.precision import in_dtype_of

CHANGED = "the loader's second pass holds {} that its first did not; every pass must yield the same images, so fix its set before the fit"


@dataclass(frozen=True)
class FitResult:
    """A fitted lens and how it came about.

    Attributes:
        lens: the chosen round's lens, its ``metadata`` filled in.
        before, after: the teacher on the data of the fit, without and with the lens.
        history: one row a round: CMI, CE, accuracy *at its start*, lambda, the range of q.
        chosen: the round whose tables were taken.
        in_band: whether they meet both the target band and the accuracy floor.
    """

    lens: JPEGLens
    before: Measurement
    after: Measurement
    history: list[dict[str, float]]
    chosen: int
    in_band: bool


def fit_lens(
    teacher: nn.Module,
    loader: Iterable[Any],
    num_classes: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    lens: JPEGLens | None = None,
    settings: FitSettings | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    log: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
    gradients: bool = True,
    queries: int | None = None,
    **overrides: Any,
) -> FitResult:
    """Fit the 128 steps of a lens so that ``teacher`` shows more CMI at little cross entropy.

    Each round measures the teacher through the lens (class centres S_y, CMI, CE, accuracy), then takes one pass of
    mini-batch steps on the tables with the centres held fixed.  The teacher is not changed.

    In a process group all processes call this together, each with its share of the data (a ``DistributedSampler``, say): sums
    and gradients are those of all shares, the tables stay the same everywhere, and only the first process writes and logs.

    Args:
        teacher: any classifier; put in eval mode and frozen for the duration.
        loader: can be iterated again and again; batches begin with normalised images (B, 3, H, W) and labels (B,).
            Use training images without augmentation, in mixed order.  ``literal`` needs the images' indices third.
        num_classes: C.
        mean, std: the normalisation of the images, in units of [0, 1] pixels.
        lens: where to start; ``None``: the default start. It is not changed.
        settings, overrides: a :class:`FitSettings`, or its fields by keyword.
        checkpoint: a file kept up to date after every round; if it exists, the fit continues from it and ends with the
            same lens, bit for bit, as one never interrupted.
        log: called with each round's row, for TensorBoard and the like.
        progress: show a progress bar.
        gradients: ``False`` asks the teacher for answers only, so that it may be any callable, a
            :class:`~djip_ext.ClosedTeacher` say; see :mod:`djip_ext.fit.black_box`.
        queries: with ``gradients=False``, how many images may be sent to the teacher at most;
            ``None``: thirty passes over the images of ``loader``.

    Raises:
        DJIPError: NaN from the teacher, a wrong number of classes, a checkpoint of another fit, an empty loader, one whose set changes.
    """
    settings = dataclasses.replace(settings or FitSettings(), **overrides)
    if not gradients:
        from djip_ext.fit.black_box import fit_black_box

        return fit_black_box(
            teacher,
            loader,
            num_classes,
            mean=mean,
            std=std,
            lens=lens,
            settings=settings,
            queries=queries,
            checkpoint=checkpoint,
            log=log,
            progress=progress,
        )
    if any(isinstance(module, ClosedTeacher) for module in teacher.modules()):
        raise DJIPError(
            "a closed teacher has no gradient; fit its lens with gradients=False "
            "(djip fit --black-box)"
        )
    if queries is not None:
        raise DJIPError("queries is the budget of a fit with gradients=False; set rounds instead")
    if settings.variant == "literal" and processes() > 1:
        raise DJIPError(
            "the literal variant keeps predictions in the process that made them; use fresh with several processes"
        )
    lens = _starting_lens(lens)
    normalisation = Normalisation(mean, std)
    fit = _Fit(teacher, loader, num_classes, normalisation, lens, settings)
    with _frozen(teacher), _kept_random(loader):
        identity = {
            "settings": asdict(settings),
            "teacher_hash": weight_hash(teacher),
            "start": lens.q.detach().flatten().tolist(),
        }
        identity |= {
            "quantizer": settings_of(lens),
            "batch size": getattr(loader, "batch_size", None),
        }
        identity |= {
            "scale": [list(normalisation.mean), list(normalisation.std)],
            "number of classes": num_classes,
        }
        before = measure(
            teacher, fit.batches, num_classes, None, settings.temperature, settings.precision
        )
        if few := check_enough(before.cmi.counts):
            say(f"note: {few}")
        if checkpoint is not None and by_first(lambda: Path(checkpoint).exists()):
            fit.load(checkpoint, identity, before)
        else:
            fit.before = before
        left = range(len(fit.history), settings.rounds + 1)
        rounds = tqdm(
            left, desc="fitting the lens", disable=not progress or rank() > 0, unit="round"
        )
        for index in rounds:
            if fit.settled():
                break
            row = fit.round(index)
            rounds.set_postfix(
                CMI=f"{row['cmi']:.3f}", accuracy=f"{row['accuracy']:.1f}%", lam=f"{row['lam']:.2f}"
            )
            if log is not None and rank() == 0:
                log(row)
            if checkpoint is not None and rank() == 0:
                fit.save(checkpoint, identity)
    return fit.choose()


class _Fit:
    """The state of one fit: tables, optimizer, every round's row, and the best round so far."""

    def __init__(
        self,
        teacher: nn.Module,
        loader: Iterable[Any],
        num_classes: int,
        normalisation: Normalisation,
        lens: JPEGLens,
        settings: FitSettings,
    ) -> None:
        self.teacher, self.loader, self.num_classes = teacher, loader, num_classes
        self.batches = Batches(loader, num_classes, normalisation.mean, normalisation.std)
        self.normalisation, self.lens, self.settings = normalisation, lens, settings
        lens.to(device_of(teacher) or torch.device("cpu"))
        with torch.no_grad():
            lens.q.copy_(by_first(lambda: lens.q.detach().cpu()))
            if settings.tables == "one":
                lens.q.copy_(lens.q.log().mean(0).exp().expand_as(lens.q))
        # Steps span three decades, so they are fitted as ln q: a learning rate is a relative change.
        self.ln_q = lens.q.detach().log().requires_grad_()
        if settings.optimizer == "adam":
            self.optimizer: torch.optim.Optimizer = torch.optim.Adam([self.ln_q], lr=settings.lr)
        else:
            self.optimizer = torch.optim.SGD([self.ln_q], lr=settings.lr, momentum=0.9)
        self.before: Measurement
        self.centres: Tensor | None = None  # S_y that the steps are taken against
        self.history: list[dict[str, float]] = []
        self.best: _Best | None = None

    def look(self, image: Tensor) -> Tensor:
        return self.normalisation.through(self.lens, image)

    def round(self, index: int) -> dict[str, float]:
        """Measure the tables as they are; unless this was the last look, move them."""
        settings, started = self.settings, time.perf_counter()
        begin_round(self.loader, settings.seed, index)
        old: dict[int, Tensor] = {}
        keep = (
            (lambda i, ln_f: old.update(zip(i.tolist(), ln_f)))
            if settings.variant == "literal"
            else None
        )
        now = measure(
            self.teacher,
            self.batches,
            self.num_classes,
            self.look,
            settings.temperature,
            settings.precision,
            keep,
        )
        tables = self.lens.q.detach().cpu().clone()
        self.consider(index, tables, now)
        lam = float(self.price(torch.tensor(now.cmi.total, dtype=torch.float64)))
        if index < settings.rounds:
            if settings.variant == "fixed":
                self.centres = self.before.cmi.centres
            elif index % settings.refresh == 0:
                self.centres = now.cmi.centres
            lam = self.move(index, self.centres, now.cmi.counts, old, now.cmi.total)
        row = {
            "round": index,
            **now.summary(),
            "lam": lam,
            "q_low": tables.min().item(),
            "q_high": tables.max().item(),
        }
        self.history.append(row | {"seconds": time.perf_counter() - started})
        return self.history[-1]

    def settled(self) -> bool:
        """Whether the best round is one to keep and ``patience`` later ones were not better."""
        patience = self.settings.patience
        return bool(
            patience
            and self.best
            and self.best.fits
            and len(self.history) > self.best.index + patience
        )

    def move(
        self, index: int, centres: Tensor, counts: Tensor, old: dict[int, Tensor], cmi: float
    ) -> float:
        """One pass of steps on the tables at fixed centres; returns the mean lambda."""
        settings, spent, steps = self.settings, 0.0, 0
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * index / settings.rounds))
        centres, counts = centres.to(self.ln_q.device), counts.to(self.ln_q.device)
        now = torch.tensor(
            cmi, dtype=torch.float64, device=self.ln_q.device
        )  # stays there: reading a number every step would stall a GPU
        strangers = torch.zeros_like(now)  # images of a class that the measuring pass did not hold
        for batch in in_step(self.batches):
            if batch is not None:
                strangers += (counts[batch[1].to(counts.device)] == 0).sum()
            lam = self.price(now)
            grad_q, kl = self.gradient(batch, centres, counts, old, lam.float())
            # A running view of CMI between two passes; KL to stale centres is never below it.
            now += 0.1 * (kl - now)
            spent, steps = spent + lam, steps + 1
            self.step(grad_q)
        if float(sum_all(strangers)) > 0:  # ln |D_y| was infinite: the tables are NaN now
            raise DJIPError(CHANGED.format("classes"))
        return float(spent) / max(1, steps)

    def gradient(
        self, batch: Any, centres: Tensor, counts: Tensor, old: dict[int, Tensor], lam: Tensor
    ) -> tuple[Tensor, Tensor]:
        """dL/dq and KL(f || S_y), means over the batch in all processes; ``batch`` is ``None`` where the data have run out."""
        settings, q = self.settings, self.lens.q
        both, size = q.new_zeros(q.numel() + 1), 0
        if batch is not None:
            image, label, number = batch
            image, label = image.to(q.device), label.to(q.device)
            with autocast(image.device, settings.precision):
                seen = in_dtype_of(self.teacher, self.look(image))
                logits = logits_of(self.teacher(seen))
            try:
                ln_f_old = (
                    torch.stack([old[i] for i in number.tolist()])
                    if settings.variant == "literal"
                    else None
                )
            except KeyError as error:
                raise DJIPError(CHANGED.format("images")) from error
            loss, _, kl = lens_objective(
                logits,
                label,
                centres,
                counts,
                lam,
                settings.temperature,
                ln_f_old,
                settings.ce_weight,
            )
            both, size = (
                torch.cat([torch.autograd.grad(loss, q)[0].flatten(), kl[None].to(q.dtype)]),
                len(label),
            )
        both = mean_all(both, size)
        return both[:-1].view_as(q), both[-1]

    def step(self, grad_q: Tensor) -> None:
        if self.settings.tables == "one":  # equal gradients keep equal tables equal
            grad_q = grad_q.sum(0).expand_as(grad_q)
        self.ln_q.grad = grad_q * self.lens.q.detach()
        self.optimizer.step()
        with torch.no_grad():
            self.ln_q.clamp_(math.log(self.settings.q_min), math.log(Q_MAX))
            self.lens.q.copy_(self.ln_q.exp())

    def price(self, cmi: Tensor) -> Tensor:
        """lambda: fixed, or proportional to the CMI that is still to gain."""
        settings = self.settings
        if settings.lam is not None:
            return torch.full_like(cmi, settings.lam)
        target = sum(settings.cmi_gain) / 2
        missing = self.before.cmi.total + target - cmi
        return settings.lam_max * (missing / (0.25 * target)).clamp(-1, 1)

    def consider(self, index: int, tables: Tensor, now: Measurement) -> None:
        """Keep the cheapest round among those in the band and above the floor, else the nearest miss."""
        settings = self.settings
        low, high = settings.cmi_gain
        gain = now.cmi.total - self.before.cmi.total
        below = max(0.0, self.before.accuracy - settings.max_accuracy_drop - now.accuracy)
        outside = max(0.0, low - gain, gain - high)
        price = (now.ce - self.before.ce) / gain if gain > 0 else math.inf
        rank = (below, outside, price)
        if self.best is None or rank < self.best.rank:
            self.best = _Best(rank, index, tables, now)

    def choose(self) -> FitResult:
        best, lens = self.best, self.lens
        with torch.no_grad():
            lens.q.copy_(best.tables)
        lens.metadata = {
            "mean": list(self.normalisation.mean),
            "std": list(self.normalisation.std),
            "pixel_range": [0, 255],
            "num_classes": self.num_classes,
            "teacher": type(self.teacher).__name__,
            "teacher_hash": weight_hash(self.teacher),
            "before": self.before.summary(),
            "after": best.measured.summary(),
            "images": int(self.before.cmi.counts.sum()),
            "fit": asdict(self.settings) | {"chosen": best.index, "in_band": best.fits},
            "seconds": sum(row["seconds"] for row in self.history),
        }
        return FitResult(lens, self.before, best.measured, self.history, best.index, best.fits)

    def save(self, path: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        state = {
            "identity": identity,
            "ln_q": self.ln_q.detach(),
            "q": self.lens.q.detach(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "before": _pack(self.before),
            "centres": self.centres,
            "best": {
                "rank": self.best.rank,
                "index": self.best.index,
                "tables": self.best.tables,
                "measured": _pack(self.best.measured),
            },
        }
        atomic_write(path, lambda p: torch.save(state, p))

    def load(
        self, path: str | os.PathLike[str], identity: dict[str, Any], before: Measurement
    ) -> None:
        """Go on from ``path``; ``before`` is the plain teacher on the loader's images, which must be those of the checkpoint."""
        state = by_first(lambda: _read(path, identity))
        with torch.no_grad():
            self.ln_q.copy_(state["ln_q"])
            self.lens.q.copy_(state["q"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.before, self.centres = (
            state["history"],
            _unpack(state["before"]),
            state["centres"],
        )
        best = state["best"]
        self.best = _Best(
            tuple(best["rank"]), best["index"], best["tables"], _unpack(best["measured"])
        )
        (count, known), (ce, known_ce) = (
            (int(m.cmi.counts.sum()) for m in (before, self.before)),
            (before.ce, self.before.ce),
        )
        if count != known or abs(ce - known_ce) > 0.01 * max(
            1.0, known_ce
        ):  # the last digits depend on threads and device
            now, then = f"{count} images, cross entropy {ce:.3f}", f"{known}, {known_ce:.3f}"
            raise DJIPError(
                f"{path} was begun on other images ({now} now, {then} then); go on with the same set, or delete the file"
            )


def _read(path: str | os.PathLike[str], identity: dict[str, Any]) -> dict[str, Any]:
    """The state in a checkpoint of the fit that ``identity`` describes, on the CPU."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = state["identity"]
        if (
            known.keys() != identity.keys()
            or known["settings"].keys() != identity["settings"].keys()
        ):
            raise DJIPError(
                f"{path} was begun by another version of djip_ext; finish that fit with it, or delete the file"
            )
        differing = [key for key, value in identity.items() if known[key] != value]
        if differing:
            raise DJIPError(
                f"{path} belongs to a fit with another {', '.join(differing)}; delete it or name another checkpoint"
            )
        missing = {"ln_q", "q", "optimizer", "history", "before", "centres", "best"} - state.keys()
        if missing:
            raise KeyError(*missing)
        return state
    except (RuntimeError, KeyError, TypeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise DJIPError(
            f"{path} is not a checkpoint of a fit ({first_line(error)}); delete it to start afresh"
        ) from error


@dataclass(frozen=True)
class _Best:
    rank: tuple[float, ...]
    index: int
    tables: Tensor
    measured: Measurement

    @property
    def fits(self) -> bool:
        """Whether it meets both the accuracy floor and the band."""
        return self.rank[:2] == (0.0, 0.0)


def _pack(measurement: Measurement) -> dict[str, Any]:
    return {
        "cmi": dict(vars(measurement.cmi)),
        "ce": measurement.ce,
        "accuracy": measurement.accuracy,
    }


def _unpack(state: dict[str, Any]) -> Measurement:
    cmi = {
        key: value.cpu() if isinstance(value, Tensor) else value
        for key, value in state["cmi"].items()
    }
    return Measurement(CMI(**cmi), state["ce"], state["accuracy"])


def default_start() -> JPEGLens:
    """Equal steps of 8 with alpha = 5 / q^2: soft enough for a quiet gradient at any step (see docs/defaults.md)."""
    return JPEGLens(q=8.0, kappa=5.0)


def _starting_lens(lens: JPEGLens | None) -> JPEGLens:
    """A copy to work on; its teacher-specific metadata are dropped."""
    lens = default_start() if lens is None else copy.deepcopy(lens)
    if lens.hard:
        raise DJIPError(
            "a hard lens has no gradient; fit it soft (hard=False) and set lens.hard = True afterwards"
        )
    lens.metadata = {}
    return lens.unfreeze()


def begin_round(loader: Iterable[Any], seed: int, index: int) -> None:
    """Make the order in which ``loader`` is read a function of (seed, round), whatever happened before."""
    number = 1_000_003 * seed + index
    torch.manual_seed(number)
    for generator in _generators(loader):
        generator.manual_seed(number)
    if hasattr(loader, "epoch"):
        loader.epoch = index
    if hasattr(sampler := getattr(loader, "sampler", None), "set_epoch"):
        sampler.set_epoch(index)  # torch's DistributedSampler, whose order is its own


def _generators(loader: Iterable[Any]) -> list[torch.Generator]:
    """The generators of its own that a DataLoader draws its order from."""
    found = (
        getattr(part, "generator", None) for part in (loader, getattr(loader, "sampler", None))
    )
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def _kept_random(loader: Iterable[Any]) -> Iterator[None]:
    """The random state of the caller and of ``loader`` afterwards as before."""
    states, epoch = (
        [(g, g.get_state()) for g in _generators(loader)],
        getattr(loader, "epoch", None),
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)
            if epoch is not None:
                loader.epoch = epoch


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Eval mode and no weight gradients inside; modes and flags as before afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    network.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
