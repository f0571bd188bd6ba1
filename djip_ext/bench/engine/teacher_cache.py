"""A teacher that answers from memory, having been asked once for every view of every image.

It is for huge, slow or paid teachers.  With ``BENCH.VIEWS K`` the loader takes K fixed
augmentations of each image in turn, the same for all seeds.  The teacher's logits (K x N x C) and
pooled features (K x N x D), float16, are computed once, kept in a file, and shared by every run
with the same teacher, lens and images, also by those that start together.  Each view is kept as
soon as it is answered, so that an interrupted asking goes on with the next one.  Methods that need
feature maps cannot use it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.engine.coded_teacher import CodedTeacher
from djip_ext.errors import DJIPError
from djip_ext.lens.io import is_recognisable, weight_hash
from djip_ext.utils.distributed import say
from djip_ext.utils.files import atomic_write, taking_turns
from djip_ext.utils.networks import autocast

ON_A_GPU = 500  # images that are asked at once there: a student's batch would leave it idle


class CachedTeacher(nn.Module):
    """Answers with what was kept for the images that :meth:`select` announced.

    The images themselves are not read.

    Args:
        kept: ``logits`` (K, N, C) and ``pooled_feat`` (K, N, D).
        djip_id: of the lens that the teacher had, for the run's record.
    """

    def __init__(self, kept: dict[str, Tensor], djip_id: str) -> None:
        super().__init__()
        self.kept = kept
        self.djip_id = djip_id
        self._batch: tuple[int, Tensor] | None = None

    def select(self, index: Tensor, epoch: int) -> None:
        """Announce the images (B,) of the coming batch."""
        self._batch = epoch % len(self.kept["logits"]), index

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        if self._batch is None or len(self._batch[1]) != len(image):
            raise DJIPError(
                "the teacher's kept logits were asked for images that were not announced; set "
                "BENCH.VIEWS 0 for this method"
            )
        view, index = self._batch
        answer = {name: values[view, index].float() for name, values in self.kept.items()}
        return answer.pop("logits"), _Kept(answer)


class _Kept(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise DJIPError(
            f"this method needs the teacher's {key}, but BENCH.VIEWS keeps logits and pooled "
            "features only; set BENCH.VIEWS 0"
        )


def answers_key(teacher: nn.Module, loader: DeviceLoader, precision: str) -> str:
    """Sixteen hex digits of all that the teacher's answers to the views of ``loader`` depend on.

    Raises:
        DJIPError: the teacher cannot be told from others.
    """
    data = loader.data
    plain = getattr(teacher, "djip_teacher", teacher)
    if not is_recognisable(plain):
        raise DJIPError(
            f"the teacher, a {type(plain).__name__}, has no weights that tell it from others, "
            "so that its answers cannot be kept; set BENCH.VIEWS 0, or make it a "
            "closed:FILE.py:NAME teacher with a name of its own"
        )
    asked = [
        weight_hash(teacher),
        getattr(teacher, "djip_id", "none"),
        hashlib.sha256(data.images.numpy().tobytes()).hexdigest(),
        loader.views,
        loader.padding,
        precision,
        data.mean,
        data.std,
    ]
    if answers := getattr(teacher, "answers", ""):  # without a black box the key is what it was
        asked.append(answers)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def cached_teacher(
    teacher: nn.Module, loader: DeviceLoader, folder: Path, precision: str
) -> CachedTeacher:
    """Ask ``teacher`` for all views of ``loader`` unless a file in ``folder`` has the answers.

    Raises:
        DJIPError: the file is damaged, the teacher gives NaN, the disk is full.
    """
    path = folder / f"{answers_key(teacher, loader, precision)}.safetensors"
    if not path.exists():
        with taking_turns(path.with_suffix(".lock"), "the teacher's answers"):
            if not path.exists():  # or the one before us has paid
                _ask(teacher, loader, path, precision)
    kept = {name: values.to(loader.device) for name, values in _read(path).items()}
    return CachedTeacher(kept, getattr(teacher, "djip_id", "none"))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises several types for damaged files
        raise DJIPError(f"{path} is damaged ({error}); delete it, it will be made again") from error


def _write(path: Path, answers: dict[str, Tensor]) -> None:
    content = save(answers)
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def _ask(teacher: nn.Module, loader: DeviceLoader, path: Path, precision: str) -> None:
    """Make the file at ``path`` from one file a view, of which an earlier try left some."""
    parts = [path.with_suffix(f".view-{view}.safetensors") for view in range(loader.views)]
    missing = [view for view, part in enumerate(parts) if not part.exists()]
    if missing:
        say(
            f"asking the teacher for {len(missing)} views of {loader.num_images} images, "
            f"{len(missing) * loader.num_images} queries; the answers are kept"
        )
    for view in tqdm(missing, desc="asking the teacher", unit="view", leave=False):
        _write(parts[view], _ask_view(teacher, loader, view, precision))
    views = [_read(part) for part in parts]
    _write(path, {name: torch.stack([view[name] for view in views]) for name in views[0]})
    for part in parts:
        part.unlink()


@torch.no_grad()
def _ask_view(
    teacher: nn.Module, loader: DeviceLoader, view: int, precision: str
) -> dict[str, Tensor]:
    """``logits`` (N, C) and ``pooled_feat`` (N, D) of a view, in the stored order of its images."""
    teacher.eval()
    rows: dict[str, list[Tensor]] = {"logits": []}
    size = loader.batch_size
    if loader.device.type == "cuda":
        size = max(size, ON_A_GPU)
    stored = torch.split(torch.arange(loader.num_images), size)
    for index, image in zip(stored, loader.view_batches(view, size), strict=True):
        if isinstance(teacher, CodedTeacher):
            teacher.select(index, view)
        with autocast(loader.device, precision):
            logits, features = teacher(image)
        rows["logits"].append(logits.half().cpu())
        if "pooled_feat" in features:  # a closed teacher has none
            rows.setdefault("pooled_feat", []).append(features["pooled_feat"].half().cpu())
    kept = {name: torch.cat(values).view(loader.num_images, -1) for name, values in rows.items()}
    if not all(bool(torch.isfinite(values).all()) for values in kept.values()):
        raise DJIPError(
            "the teacher's output holds NaN or infinity; check its checkpoint and its precision "
            "(float32 is safest)"
        )
    return kept
