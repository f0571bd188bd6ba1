"""A teacher that answers from memory, having been asked once for every view of every image.

It is for huge, slow or paid teachers.  With ``BENCH.VIEWS K`` the loader takes K fixed
augmentations of each image in turn, the same for all seeds.  The teacher's logits (K x N x C) and
pooled features (K x N x D), float16, are computed once, kept in a file, and shared by every run
with the same teacher, lens and images, also by those that start together.  Methods that need
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
from djip_ext.lens.io import weight_hash
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
    """Sixteen hex digits of all that the teacher's answers to the views of ``loader`` depend on."""
    data = loader.data
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
                answers = save(_ask(teacher, loader, precision))

                def write(temporary: Path) -> None:
                    temporary.write_bytes(answers)

                atomic_write(path, write)
    try:
        kept = load_file(path)
        on_device = {name: values.to(loader.device) for name, values in kept.items()}
        return CachedTeacher(on_device, getattr(teacher, "djip_id", "none"))
    except Exception as error:  # safetensors raises several types for damaged files
        raise DJIPError(f"{path} is damaged ({error}); delete it, it will be made again") from error


@torch.no_grad()
def _ask(teacher: nn.Module, loader: DeviceLoader, precision: str) -> dict[str, Tensor]:
    teacher.eval()
    rows: dict[str, list[Tensor]] = {"logits": []}
    say(
        f"asking the teacher for {loader.views} views of {loader.num_images} images, "
        f"{loader.views * loader.num_images} queries; the answers are kept"
    )
    size = loader.batch_size
    if loader.device.type == "cuda":
        size = max(size, ON_A_GPU)
    for view in tqdm(range(loader.views), desc="asking the teacher", unit="view", leave=False):
        stored = torch.split(torch.arange(loader.num_images), size)
        for index, image in zip(stored, loader.view_batches(view, size), strict=True):
            if isinstance(teacher, CodedTeacher):
                teacher.select(index, view)
            with autocast(loader.device, precision):
                logits, features = teacher(image)
            rows["logits"].append(logits.half().cpu())
            if "pooled_feat" in features:  # a closed teacher has none
                rows.setdefault("pooled_feat", []).append(features["pooled_feat"].half().cpu())
    kept = {
        name: torch.cat(values).view(loader.views, loader.num_images, -1)
        for name, values in rows.items()
    }
    if not all(bool(torch.isfinite(values).all()) for values in kept.values()):
        raise DJIPError(
            "the teacher's output holds NaN or infinity; check its checkpoint and its precision "
            "(float32 is safest)"
        )
    return kept
