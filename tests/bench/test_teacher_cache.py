"""A teacher's kept answers: whose they are, and what is wrong with a file or a teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.run import build_model
from djip_ext.bench.engine.teacher_cache import answers_key, cached_teacher
from djip_ext.errors import DJIPError

DATA = make_synthetic(2, 0)
VIEWS = {"augment": True, "views": 2}


def network(seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("resnet8", 20).eval()


def test_kept_answers_are_of_these_weights_images_views_scale_and_precision_alone() -> None:
    def key(
        teacher: nn.Module,
        precision: str = "float32",
        data: ImageSet = DATA,
        batch_size: int = 16,
        **how: int,
    ) -> str:
        return answers_key(teacher, DeviceLoader(data, batch_size, **(VIEWS | how)), precision)

    first = key(network())
    assert key(network(), batch_size=8, seed=3) == first
    others = {
        key(network(8)),
        key(network(), "bfloat16"),
        key(network(), data=replace(DATA, images=255 - DATA.images)),
        key(network(), data=replace(DATA, mean=(0.1, 0.2, 0.3))),
        key(network(), data=replace(DATA, std=(0.1, 0.2, 0.3))),
        key(network(), views=3),
        key(network(), padding=2),
    }
    assert len(others | {first}) == 8


def test_a_damaged_file_of_answers_is_named(tmp_path: Path) -> None:
    loader = DeviceLoader(DATA, 16, **VIEWS)
    path = tmp_path / f"{answers_key(network(), loader, 'float32')}.safetensors"
    path.write_bytes(b"x")
    with pytest.raises(DJIPError, match=f"{path.name} is damaged .* delete it"):
        cached_teacher(network(), loader, tmp_path, "float32")


def test_answers_that_hold_nan_are_refused_and_not_kept(tmp_path: Path) -> None:
    teacher = network()
    nn.init.constant_(teacher.fc.bias, float("nan"))
    with pytest.raises(DJIPError, match="NaN or infinity"):
        cached_teacher(teacher, DeviceLoader(DATA, 16, **VIEWS), tmp_path, "float32")
    assert not list(tmp_path.glob("*.safetensors"))
