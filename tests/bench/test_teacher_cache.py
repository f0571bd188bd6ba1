"""A teacher's kept answers: whose they are, and what is wrong with a file or a teacher."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

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


@torch.no_grad()
def answers(teacher: nn.Module, loader: DeviceLoader) -> dict[str, Tensor]:
    """All views one after the other, without anything kept."""
    views = range(loader.views)
    answered = [[teacher(image) for image in loader.view_batches(v, 16)] for v in views]
    logits = [torch.cat([z for z, _ in view]) for view in answered]
    pooled = [torch.cat([features["pooled_feat"] for _, features in view]) for view in answered]
    return {"logits": torch.stack(logits).half(), "pooled_feat": torch.stack(pooled).half()}


@pytest.mark.parametrize("end", [KeyboardInterrupt, ConnectionError])
def test_a_broken_off_asking_goes_on_with_the_view_that_it_had_begun(
    end: type[BaseException], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = DeviceLoader(DATA, 16, augment=True, views=4)
    teacher = network()
    asked: list[int] = []

    def ask(_: nn.Module, inputs: tuple[Tensor]) -> None:
        asked.append(len(inputs[0]))
        if len(asked) == 8:  # two views of three batches, and in the third
            raise end

    teacher.register_forward_pre_hook(ask)
    with pytest.raises(end):
        cached_teacher(teacher, loader, tmp_path, "float32")
    asked[:] = [0] * 8
    cached_teacher(teacher, loader, tmp_path, "float32")
    assert sum(asked) == 2 * 40
    assert f"2 views of {len(DATA.labels)} images, 80 queries" in capsys.readouterr().out
    (path,) = tmp_path.glob("*.safetensors")
    assert path.stem == answers_key(teacher, loader, "float32")
    assert path.read_bytes() == save(answers(network(), loader)), "as if nothing had happened"
    cached_teacher(teacher, loader, tmp_path, "float32")
    assert sum(asked) == 2 * 40


@pytest.mark.parametrize("suffix", [".safetensors", ".view-1.safetensors"])
def test_a_damaged_file_of_answers_is_named(suffix: str, tmp_path: Path) -> None:
    loader = DeviceLoader(DATA, 16, **VIEWS)
    path = tmp_path / f"{answers_key(network(), loader, 'float32')}{suffix}"
    path.write_bytes(b"x")
    with pytest.raises(DJIPError, match=f"{path.name} is damaged .* delete it"):
        cached_teacher(network(), loader, tmp_path, "float32")


def test_answers_that_hold_nan_are_refused_and_not_kept(tmp_path: Path) -> None:
    teacher = network()
    nn.init.constant_(teacher.fc.bias, float("nan"))
    with pytest.raises(DJIPError, match="NaN or infinity"):
        cached_teacher(teacher, DeviceLoader(DATA, 16, **VIEWS), tmp_path, "float32")
    assert not list(tmp_path.glob("*.safetensors"))
