"""Fitting a lens: class centres and tables in turn, until the teacher's CMI is in its band."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from djip_ext.errors import DJIPError
from djip_ext.fit.checkpoint import (
    BestRound,
    FitState,
    ImageSums,
    check_recognisable,
    check_same_images,
    read_checkpoint,
    write_checkpoint,
)
from djip_ext.fit.objective import lens_objective
from djip_ext.fit.result import FitResult
from djip_ext.fit.sampling import CHANGED, begin_round, kept_random_state
from djip_ext.fit.settings import FitSettings
from djip_ext.fit.start import default_start, starting_lens
from djip_ext.inputs.batches import Batches, check_enough, to_indices
from djip_ext.inputs.closed_teacher import only_answers
from djip_ext.lens.io import settings_of, weight_hash
from djip_ext.lens.jpeg_lens import Q_MAX, JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.lens.straight_through import StraightThroughLens
from djip_ext.metrics.measurement import Measurement, measure
from djip_ext.utils.distributed import by_first, in_step, mean_all, processes, rank, say, sum_all
from djip_ext.utils.networks import autocast, device_of, frozen, logits_of
from djip_ext.utils.precision import in_dtype_of

__all__ = ["FitResult", "default_start", "fit_lens"]


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

    Each round measures the teacher through the lens (class centres S_y, CMI, CE, accuracy), then
    takes one pass of mini-batch steps on the tables with the centres held fixed.  The teacher is
    not changed.

    In a process group all processes call this together, each with its share of the data (a
    ``DistributedSampler``, say): sums and gradients are those of all shares, the tables stay the
    same everywhere, and only the first process writes and logs.

    Args:
        teacher: any classifier; put in eval mode and frozen for the duration.
        loader: can be iterated again and again; batches begin with normalised images (B, 3, H, W)
            and labels (B,).  Use training images without augmentation, in mixed order.
            ``literal`` needs the images' indices third, integers, each image's own.
        num_classes: C.
        mean, std: the normalisation of the images, in units of [0, 1] pixels.
        lens: where to start; ``None``: the default start. It is not changed.
        settings, overrides: a :class:`FitSettings`, or its fields by keyword.
        checkpoint: a file kept up to date after every round; if it exists, the fit continues from
            it and ends with the same lens, bit for bit, as one never interrupted.
        log: called with each round's row, for TensorBoard and the like.
        progress: show a progress bar.
        gradients: ``False`` asks the teacher for answers only, so that it may be any callable, a
            :class:`~djip_ext.ClosedTeacher` say; see :mod:`djip_ext.fit.black_box`.
        queries: with ``gradients=False``, how many images may be sent to the teacher at most;
            ``None``: thirty passes over the images of ``loader``.

    Raises:
        DJIPError: NaN from the teacher, a wrong number of classes, a checkpoint of another fit or
            of a teacher without weights, an empty loader, one whose set changes.
    """
    settings = dataclasses.replace(settings or FitSettings(), **overrides)
    num_classes = int(num_classes)  # the lens's metadata become JSON, which takes no NumPy
    if isinstance(teacher, nn.Module) and any("djip_lens" in m._modules for m in teacher.modules()):
        raise DJIPError("this teacher has a lens already; fit one for the plain teacher")
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
    _check_gradient_fit(teacher, settings, queries)
    if checkpoint is not None:
        check_recognisable(teacher)
    lens = starting_lens(lens)
    normalisation = Normalisation(mean, std)
    batches = Batches(loader, num_classes, normalisation.mean, normalisation.std)
    with frozen(teacher), kept_random_state(loader):
        before, images = _plain(teacher, batches, num_classes, settings)
        fit = _Fit(
            teacher, loader, batches, num_classes, normalisation, lens, settings, before, images
        )
        identity = fit.identity()
        if checkpoint is not None and by_first(Path(checkpoint).exists):
            fit.resume(checkpoint, identity)
        for row in fit.rounds(progress):
            if log is not None and rank() == 0:
                log(row)
            if checkpoint is not None and rank() == 0:
                write_checkpoint(checkpoint, identity, fit.state())
    return fit.choose()


def _plain(
    teacher: nn.Module, batches: Batches, num_classes: int, settings: FitSettings
) -> tuple[Measurement, Tensor]:
    """``teacher`` without a lens, and the sums by which its images are known again."""
    # A resumed fit must see here what the interrupted one saw, whatever was drawn before.
    begin_round(batches.loader, settings.seed, 0)
    images = ImageSums()
    before = measure(
        teacher, batches, num_classes, images, settings.temperature, settings.precision
    )
    if few := check_enough(before.cmi.counts):
        say(f"note: {few}")
    return before, images.total()


def _check_gradient_fit(teacher: nn.Module, settings: FitSettings, queries: int | None) -> None:
    """Raise DJIPError for what a fit by gradients cannot do."""
    if settings.rounds and only_answers(teacher):
        raise DJIPError(
            "a closed teacher has no gradient; fit its lens with gradients=False "
            "(djip fit --black-box)"
        )
    if queries is not None:
        raise DJIPError("queries is the budget of a fit with gradients=False; set rounds instead")
    if settings.variant == "literal" and processes() > 1:
        raise DJIPError(
            "the literal variant keeps predictions in the process that made them; use fresh with "
            "several processes"
        )


@dataclass(frozen=True)
class _Held:
    """What a pass of steps on the tables holds fixed.

    Attributes:
        centres: S_y, (C, C).
        counts: |D_y|, (C,).
        ln_f: log probabilities (C,) of the last pass by the image's index, for ``literal``.
    """

    centres: Tensor
    counts: Tensor
    ln_f: dict[int, Tensor]


class _Fit:
    """The state of one fit: tables, optimizer, every round's row, and the best round so far."""

    def __init__(
        self,
        teacher: nn.Module,
        loader: Iterable[Any],
        batches: Batches,
        num_classes: int,
        normalisation: Normalisation,
        lens: JPEGLens,
        settings: FitSettings,
        before: Measurement,
        images: Tensor,
    ) -> None:
        self.teacher = teacher
        self.loader = loader
        self.batches = batches
        self.num_classes = num_classes
        self.normalisation = normalisation
        self.lens = lens
        self.settings = settings
        self.before = before
        self.images = images
        straight = settings.gradient == "straight-through"
        self.stepped = StraightThroughLens(lens) if straight else lens  # what the steps go through
        lens.to(device_of(teacher) or torch.device("cpu"))
        with torch.no_grad():
            lens.q.copy_(by_first(lambda: lens.q.detach().cpu()))
            if settings.tables == "one":
                one = lens.q.log().mean(0).exp().clamp_(max=Q_MAX)
                lens.q.copy_(one.expand_as(lens.q))
        # Steps span three decades, so they are fitted as ln q: a learning rate then is a relative
        # change.
        self.ln_q = lens.q.detach().log().requires_grad_()
        self.optimizer = torch.optim.Adam([self.ln_q], lr=settings.lr)
        self.centres: Tensor | None = None  # S_y that the steps are taken against
        self.history: list[dict[str, float]] = []
        self.best: BestRound | None = None

    def apply_lens(self, image: Tensor) -> Tensor:
        """What the teacher sees of normalised images (B, 3, H, W)."""
        return self.normalisation.through(self.lens, image)

    def round(self, index: int) -> dict[str, float]:
        """Measure the tables as they are; unless this is the last round, move them."""
        settings = self.settings
        started = time.perf_counter()
        begin_round(self.loader, settings.seed, index)
        ln_f: dict[int, Tensor] = {}

        def keep(image_index: Tensor, values: Tensor) -> None:
            ln_f.update(zip(to_indices(image_index, len(values)).tolist(), values, strict=True))

        now = measure(
            self.teacher,
            self.batches,
            self.num_classes,
            self.apply_lens,
            settings.temperature,
            settings.precision,
            keep if settings.variant == "literal" else None,
        )
        images = int(now.cmi.counts.sum())
        if settings.variant == "literal" and len(ln_f) != images:
            raise DJIPError(
                f"the {images} images of a pass have {len(ln_f)} different indices; for the "
                "literal variant give each image its own index third, or use variant='fresh'"
            )
        tables = self.lens.q.detach().cpu().clone()
        self.consider(index, tables, now)
        cmi = now.cmi.total
        lam = float(self.lagrange_multiplier(torch.tensor(cmi, dtype=torch.float64)))
        if index < settings.rounds:
            lam = self.move(index, _Held(self.refreshed(index, now), now.cmi.counts, ln_f), cmi)
        row = {
            "round": index,
            **now.summary(),
            "lam": lam,
            "q_low": tables.min().item(),
            "q_high": tables.max().item(),
            "seconds": time.perf_counter() - started,
        }
        self.history.append(row)
        return row

    def refreshed(self, index: int, now: Measurement) -> Tensor:
        """The centres that the steps of this round are taken against."""
        if self.settings.variant == "fixed":
            self.centres = self.before.cmi.centres
        elif self.centres is None or index % self.settings.refresh == 0:
            self.centres = now.cmi.centres
        return self.centres

    def rounds(self, progress: bool) -> Iterator[dict[str, float]]:
        """Run the rounds that are left, under a progress bar; yield the row of each."""
        left = range(len(self.history), self.settings.rounds + 1)
        hidden = not progress or rank() > 0
        bar = tqdm(left, desc="fitting the lens", disable=hidden, unit="round")
        for index in bar:
            if self.settled():
                return
            row = self.round(index)
            bar.set_postfix(
                CMI=f"{row['cmi']:.3f}", accuracy=f"{row['accuracy']:.1f}%", lam=f"{row['lam']:.2f}"
            )
            yield row

    def settled(self) -> bool:
        """Whether the best round is one to keep and ``patience`` later ones were not better."""
        patience = self.settings.patience
        if not patience or self.best is None or not self.best.fits:
            return False
        return len(self.history) > self.best.index + patience

    def move(self, index: int, held: _Held, cmi: float) -> float:
        """Take one pass of steps on the tables from a measured ``cmi``; returns the mean lambda."""
        settings = self.settings
        device = self.ln_q.device
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * index / settings.rounds))
        held = _Held(held.centres.to(device), held.counts.to(device), held.ln_f)
        # These stay on the device: reading a number every step would synchronise with it.
        now = torch.tensor(cmi, dtype=torch.float64, device=device)
        spent = torch.zeros_like(now)
        unseen = torch.zeros_like(now)  # images of a class that the measuring pass did not hold
        steps = 0
        for batch in in_step(self.batches):
            if batch is not None:
                unseen += (held.counts[batch[1].to(device)] == 0).sum()
            lam = self.lagrange_multiplier(now)
            grad_q, kl = self.gradient(batch, held, lam.float())
            # A running estimate of CMI between two passes; KL to stale centres is never below it.
            now += 0.1 * (kl - now)
            spent += lam
            steps += 1
            self.step(grad_q)
        if float(sum_all(unseen)) > 0:  # ln |D_y| was infinite: the tables are NaN now
            raise DJIPError(CHANGED.format("classes"))
        return float(spent) / max(1, steps)

    def gradient(self, batch: Any, held: _Held, lam: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dq and KL(f || S_y), means over the batch in all processes.

        ``batch`` is ``None`` where the data have run out.
        """
        q = self.lens.q
        if batch is None:
            both = q.new_zeros(q.numel() + 1)
            size = 0
        else:
            grad_q, kl = self.batch_gradient(batch, held, lam)
            both = torch.cat([grad_q.flatten(), kl[None].to(q.dtype)])
            size = len(batch[1])
        both = mean_all(both, size)
        return both[:-1].view_as(q), both[-1]

    def batch_gradient(self, batch: Any, held: _Held, lam: Tensor) -> tuple[Tensor, Tensor]:
        """dL/dq and KL(f || S_y), means over this process's ``batch``."""
        settings = self.settings
        q = self.lens.q
        image, label, image_index = batch
        image = image.to(q.device)
        label = label.to(q.device)
        with autocast(image.device, settings.precision):
            seen = in_dtype_of(self.teacher, self.normalisation.through(self.stepped, image))
            logits = logits_of(self.teacher(seen))
        ln_f_old = None
        if settings.variant == "literal":
            try:
                indices = to_indices(image_index, len(label)).tolist()
                ln_f_old = torch.stack([held.ln_f[i] for i in indices])
            except KeyError as error:
                raise DJIPError(CHANGED.format("images")) from error
        loss, _, kl = lens_objective(
            logits,
            label,
            held.centres,
            held.counts,
            lam,
            settings.temperature,
            ln_f_old,
            settings.ce_weight,
        )
        (grad_q,) = torch.autograd.grad(loss, q)
        return grad_q, kl

    def step(self, grad_q: Tensor) -> None:
        """Move the tables against dL/dq and keep them within their range."""
        if self.settings.tables == "one":  # equal gradients keep equal tables equal
            grad_q = grad_q.sum(0).expand_as(grad_q)
        self.ln_q.grad = grad_q * self.lens.q.detach()
        self.optimizer.step()
        with torch.no_grad():
            self.ln_q.clamp_(math.log(self.settings.q_min), math.log(Q_MAX))
            # exp(ln 255) exceeds 255 by a last digit, and a lens is read from its file without it.
            self.lens.q.copy_(self.ln_q.exp().clamp_(max=Q_MAX))

    def lagrange_multiplier(self, cmi: Tensor) -> Tensor:
        """lambda: fixed, or proportional to the CMI that is still to gain; of a shield -lam_max."""
        settings = self.settings
        if settings.lam is not None:
            return torch.full_like(cmi, settings.lam)
        if settings.goal == "shield":
            return torch.full_like(cmi, -settings.lam_max)
        target = sum(settings.cmi_gain) / 2
        missing = self.before.cmi.total + target - cmi
        return settings.lam_max * (missing / (0.25 * target)).clamp(-1, 1)

    def consider(self, index: int, tables: Tensor, now: Measurement) -> None:
        """Keep the cheapest round among those in the band and above the floor.

        Where there is none yet, keep the nearest miss.  Of a shield, keep the round of the lowest
        CMI among those above the floor.
        """
        settings = self.settings
        low, high = settings.cmi_gain
        gain = now.cmi.total - self.before.cmi.total
        below = max(0.0, self.before.accuracy - settings.max_accuracy_drop - now.accuracy)
        outside = max(0.0, low - gain, gain - high)
        price = (now.ce - self.before.ce) / gain if gain > 0 else math.inf
        if settings.goal == "shield":
            outside, price = 0.0, now.cmi.total
        this = BestRound((below, outside, price), index, tables, now)
        if self.best is None or this.rank < self.best.rank:
            self.best = this

    def choose(self) -> FitResult:
        """Put the best round's tables into the lens and describe them in its ``metadata``."""
        best = self.best
        assert best is not None  # a fit measures at least its start
        lens = self.lens
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

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with for this fit to go on from it."""
        return {
            "settings": asdict(self.settings),
            "teacher_hash": weight_hash(self.teacher),
            "start": self.lens.q.detach().flatten().tolist(),
            "quantizer": settings_of(self.lens),
            "batch size": getattr(self.loader, "batch_size", None),
            "scale": [list(self.normalisation.mean), list(self.normalisation.std)],
            "number of classes": self.num_classes,
        }

    def state(self) -> FitState:
        """All that changes, for a checkpoint after a round."""
        assert self.best is not None
        return FitState(
            ln_q=self.ln_q.detach(),
            q=self.lens.q.detach(),
            optimizer=self.optimizer.state_dict(),
            history=self.history,
            before=self.before,
            centres=self.centres,
            best=self.best,
            images=self.images,
        )

    def resume(self, path: str | os.PathLike[str], identity: dict[str, Any]) -> None:
        """Go on from the checkpoint at ``path``.

        Raises:
            DJIPError: it is damaged, or of another fit, or was begun on other images.
        """
        state = by_first(lambda: read_checkpoint(path, identity))
        check_same_images(path, self.before, self.images, state)
        with torch.no_grad():
            self.ln_q.copy_(state.ln_q)
            self.lens.q.copy_(state.q)
        self.optimizer.load_state_dict(state.optimizer)
        self.history = state.history
        self.before = state.before
        self.centres = state.centres
        self.best = state.best
