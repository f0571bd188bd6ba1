"""CKD: a teacher that sees each image as JPEG codes it, at a quality of the image's own.

Coded Knowledge Distillation (Pattern Recognition 2025, 110966).  Per view of each training image
there are 22 candidates: JPEG quality 0 (which libjpeg takes for 1), 5, .., 100, 4:4:4 with the
standard tables, and the original x.  Of those that the teacher classifies correctly the one with
the largest

    KL(f(x~_q) || f(x))

is taken, f at T = 1; where none is correct, the original.  The choice is made once, for 22 passes
of the teacher per view and image, and kept as indices.  The student sees x, the teacher x~_q.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.errors import DJIPError
from djip_ext.lens.initial_tables import standard_jpeg
from djip_ext.lens.normalisation import Normalisation
from djip_ext.ops.dct import (
    BLOCK,
    RGB_TO_YCBCR,
    YCBCR_TO_RGB,
    block_dct,
    block_idct,
    mix_channels,
    pad_to_blocks,
)
from djip_ext.ops.quantizer import hard_quantize
from djip_ext.utils.distributed import say
from djip_ext.utils.files import atomic_write, taking_turns
from djip_ext.utils.networks import autocast, logits_of

QUALITIES = tuple(range(0, 101, 5))
"""The candidates' JPEG qualities; candidate ``len(QUALITIES)``, the last, is the original."""

ORIGINAL = len(QUALITIES)
CANDIDATES = len(QUALITIES) + 1
MAX_INDEX = 1023  # of a coefficient in a baseline JPEG file


def standard_tables() -> Tensor:
    """The quantization tables (21, 2, 8, 8) of :data:`QUALITIES`."""
    return torch.stack([standard_jpeg(max(1, quality)) for quality in QUALITIES])


def coded(pixels: Tensor, tables: Tensor) -> Tensor:
    """Images as JPEG files with tables of their own show them.

    It is what the hard lens does, and the rounding of Y, Cb and Cr to 8 bits before and after,
    which a file has and a lens has not.

    Shape:
        pixels: float ``(B, 3, H, W)`` in [0, 255]; tables ``(B, 2, 8, 8)``; output: ``(B, 3, H,
        W)``, whole numbers in [0, 255].
    """
    height, width = pixels.shape[2:]
    shift = pixels.new_tensor([128.0, 0.0, 0.0])[:, None, None]  # of Y; Cb and Cr lie around 0
    ycbcr = mix_channels(pad_to_blocks(pixels.float()), RGB_TO_YCBCR).round() - shift
    z = block_dct(ycbcr)
    rows = z.shape[2] // BLOCK
    columns = z.shape[3] // BLOCK
    steps = tables.to(z)[:, [0, 1, 1]].repeat(1, 1, rows, columns)
    seen = block_idct(hard_quantize(z, steps, MAX_INDEX)).round().clamp(-128, 127) + shift
    return mix_channels(seen, YCBCR_TO_RGB).round().clamp(0, 255)[:, :, :height, :width]


def choose(logits: Tensor, labels: Tensor) -> Tensor:
    """The candidate of every image, the first among equals.

    Shape:
        logits: ``(K, B, C)``, the teacher's; the last candidate is the original; labels ``(B,)``;
        output: ``(B,)`` in [0, K).
    """
    ln_f = torch.log_softmax(logits.double(), dim=2)
    divergence = (ln_f.exp() * (ln_f - ln_f[-1])).sum(2)
    correct = logits.argmax(2) == labels
    best = divergence.masked_fill(~correct, -torch.inf).argmax(0)
    original = torch.full_like(best, len(logits) - 1)
    return torch.where(correct.any(0), best, original)


class CodedTeacher(nn.Module):
    """``teacher``, to which each announced image is shown as its choice codes it.

    Any lens of the teacher comes after the coding.

    Args:
        teacher: maps normalised images to ``(logits, Features)``.
        choice: uint8 (views, N), indices of candidates.
        normalisation: of the images.
    """

    def __init__(self, teacher: nn.Module, choice: Tensor, normalisation: Normalisation) -> None:
        super().__init__()
        self.teacher = teacher
        self.choice = choice
        self.normalisation = normalisation
        self.tables = standard_tables()
        self._batch: Tensor | None = None

    @property
    def answers(self) -> str:
        """What the teacher inside lets out, "" where that is everything."""
        return str(getattr(self.teacher, "answers", ""))

    @property
    def djip_id(self) -> str:
        """The lens of the teacher, and eight hex digits of the choice."""
        digest = hashlib.sha256(self.choice.numpy().tobytes()).hexdigest()[:8]
        return f"{getattr(self.teacher, 'djip_id', 'none')}-ckd-{digest}"

    def select(self, index: Tensor, view: int) -> None:
        """Announce the images (B,) of the coming batch."""
        self._batch = self.choice[view, index]

    def apply_coding(self, image: Tensor) -> Tensor:
        """What the teacher is shown of the announced images: normalised, (B, 3, H, W)."""
        assert self._batch is not None  # select() comes first
        changed = self._batch < ORIGINAL
        if not changed.any():  # the choice lies on the CPU: this waits for no device
            return image
        tables = self.tables[self._batch[changed].long()].to(image.device)
        changed = changed.to(image.device)
        seen = image.clone()
        pixels = self.normalisation.to_pixels(image[changed])
        seen[changed] = self.normalisation.to_network(coded(pixels, tables)).to(image.dtype)
        return seen

    def forward(self, image: Tensor) -> Any:
        return self.teacher(self.apply_coding(image))


def coded_teacher(
    teacher: nn.Module, loader: DeviceLoader, path: Path, precision: str
) -> CodedTeacher:
    """``teacher`` behind the choice at ``path``, which is made or completed when need be.

    It is written after every view, so that an interrupted choice goes on where it was.

    Raises:
        DJIPError: the file is damaged, the teacher gives NaN, the disk is full.
    """
    with taking_turns(path.with_suffix(".lock"), "the choice of qualities"):
        choice = _whole_choice(teacher, loader, path, precision)
    return CodedTeacher(teacher, choice, Normalisation(loader.data.mean, loader.data.std))


def _whole_choice(teacher: nn.Module, loader: DeviceLoader, path: Path, precision: str) -> Tensor:
    """The choice (views, N) at ``path``, with what it lacked."""
    choice = _kept(path, loader)
    if len(choice) < loader.views:
        passes = CANDIDATES * (loader.views - len(choice)) * loader.num_images
        say(
            f"CKD asks the teacher for {CANDIDATES} candidates of each view and image, "
            f"{passes} queries; the choice is kept"
        )
    views = range(len(choice), loader.views)
    for view in tqdm(views, desc="choosing qualities", unit="view", leave=False):
        chosen = _choose_view(teacher, loader, view, precision)
        choice = torch.cat([choice, chosen[None]])
        content = save({"choice": choice})

        def write(temporary: Path, content: bytes = content) -> None:
            temporary.write_bytes(content)

        atomic_write(path, write)
    return choice


def _kept(path: Path, loader: DeviceLoader) -> Tensor:
    """The views that are chosen already, uint8 (views so far, N)."""
    if not path.exists():
        return torch.empty(0, loader.num_images, dtype=torch.uint8)
    try:
        return load_file(path)["choice"]
    except Exception as error:  # safetensors raises several types for damaged files
        raise DJIPError(f"{path} is damaged ({error}); delete it, it will be made again") from error


@torch.no_grad()
def _choose_view(teacher: nn.Module, loader: DeviceLoader, view: int, precision: str) -> Tensor:
    """The choice (N,) for the images of a view in their stored order."""
    teacher.eval()
    normalisation = Normalisation(loader.data.mean, loader.data.std)
    tables = standard_tables().to(loader.device)
    chosen = []
    parts = torch.split(loader.data.labels, loader.batch_size)
    for image, label in zip(loader.view_batches(view, loader.batch_size), parts, strict=True):
        pixels = normalisation.to_pixels(image)
        rows = []
        for number in range(CANDIDATES):
            shown = image
            if number < ORIGINAL:
                steps = tables[number].expand(len(image), 2, BLOCK, BLOCK)
                shown = normalisation.to_network(coded(pixels, steps))
            with autocast(loader.device, precision):
                rows.append(logits_of(teacher(shown)).float())
        logits = torch.stack(rows)
        if not bool(torch.isfinite(logits).all()):
            raise DJIPError(
                "the teacher's output holds NaN or infinity; check its checkpoint and its "
                "precision (float32 is safest)"
            )
        chosen.append(choose(logits, label.to(loader.device)).to(torch.uint8).cpu())
    return torch.cat(chosen)


def choice_record(choice: Tensor) -> dict[str, Any]:
    """What a run's result says of a choice (views, N).

    Returns:
        ``qualities``: quality, or "original", -> how often it was chosen; ``teacher_passes``: what
        the choice costs, the answers to the coded images not included.
    """
    names = [*map(str, QUALITIES), "original"]
    counts = choice.flatten().long().bincount(minlength=CANDIDATES).tolist()
    return {
        "qualities": dict(zip(names, counts, strict=True)),
        "teacher_passes": CANDIDATES * choice.numel(),
    }
