"""The training loop: seeds, precision, one record line an epoch, resume to the same numbers."""

import csv
import json
import math
import pickle
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.engine.cfg import differing_settings
from djip_ext.bench.engine.solver import learning_rate, make_optimizer
from djip_ext.bench.engine.teacher_cache import CachedTeacher
from djip_ext.errors import DJIPError, first_line
from djip_ext.utils.files import atomic_write, write_csv, write_json
from djip_ext.utils.networks import autocast

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


@torch.no_grad()
def evaluate(
    network: nn.Module, loader: DeviceLoader, precision: str = "float32"
) -> dict[str, float]:
    """Cross entropy (nats), top-1 and top-5 accuracy (%) of ``network`` over ``loader``, in eval mode.

    ``network`` maps normalised images to logits or to ``(logits, ...)``.  Its mode is restored.
    """
    was_training = network.training
    network.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=loader.device)  # read once, at the end
    for image, target in loader:
        with autocast(image.device, precision):
            output = network(image)
        logits = (output[0] if isinstance(output, tuple) else output).float()
        hit = logits.topk(min(5, logits.shape[1])).indices == target[:, None]
        totals += torch.stack(
            [F.cross_entropy(logits, target, reduction="sum"), hit[:, 0].sum(), hit.sum()]
        )
    network.train(was_training)
    loss, top1, top5 = (totals / loader.num_images).tolist()
    return {"test_loss": loss, "test_acc": 100 * top1, "test_acc_top5": 100 * top5}


class BaseTrainer:
    """Trains a distiller as ``cfg.SOLVER`` says and leaves its record in ``folder``.

    ``folder`` then holds ``log.csv`` (a row an epoch), ``result.json`` (last and best epoch), ``student_last.pth`` and
    ``student_best.pth`` (``{"model": state_dict}``, mdistiller's layout), ``latest.pth`` (all that resuming needs) and
    TensorBoard events; where a method is pretrained (FT), ``pretrain.csv`` as well (its error an epoch).  The random state is
    set anew at every epoch from the seed, so that a run resumed after any interruption equals, bit for bit, one that was never
    interrupted.

    Raises:
        DJIPError: the folder holds another run, a checkpoint does not fit, the loss became NaN, the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        distiller: nn.Module,
        train_loader: DeviceLoader,
        test_loader: DeviceLoader,
        cfg: CfgNode,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.folder, self.distiller, self.cfg = Path(folder), distiller, cfg
        self.train_loader, self.test_loader = train_loader, test_loader
        self.record = record or {}
        self.optimizer = make_optimizer(distiller.get_learnable_parameters(), cfg)
        learning_rate(cfg, 1)  # says now what is wrong with the schedule
        self.history: list[dict[str, float]] = []
        self.pretraining: dict[str, Any] | None = None  # where a method's pretraining (FT) stands

    def train(self, resume: bool = False) -> dict[str, Any]:
        """Run the epochs that are left and return the result that ``result.json`` holds."""
        latest = self.folder / "latest.pth"
        if resume and latest.exists():
            self._load(latest)
            if (
                self.history
                and self.history[-1]["epoch"] >= self.cfg.SOLVER.EPOCHS
                and (self.folder / "result.json").exists()
            ):
                return json.loads(
                    (self.folder / "result.json").read_text()
                )  # finished: its record stays as it is
        elif latest.exists():
            raise DJIPError(
                f"{self.folder} already holds a run; continue it with --resume or choose another EXPERIMENT.NAME"
            )
        if not self.history and hasattr(self.distiller, "pretrain"):
            self._pretrain()
        with SummaryWriter(str(self.folder / "train.events")) as writer:
            for epoch in range(len(self.history) + 1, self.cfg.SOLVER.EPOCHS + 1):
                row = self.train_epoch(epoch)
                for key, value in row.items():
                    writer.add_scalar(key, value, epoch)
                self._save(row)
        return self._finish()

    def _pretrain(self) -> None:
        """What is left of the method's pretraining: one random stream, kept with every epoch."""
        device, state = self.train_loader.device, self.pretraining
        torch.manual_seed(self._epoch_seed(0))
        self.train_loader.epoch = len(state["errors"]) if state is not None else 0
        if state is not None:
            torch.set_rng_state(state["random"].cpu())
            if device.type == "cuda":
                torch.cuda.set_rng_state(state["random_cuda"].cpu(), device)

        def keep(progress: dict[str, Any]) -> None:
            self.pretraining = progress | {"random": torch.get_rng_state()}
            if device.type == "cuda":
                self.pretraining["random_cuda"] = torch.cuda.get_rng_state(device)
            write_csv(
                self.folder / "pretrain.csv",
                [
                    {"epoch": epoch, "error": error}
                    for epoch, error in enumerate(progress["errors"], 1)
                ],
            )
            self._save_latest()

        self.distiller.pretrain(self.train_loader, state, keep)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        cfg, started = self.cfg, time.perf_counter()
        torch.manual_seed(self._epoch_seed(epoch))
        self.train_loader.epoch = epoch
        lr = learning_rate(cfg, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.distiller.train()
        # Sums stay on the device: reading a number every step would stall a GPU.
        loss_sum = torch.zeros((), device=self.train_loader.device)
        hits = torch.zeros((), device=self.train_loader.device)
        bar = {
            "desc": f"epoch {epoch}/{cfg.SOLVER.EPOCHS}",
            "unit": " images",
            "unit_scale": self.train_loader.batch_size,
        }
        for batch in tqdm(self.train_loader, **bar, leave=False, mininterval=1.0):
            logits, loss = self.train_step(batch, epoch)
            loss_sum += loss.detach() * len(logits)
            hits += (logits.detach().argmax(1) == batch[1]).sum()
        count = self.train_loader.num_images
        train_loss, seconds = loss_sum.item() / count, time.perf_counter() - started
        if not math.isfinite(train_loss):
            raise DJIPError(
                f"the training loss is {train_loss} in epoch {epoch}; lower SOLVER.LR or the loss weights of {cfg.DISTILLER.TYPE}"
            )
        row = {
            "epoch": epoch,
            "lr": lr,
            "train_loss": train_loss,
            "train_acc": 100 * hits.item() / count,
        }
        if epoch % cfg.BENCH.EVAL_EVERY == 0 or epoch == cfg.SOLVER.EPOCHS:
            row |= evaluate(self.distiller.student, self.test_loader, cfg.BENCH.PRECISION)
        return row | {"seconds": seconds, "images_per_second": count / seconds}

    def _epoch_seed(self, epoch: int) -> int:
        return 1_000_003 * self.cfg.BENCH.SEED + epoch

    def distiller_input(self, batch: tuple[Tensor, ...], epoch: int) -> dict[str, Any]:
        """What the distiller's forward takes in a training step."""
        image, target, index = batch
        return {"image": image, "target": target, "index": index, "epoch": epoch}

    def train_step(self, batch: tuple[Tensor, ...], epoch: int) -> tuple[Tensor, Tensor]:
        teacher = getattr(self.distiller, "teacher", None)
        if isinstance(teacher, CachedTeacher):
            teacher.select(batch[2], epoch)
        with autocast(batch[0].device, self.cfg.BENCH.PRECISION):
            logits, losses = self.distiller(**self.distiller_input(batch, epoch))
        loss = sum(value.mean() for value in losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return logits, loss

    @property
    def best(self) -> dict[str, float]:
        """The row of the best evaluated epoch, the first one among equals."""
        return max(
            (row for row in self.history if "test_acc" in row), key=lambda row: row["test_acc"]
        )

    def _save(self, row: dict[str, float]) -> None:
        """Record one epoch.  ``latest.pth`` goes last: whatever is lost before it is simply done again."""
        self.history.append(row)
        student = {"model": self.distiller.student.state_dict()}
        if "test_acc" in row and row is self.best:
            atomic_write(self.folder / "student_best.pth", lambda path: torch.save(student, path))
        if row["epoch"] == self.cfg.SOLVER.EPOCHS:
            atomic_write(self.folder / "student_last.pth", lambda path: torch.save(student, path))
        atomic_write(self.folder / "log.csv", self._write_csv)
        self._save_latest()

    def _save_latest(self) -> None:
        state = {
            "history": self.history,
            "model": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "record": self.record,
            "pretraining": self.pretraining if not self.history else None,
        }
        atomic_write(self.folder / "latest.pth", lambda path: torch.save(state, path))

    def _load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            known = state["record"]  # by an older version perhaps, which kept less
            differing = [
                key
                for key, value in self.record.items()
                if key not in ("code", "environment", "config") and known.get(key, value) != value
            ]
            if "config" in self.record:
                differing += differing_settings(self.record["config"], known["config"])
            if differing:
                raise DJIPError(
                    f"{path} was written with another {', '.join(differing)}; resume with the same settings or choose another EXPERIMENT.NAME"
                )
            self.distiller.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.history, self.pretraining = state["history"], state.get("pretraining")
        except (
            RuntimeError,
            KeyError,
            EOFError,
            OSError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            if isinstance(error, DJIPError):
                raise
            raise DJIPError(
                f"{path} cannot be resumed ({first_line(error)}); delete the folder to start afresh"
            ) from error

    def _write_csv(self, path: Path) -> None:
        with open(path, "w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, restval="")
            table.writeheader()
            table.writerows(self.history)

    def _finish(self) -> dict[str, Any]:
        last, best = self.history[-1], self.best
        result = self.record | {
            "folder": str(self.folder),
            "epochs": last["epoch"],
            "last_acc": last["test_acc"],
            "best_acc": best["test_acc"],
            "best_epoch": best["epoch"],
            "train_acc": last["train_acc"],
            "seconds": sum(row["seconds"] for row in self.history),
        }
        write_json(self.folder / "result.json", result)
        return result


class CRDTrainer(BaseTrainer):
    """Gives every image its ``contrastive_index`` (B, 1 + K): a positive first, then K negatives of other classes.

    As in mdistiller, the positive is the image itself (``CRD.MODE`` "exact") or any of its class ("relax"), and the
    negatives of an image differ from one another while there are enough of them.  They are drawn on the device, from a
    generator of their own that is set anew at every epoch.
    """

    def train_epoch(self, epoch: int) -> dict[str, float]:
        crd = self.cfg.CRD
        if crd.MODE not in ("exact", "relax"):
            raise DJIPError(f"CRD.MODE is '{crd.MODE}'; choose exact or relax")
        device = self.train_loader.device
        self.labels = self.train_loader.data.labels.to(device)
        self.repeat = len(self.labels) - int(self.labels.bincount().max()) < crd.NCE.K
        self.generator = torch.Generator(device).manual_seed(
            self._epoch_seed(epoch) + 500_000
        )  # not the stream of the order
        return super().train_epoch(epoch)

    def distiller_input(self, batch: tuple[Tensor, ...], epoch: int) -> dict[str, Any]:
        _, target, index = batch
        same = (self.labels == target[:, None]).float()
        positive = (
            index[:, None]
            if self.cfg.CRD.MODE == "exact"
            else torch.multinomial(same, 1, generator=self.generator)
        )
        negative = torch.multinomial(
            1 - same, self.cfg.CRD.NCE.K, self.repeat, generator=self.generator
        )
        return super().distiller_input(batch, epoch) | {
            "contrastive_index": torch.cat([positive, negative], dim=1)
        }


trainer_dict: dict[str, type[BaseTrainer]] = {"base": BaseTrainer, "crd": CRDTrainer}
"""``SOLVER.TRAINER -> class``, by mdistiller's names."""
