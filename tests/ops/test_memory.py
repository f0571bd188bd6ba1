"""The memory of a fit does not grow with the number of images, unless the variant is literal."""

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from djip_ext import fit_lens

CLASSES, BATCH = 50, 8


class Images:
    """Makes its batches on the fly, so that it holds none."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for start in range(0, self.count, BATCH):
            generator = torch.Generator().manual_seed(start)
            yield (
                torch.rand(BATCH, 3, 8, 8, generator=generator),
                torch.arange(start, start + BATCH) % CLASSES,
                torch.arange(start, start + BATCH),
            )


def tensors() -> list[Tensor]:
    return [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter)]


class Watched(nn.Module):
    """Counts the bytes that tensors made since then hold at the last batch of every pass."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.others = tensors()  # of other tests; held, so that no number of theirs is given anew
        self.known = set(map(id, self.others))
        self.fc = nn.Linear(192, CLASSES)
        self.most, self.calls, self.batches = 0, 0, images // BATCH

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % self.batches == 0:
            storages = [t.untyped_storage() for t in tensors() if id(t) not in self.known]
            self.most = max(
                self.most,
                sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()),
            )
        return self.fc(x.flatten(1))


def bytes_held(images: int, variant: str) -> int:
    teacher = Watched(images)
    fit_lens(
        teacher,
        Images(images),
        CLASSES,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        rounds=1,
        variant=variant,
        progress=False,
    )
    return teacher.most


@pytest.mark.parametrize("variant", ["fresh", "fixed"])
def test_four_times_the_images_take_no_more_memory(variant: str) -> None:
    bytes_held(128, variant)  # fills what is kept from one fit to the next
    assert bytes_held(512, variant) - bytes_held(128, variant) < 1000


def test_literal_keeps_every_prediction() -> None:
    assert bytes_held(512, "literal") - bytes_held(128, "literal") > 0.9 * 384 * CLASSES * 4
