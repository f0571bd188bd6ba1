"""A teacher behind its lens as ONNX: onnxruntime answers what torch does, at several sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from djip_ext import ClosedTeacher, DJIPTeacher, JPEGLens, fit_lens

runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


def exported(module: nn.Module, images: Tensor, dynamic: tuple[int, ...], path: Path) -> object:
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in dynamic}
    shapes = {"args": (sizes,)} if isinstance(module, DJIPTeacher) else (sizes,)
    torch.onnx.export(
        module, (images,), path, dynamo=True, dynamic_shapes=shapes, input_names=["images"]
    )
    return runtime.InferenceSession(str(path))


def answer(session: object, images: Tensor) -> Tensor:
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("lens", "traced", "dynamic", "others"),
    [
        (
            JPEGLens(q=8.0, kappa=5.0),
            (2, 3, 16, 24),
            (0, 2, 3),
            [(1, 3, 32, 32), (3, 3, 16, 40), (5, 3, 8, 8)],
        ),
        (JPEGLens(q=9.0, hard=True), (2, 3, 13, 30), (0,), [(1, 3, 13, 30), (7, 3, 13, 30)]),
    ],
)
def test_onnxruntime_answers_what_torch_does(
    lens: JPEGLens,
    traced: tuple[int, ...],
    dynamic: tuple[int, ...],
    others: list[tuple[int, ...]],
    tmp_path: Path,
) -> None:
    teacher = DJIPTeacher(network(), lens, MEAN, STD)
    session = exported(teacher, torch.randn(traced), dynamic, tmp_path / "teacher.onnx")
    for shape in (traced, *others):
        images = torch.randn(shape)
        assert torch.allclose(answer(session, images), teacher(images), atol=1e-4)
        assert not torch.allclose(answer(session, images), teacher.djip_teacher(images), atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_session_is_a_closed_teacher(tmp_path: Path) -> None:
    plain = network()
    images = torch.randn(12, 3, 16, 16)
    session = exported(plain, images, (0,), tmp_path / "plain.onnx")
    closed = ClosedTeacher(lambda x: answer(session, x), 4, name="plain.onnx")
    assert torch.allclose(closed(images), plain(images), atol=1e-5)
    batches = [(images, torch.arange(12) % 4)]
    result = fit_lens(
        closed, batches, 4, mean=MEAN, std=STD, gradients=False, queries=60, progress=False
    )
    assert closed.queries - len(images) == result.lens.metadata["queries"] <= 60
