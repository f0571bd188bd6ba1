"""The training loop: seeds, precision, one row of the log per epoch, resume to the same numbers."""

import csv
import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from djip_ext.bench.dataset.protocols import Loader
from djip_ext.bench.distillers import Training
from djip_ext.bench.engine.captured_step import CapturedStep, Step
from djip_ext.bench.engine.cfg import differing_settings
from djip_ext.bench.engine.solver import learning_rate, make_optimizer
from djip_ext.bench.engine.teacher_cache import CachedTeacher
from djip_ext.bench.engine.utils import (
    adjust_learning_rate,
    evaluate,
    load_checkpoint,
    save_checkpoint,
)
from djip_ext.errors import DJIPError, first_line
from djip_ext.utils.files import atomic_write, write_csv, write_json
from djip_ext.utils.networks import autocast

__all__ = ["BaseTrainer", "CRDTrainer", "evaluate", "trainer_dict"]

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_acc",
    "test_loss",
    "test_acc",
    "test_acc_top5",
    "seconds",
    "images_per_second",
)


class BaseTrainer:
    """Trains a distiller as ``cfg.SOLVER`` says and leaves its record in ``folder``.

    ``folder`` then holds ``log.csv`` (a row per epoch), ``result.json`` (last and best epoch),
    ``student_last.pth`` and ``student_best.pth`` (``{"model": state_dict}``, mdistiller's layout),
    ``latest.pth`` (all that resuming needs) and TensorBoard events; where a method is pretrained
    (FT), ``pretrain.csv`` as well (a row per epoch).  The random state is set from the seed at
    every epoch, so that a run resumed after any interruption equals, bit for bit, one that was
    never interrupted.

    Args:
        experiment_name: the folder of the run under ``LOG.PREFIX``.
        distiller: the method with its networks, on its device; ``DataParallel`` around it, as
            mdistiller's script puts there, is taken off.
        train_loader: batches ``(image, target, index)``.
        test_loader: batches ``(image, target)``.
        cfg: the whole configuration.
        record: what ``result.json`` repeats of the run, and what a resumed run must agree with.

    Raises:
        DJIPError: the folder holds another run, a checkpoint does not fit, the loss became NaN,
            the disk is full.
    """

    def __init__(
        self,
        experiment_name: str | Path,
        distiller: nn.Module,
        train_loader: Loader,
        test_loader: Loader,
        cfg: CfgNode,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(cfg.LOG.PREFIX, experiment_name)
        bare: Any = getattr(distiller, "module", distiller)
        self.distiller: Training = bare
        self.cfg = cfg
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.record = record or {}
        self.optimizer = make_optimizer(self.distiller.get_learnable_parameters(), cfg)
        learning_rate(cfg, 1)  # says now what is wrong with the schedule
        self.history: list[dict[str, float]] = []
        self.pretraining: dict[str, Any] | None = None  # where a method's pretraining (FT) stands
        self.captured: CapturedStep | None = None
        if cfg.BENCH.CUDA_GRAPH and train_loader.device.type == "cuda":
            self.captured = CapturedStep(self.train_step, self.distiller, cfg.SOLVER.BATCH_SIZE)

    def train(self, resume: bool = False) -> dict[str, Any]:
        """Run the epochs that are left and return the result that ``result.json`` holds."""
        latest = self.folder / "latest.pth"
        if latest.exists() and not resume:
            raise DJIPError(
                f"{self.folder} already holds a run; continue it with --resume or choose another "
                "EXPERIMENT.NAME"
            )
        if latest.exists():
            self._load(latest)
            finished = self._finished_result()
            if finished is not None:
                return finished
        if not self.history and hasattr(self.distiller, "pretrain"):
            self._pretrain()
        with SummaryWriter(str(self.folder / "train.events")) as writer:
            for epoch in range(len(self.history) + 1, self.cfg.SOLVER.EPOCHS + 1):
                row = self.train_epoch(epoch)
                for key, value in row.items():
                    writer.add_scalar(key, value, epoch)
                self._save(row)
        return self._finish()

    def _finished_result(self) -> dict[str, Any] | None:
        """The record of a run that is complete, as it was written; None while an epoch is left."""
        path = self.folder / "result.json"
        if not self.history or self.history[-1]["epoch"] < self.cfg.SOLVER.EPOCHS:
            return None
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def _pretrain(self) -> None:
        """Run what is left of the method's pretraining: one random stream, saved at every epoch."""
        device = self.train_loader.device
        state = self.pretraining
        torch.manual_seed(self._epoch_seed(0))
        self.train_loader.epoch = 0
        if state is not None:
            self.train_loader.epoch = len(state["errors"])
            torch.set_rng_state(state["random"].cpu())
            if device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"].cpu(), device)

        def keep(progress: dict[str, Any]) -> None:
            self.pretraining = progress | {"random": torch.get_rng_state()}
            if device.type == "cuda":
                self.pretraining["random_cuda"] = torch.cuda.get_rng_state(device)
            errors = enumerate(progress["errors"], start=1)
            rows = [{"epoch": epoch, "error": error} for epoch, error in errors]
            write_csv(self.folder / "pretrain.csv", rows)
            self._save_latest()

        self.distiller.pretrain(self.train_loader, state, keep)  # type: ignore[operator]

    @property
    def step(self) -> Step:
        """:meth:`train_step`, or its recording with ``BENCH.CUDA_GRAPH``."""
        return self.captured or self.train_step

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch, counted from 1, and return its row of the log."""
        cfg = self.cfg
        started = time.perf_counter()
        self.train_loader.epoch = epoch
        torch.manual_seed(self._epoch_seed(epoch))
        if hasattr(self.distiller, "begin_epoch"):  # a host's distiller has none
            self.distiller.begin_epoch(self.train_loader, epoch, cfg.BENCH.PRECISION)
        torch.manual_seed(self._epoch_seed(epoch))
        self.train_loader.epoch = epoch
        lr = adjust_learning_rate(epoch, cfg, self.optimizer)
        self.distiller.train()
        # Sums stay on the device: reading a number every step would stall a GPU.
        loss_sum = torch.zeros((), device=self.train_loader.device)
        hits = torch.zeros((), device=self.train_loader.device)
        batches = tqdm(
            self.train_loader,
            desc=f"epoch {epoch}/{cfg.SOLVER.EPOCHS}",
            unit=" images",
            unit_scale=self.train_loader.batch_size,
            leave=False,
            mininterval=1.0,
        )
        for batch in batches:
            logits, loss = self.step(batch, epoch)
            loss_sum += loss.detach() * len(logits)
            hits += (logits.detach().argmax(1) == batch[1]).sum()
        count = self.train_loader.num_images
        train_loss = loss_sum.item() / count
        seconds = time.perf_counter() - started
        if not math.isfinite(train_loss):
            raise DJIPError(
                f"the training loss is {train_loss} in epoch {epoch}; lower SOLVER.LR or the loss "
                f"weights of {cfg.DISTILLER.TYPE}"
            )
        row = {
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            "train_acc": 100 * hits.item() / count,
        }
        if epoch % cfg.BENCH.EVAL_EVERY == 0 or epoch == cfg.SOLVER.EPOCHS:
            # a host's distiller has a student alone
            evaluated = getattr(self.distiller, "evaluated", self.distiller.student)
            row |= evaluate(evaluated, self.test_loader, cfg.BENCH.PRECISION)
        return row | {"seconds": seconds, "images_per_second": count / seconds}

    def _epoch_seed(self, epoch: int) -> int:
        seed: int = self.cfg.BENCH.SEED
        return 1_000_003 * seed + epoch

    def distiller_input(self, batch: tuple[Tensor, ...], epoch: int) -> dict[str, Any]:
        """What the distiller's forward takes in a training step."""
        image, target, index = batch
        return {"image": image, "target": target, "index": index, "epoch": epoch}

    def train_step(self, batch: tuple[Tensor, ...], epoch: int) -> tuple[Tensor, Tensor]:
        """Take one step of the optimiser; returns the student's logits (B, C) and the loss."""
        teacher = getattr(self.distiller, "teacher", None)
        if isinstance(teacher, CachedTeacher):
            teacher.select(batch[2], epoch)
        with autocast(batch[0].device, self.cfg.BENCH.PRECISION):
            logits, losses = self.distiller(**self.distiller_input(batch, epoch))
        loss = sum(value.mean() for value in losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if hasattr(self.distiller, "end_step"):
            self.distiller.end_step()
        return logits, loss

    @property
    def best(self) -> dict[str, float]:
        """The row of the best evaluated epoch, the first one among equals."""
        evaluated = (row for row in self.history if "test_acc" in row)
        return max(evaluated, key=lambda row: row["test_acc"])

    def _save(self, row: dict[str, float]) -> None:
        """Record one epoch.

        ``latest.pth`` is written last: whatever is lost before it is done again.
        """
        self.history.append(row)
        student = {"model": self.distiller.student.state_dict()}
        if "test_acc" in row and row is self.best:
            save_checkpoint(student, self.folder / "student_best.pth")
        if row["epoch"] == self.cfg.SOLVER.EPOCHS:
            save_checkpoint(student, self.folder / "student_last.pth")
        atomic_write(self.folder / "log.csv", self._write_log)
        self._save_latest()

    def _save_latest(self) -> None:
        state = {
            "history": self.history,
            "model": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "record": self.record,
            "pretraining": self.pretraining if not self.history else None,
        }
        save_checkpoint(state, self.folder / "latest.pth")

    def _load(self, path: Path) -> None:
        try:
            state = load_checkpoint(path)
            self._check_record(path, state["record"])
            self.distiller.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history = state["history"]
            self.pretraining = state.get("pretraining")
        except DJIPError:
            raise
        except (
            RuntimeError,
            KeyError,
            EOFError,
            OSError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            raise DJIPError(
                f"{path} cannot be resumed ({first_line(error)}); delete the folder to start anew"
            ) from error

    def _check_record(self, path: Path, known: dict[str, Any]) -> None:
        """Refuse to go on with ``path``, whose record is ``known``, when it is of another run.

        An older version may have recorded less: what is missing counts as equal.
        """
        differing = [
            key
            for key, value in self.record.items()
            if key not in ("code", "environment", "config") and known.get(key, value) != value
        ]
        if "config" in self.record:
            differing += differing_settings(self.record["config"], known["config"])
        if differing:
            raise DJIPError(
                f"{path} was written with another {', '.join(differing)}; resume with the same "
                "settings or choose another EXPERIMENT.NAME"
            )

    def _write_log(self, path: Path) -> None:
        with open(path, "w", newline="") as file:
            rows = csv.DictWriter(file, COLUMNS, restval="")
            rows.writeheader()
            rows.writerows(self.history)

    def _finish(self) -> dict[str, Any]:
        last = self.history[-1]
        best = self.best
        result = self.record | {
            "folder": str(self.folder),
            "epochs": last["epoch"],
            "last_acc": last["test_acc"],
            "best_acc": best["test_acc"],
            "best_epoch": best["epoch"],
            "train_acc": last["train_acc"],
            "seconds": sum(row["seconds"] for row in self.history),
        }
        if hasattr(self.distiller, "end_training"):
            result |= self.distiller.end_training(self.folder, self._accuracy)
        write_json(self.folder / "result.json", result)
        return result

    def _accuracy(self, network: nn.Module) -> float:
        """Top-1 accuracy (%) of ``network`` on the test images."""
        return evaluate(network, self.test_loader, self.cfg.BENCH.PRECISION)["test_acc"]


class CRDTrainer(BaseTrainer):
    """Gives every image its ``contrastive_index`` (B, 1 + K): a positive first, then K negatives.

    As in mdistiller, the positive is the image itself (``CRD.MODE`` "exact") or any of its class
    ("relax"); negatives are of other classes, and those of an image differ from one another while
    there are enough of them.  They are drawn on the device, from a generator of their own that is
    seeded anew at every epoch.
    """

    def train_epoch(self, epoch: int) -> dict[str, float]:
        crd = self.cfg.CRD
        if crd.MODE not in ("exact", "relax"):
            raise DJIPError(f"CRD.MODE is '{crd.MODE}'; choose exact or relax")
        device = self.train_loader.device
        self.labels = self.train_loader.data.labels.to(device)
        fewest = len(self.labels) - int(self.labels.bincount().max())
        self.repeat = fewest < crd.NCE.K  # fewer candidates than negatives
        self.generator = torch.Generator(device)
        self.generator.manual_seed(self._epoch_seed(epoch) + 500_000)  # not the stream of the order
        return super().train_epoch(epoch)

    def distiller_input(self, batch: tuple[Tensor, ...], epoch: int) -> dict[str, Any]:
        _, target, index = batch
        crd = self.cfg.CRD
        same = (self.labels == target[:, None]).float()
        if crd.MODE == "exact":
            positive = index[:, None]
        else:
            positive = torch.multinomial(same, 1, generator=self.generator)
        negative = torch.multinomial(1 - same, crd.NCE.K, self.repeat, generator=self.generator)
        contrastive = torch.cat([positive, negative], dim=1)
        return super().distiller_input(batch, epoch) | {"contrastive_index": contrastive}


trainer_dict: dict[str, type[BaseTrainer]] = {"base": BaseTrainer, "crd": CRDTrainer}
"""``SOLVER.TRAINER -> class``, by mdistiller's names; its DOT trainers are not part of this."""
