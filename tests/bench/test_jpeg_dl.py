"""JPEG-DL: tables and network learn together, test images pass the lens, the pair is a teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_bench import assert_resumes_bit_for_bit, run, small_options, state_of

from djip_ext import DJIPTeacher, load_lens
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.distillers.rivals.jpeg_dl import JPEGDL
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import build_model, load_weights
from djip_ext.hosts.registry import install, uninstall
from djip_ext.lens.initial_tables import sensitivity
from djip_ext.ops.dct import coefficients_to_rgb, pad_to_blocks, rgb_to_coefficients
from djip_ext.ops.quantizer import soft_quantize


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return [*small_options(tmp_path, monkeypatch), "DISTILLER.TYPE", "JPEGDL"]


def method(*options: Any) -> JPEGDL:
    cfg = load_cfg(None, ["DATASET.TYPE", "synthetic", *options])
    return JPEGDL(build_model("resnet8", 5), cfg, 5)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 3, 2, 2])


def test_a_step_is_that_of_the_codec_written_out() -> None:
    """Loss and both gradients; then Adam moves the steps and nothing else does."""
    jpeg_dl = method().eval()
    with torch.no_grad():
        jpeg_dl.lens.q.copy_(torch.rand(2, 8, 8) * 5 + 1)
    image, target = batch()
    q = jpeg_dl.lens.q.detach().clone().requires_grad_()
    pixels = jpeg_dl.normalisation.to_pixels(image)
    steps = q[[0, 1, 1]].repeat(1, 4, 4)
    z = soft_quantize(rgb_to_coefficients(pad_to_blocks(pixels)), steps, 5.0, 127, 5)
    seen = jpeg_dl.normalisation.to_network(coefficients_to_rgb(z))
    expected = F.cross_entropy(jpeg_dl.student(seen)[0], target)
    weight = next(jpeg_dl.student.parameters())
    slopes = torch.autograd.grad(expected, [q, weight])
    _, losses = jpeg_dl.forward_train(image, target)
    torch.testing.assert_close(losses["ce"], expected, rtol=1e-4, atol=1e-5)
    losses["ce"].backward()
    for found, slope in zip([jpeg_dl.lens.q.grad, weight.grad], slopes, strict=True):
        assert (found - slope).norm() < 1e-3 * slope.norm()
    jpeg_dl.end_step()
    twin = q.detach().clone().requires_grad_()
    twin.grad = jpeg_dl.lens.q.grad.clone()
    torch.optim.Adam([twin], lr=0.003).step()
    assert torch.equal(jpeg_dl.lens.q, twin)
    assert all(p is not jpeg_dl.lens.q for p in jpeg_dl.get_learnable_parameters())


def test_steps_stay_in_their_range() -> None:
    jpeg_dl = method("JPEGDL.LR", 1000.0)
    image, target = batch()
    jpeg_dl.forward_train(image, target)[1]["ce"].backward()
    jpeg_dl.end_step()
    assert jpeg_dl.lens.q.min() > 0 and jpeg_dl.lens.q.max() <= 255


def test_it_starts_by_the_sensitivity_of_its_network() -> None:
    jpeg_dl = method()
    loader = [batch()]
    jpeg_dl.begin_epoch(loader, 1, "float32")
    expected = sensitivity(jpeg_dl.student, loader, jpeg_dl.mean, jpeg_dl.std).clamp(1e-5, 255)
    assert torch.equal(jpeg_dl.lens.q.detach(), expected) and expected[0].max() == 10
    with torch.no_grad():
        jpeg_dl.lens.q.fill_(3.0)
    jpeg_dl.begin_epoch(loader, 2, "float32")
    assert (jpeg_dl.lens.q == 3).all()


def test_a_resumed_run_is_the_uninterrupted_one(
    options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's moments included."""
    assert_resumes_bit_for_bit(options, monkeypatch)
    state = state_of(run(options, "whole", resume=True))["model"]
    assert state["_extra_state"]["state"][0]["step"] == 6


def test_test_images_pass_the_lens_and_the_pair_is_a_teacher(options: list[Any]) -> None:
    result = run([*options, "JPEGDL.LR", 1.0], "run")
    folder = Path(result["folder"])
    network = load_weights(build_model("resnet8", 20), folder / "student_last.pth")
    lens = load_lens(folder / "lens.safetensors")
    data = make_synthetic(2, 1)
    teacher = DJIPTeacher(network, lens, data.mean, data.std)  # the lens knows its network
    assert result["jpeg_dl"]["soft_acc"] == result["last_acc"]
    assert 0 <= result["jpeg_dl"]["hard_acc"] <= 100
    torch.testing.assert_close(lens.q, state_of(result)["model"]["lens.q"])
    install(folder / "lens.safetensors", "djip_ext.bench")
    try:
        taught = run(
            [*options, "DISTILLER.TYPE", "KD", "SOLVER.EPOCHS", 1]
            + ["BENCH.TEACHER_CHECKPOINT", str(folder / "student_last.pth")],
            "taught",
        )
    finally:
        uninstall("djip_ext.bench")
    assert taught["lens"] == teacher.djip_id


def test_it_is_evaluated_behind_its_lens() -> None:
    jpeg_dl = method().eval()
    with torch.no_grad():
        jpeg_dl.lens.q.fill_(80.0)
    image, _ = batch()
    with torch.no_grad():
        found = jpeg_dl(image=image)
        expected = jpeg_dl.student(jpeg_dl.normalisation.through(jpeg_dl.lens, image))[0]
        plain = jpeg_dl.student(image)[0]
        torch.testing.assert_close(jpeg_dl.evaluated(image)[0], expected)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain)
