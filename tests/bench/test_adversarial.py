"""TALD and BSS: their parts against slow references, whom they move, and their runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.slow_losses import mean, probabilities
from helpers.small_bench import assert_resumes_bit_for_bit, run, small_options, state_of
from helpers.small_service import TEACHER, images_asked, write_service
from torch import Tensor, nn

from djip_ext import JPEGLens
from djip_ext.bench.distillers.kd import KD
from djip_ext.bench.distillers.rivals import adversarial_losses
from djip_ext.bench.distillers.rivals.bss import (
    BSS,
    base_samples,
    boundary_images,
    draw_classes,
    soft_cross_entropy,
)
from djip_ext.bench.distillers.rivals.tald import (
    TALD,
    adversarial_images,
    stein_direction,
    tald_loss,
    unit,
)
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import build_model
from djip_ext.errors import DJIPError
from djip_ext.hosts.registry import install, uninstall

TARGET = torch.tensor([0, 3, 2, 2])


def noise(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


# --- TALD ---


def kernel(a: Tensor, b: Tensor, sigma: float) -> Tensor:
    return torch.exp(-(a - b).square().sum() / (2 * sigma**2))


def slow_stein(d: Tensor, slope: Tensor, sigma: float) -> Tensor:
    """phi a particle at a time; the kernel's gradient by autograd."""
    rows = []
    for i in range(len(d)):
        total = torch.zeros_like(d[i])
        for j in range(len(d)):
            at = d[j].clone().requires_grad_()
            k = kernel(at, d[i], sigma)
            total += k.detach() * slope[j] + torch.autograd.grad(k, at)[0]
        rows.append(total / len(d))
    return torch.stack(rows)


@pytest.mark.parametrize("sigma", [0.7, 1e-3])
def test_a_stein_step_is_the_slow_one(sigma: float) -> None:
    d, slope = noise(5, 6, seed=0), noise(5, 6, seed=1)
    torch.testing.assert_close(stein_direction(d, slope, sigma), slow_stein(d, slope, sigma))


class Linear(nn.Module):
    """A teacher of 3x2x2 images: W x, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(5, 12, seed=2))

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1).double() @ self.weight.T


def test_an_adversarial_image_is_one_step_of_fixed_length() -> None:
    node = load_cfg(None, ["TALD.EPS", 0.25, "TALD.XI", 0.5, "TALD.SIGMA", 1.5]).TALD
    teacher = Linear()
    image = noise(4, 3, 2, 2, seed=3)
    start = unit(noise(4, 3, 2, 2, seed=4))
    slopes = []
    for x, d in zip(image, start, strict=True):
        at = d.clone().requires_grad_()
        near = probabilities(teacher((x + 0.5 * at)[None])[0])
        clean = [p.detach() for p in probabilities(teacher(x[None])[0])]
        distance = mean([(a - b) ** 2 for a, b in zip(near, clean, strict=True)])
        slopes.append(torch.autograd.grad(distance, at)[0])
    phi = slow_stein(start.flatten(1), torch.stack(slopes).flatten(1), 1.5)
    phi = phi / phi.norm(dim=1, keepdim=True)
    expected = (image + 0.25 * phi.view_as(image)).clamp(-2.5, 2.5)
    found = adversarial_images(image, start, teacher, node)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert teacher.weight.grad is None
    far = adversarial_images(image + 9, start, teacher, node)
    assert far.max() == 2.5


def test_tald_compares_cross_entropies() -> None:
    z_s, z_t = noise(4, 5, seed=5), noise(4, 5, seed=6)
    gaps = [
        (probabilities(t)[y].log() - probabilities(s)[y].log()) ** 2
        for s, t, y in zip(z_s, z_t, TARGET.tolist(), strict=True)
    ]
    torch.testing.assert_close(tald_loss(z_s, z_t, TARGET), mean(gaps))
    z_s.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: tald_loss(s, z_t, TARGET), (z_s,))


# --- BSS ---


def test_base_samples_are_those_both_get_right_by_their_gap() -> None:
    p_t = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.9, 0.0, 0.1]])
    p_s = torch.tensor([[0.5, 0.0, 0.5], [0.6, 0.2, 0.2], [0.5, 0.3, 0.2], [0.4, 0.5, 0.1]])
    target = torch.tensor([0, 0, 1, 0])

    def slow(student_correct: bool) -> list[int]:
        scores = {}
        for i, y in enumerate(target.tolist()):
            right = int(p_t[i].argmax()) == y
            if student_correct:
                right = right and int(p_s[i].argmax()) == y
            if right:
                scores[i] = sum(float(p_t[i, k] - p_s[i, k]) ** 2 for k in range(3) if k != y)
        return sorted(scores, key=lambda i: -scores[i])

    assert base_samples(p_t, p_s, target, 9, True).tolist() == slow(True) == [0, 1]
    assert base_samples(p_t, p_s, target, 9, False).tolist() == slow(False)
    assert base_samples(p_t, p_s, target, 1, True).tolist() == [0]
    assert len(base_samples(p_t, p_s, torch.tensor([2, 2, 2, 1]), 9, True)) == 0


def test_classes_are_drawn_by_the_teacher_s_probabilities() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0]]).expand(3000, 4)
    drawn = draw_classes(p, torch.zeros(3000, dtype=torch.long)).bincount(minlength=4) / 3000
    assert drawn[0] == 0 and drawn[3] == 0 and abs(drawn[1] - 2 / 3) < 0.04
    certain = draw_classes(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), torch.tensor([0]))
    assert certain.item() in (1, 2, 3)


def slow_boundary(x: Tensor, y: int, k: int, teacher: nn.Module, steps: int, step: float) -> Tensor:
    """One image (3, 2, 2), a step at a time."""
    x = x.clone()
    for _ in range(steps):
        at = x.clone().requires_grad_()
        z = teacher(at[None])[0]
        if int(z.argmax()) != y:
            break
        (g,) = torch.autograd.grad(z[k] - z[y], at)
        gap = (z[y] - z[k]).detach()
        x = (x + step * (gap + 1e-4) * g / g.norm()).clamp(-2.5, 2.5)
    return x


def test_boundary_images_are_the_slow_ones() -> None:
    teacher = Linear()
    image = noise(6, 3, 2, 2, seed=7)
    z = teacher(image)
    target = z.argmax(1)
    towards = z.topk(3).indices[:, 2]
    node = load_cfg(None, ["BSS.STEPS", 4, "BSS.STEP", 0.1]).BSS
    found = boundary_images(image, target, towards, teacher, node)
    rows = zip(image, target.tolist(), towards.tolist(), strict=True)
    expected = torch.stack([slow_boundary(x, y, k, teacher, 4, 0.1) for x, y, k in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    crossed = teacher(found).argmax(1) != target
    assert 0 < crossed.sum() < 6, "some are through, some are not"
    assert teacher.weight.grad is None


def test_the_soft_cross_entropy_is_the_slow_one() -> None:
    z_s, z_t = noise(4, 5, seed=8), noise(4, 5, seed=9)
    rows = [
        -sum(p * q.log() for p, q in zip(probabilities(t / 3), probabilities(s / 3), strict=True))
        for s, t in zip(z_s, z_t, strict=True)
    ]
    torch.testing.assert_close(soft_cross_entropy(z_s, z_t, 3.0), mean(rows))
    z_s.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: soft_cross_entropy(s, z_t, 3.0), (z_s,))


def test_the_weight_of_bss_falls_to_zero_at_three_quarters() -> None:
    cfg = load_cfg(None, ["SOLVER.EPOCHS", 80])
    bss = BSS(KD(build_model("resnet8", 5), build_model("resnet8", 5), cfg), nn.Identity(), cfg)
    weights = [bss.weight(epoch) for epoch in (1, 30, 60, 80)]
    assert weights == pytest.approx([2 * (1 - 4 / 240), 1.0, 0.0, 0.0])


# --- both ---

both = pytest.mark.parametrize("name", ["TALD", "BSS"])


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    small = small_options(tmp_path, monkeypatch)
    # what the student classifies is chance; the teacher's classes are one or two
    return [*small, "DISTILLER.TYPE", "KD", "BSS.STUDENT_CORRECT", False]


@both
def test_only_the_student_learns(name: str) -> None:
    cfg = load_cfg(None, ["BSS.STUDENT_CORRECT", False])
    teacher = build_model("resnet8", 5).eval()
    student = build_model("resnet8", 5)
    wrapped = adversarial_losses[name](KD(student, teacher, cfg), teacher, cfg).train()
    image = torch.randn(6, 3, 32, 32)
    target = teacher(image)[0].argmax(1)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    _, losses = wrapped(image=image, target=target, index=torch.arange(6), epoch=1)
    assert list(losses) == ["loss_ce", "loss_kd", "loss_adversarial"]
    losses["loss_adversarial"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training and wrapped.student is student
    assert {id(p) for p in wrapped.get_learnable_parameters()} == {
        id(p) for p in student.parameters()
    }


def test_tald_is_the_weighted_loss_over_clean_and_adversarial_images() -> None:
    cfg = load_cfg(None, ["TALD.IMAGES", 3, "TALD.WEIGHT", 0.1])
    teacher = build_model("resnet8", 5).eval()
    student = build_model("resnet8", 5).eval()
    tald = TALD(KD(student, teacher, cfg), teacher, cfg)
    image = torch.randn(6, 3, 32, 32).clamp(-2, 2)
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    found = tald.adversarial_loss(image, target, student(image)[0], epoch=1)
    assert tald.teacher_passes == 3 * 4 + 3 * 4 + 3 * 5
    clean = tald_loss(student(image[:3])[0], teacher(image[:3])[0], target[:3])
    # at the published radius the particles are hardly elsewhere
    torch.testing.assert_close(found, 0.1 * clean, rtol=0.02, atol=1e-5)


@both
@pytest.mark.parametrize("views", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one(
    name: str, views: int, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the wrapped distiller's teacher is kept: then the living one is asked."""
    extra = ["BENCH.ADVERSARIAL", name, "BENCH.VIEWS", views]
    assert_resumes_bit_for_bit([*options, *extra], monkeypatch)
    result = run([*options, *extra], "whole", resume=True)
    assert result["adversarial_teacher_passes"] > 0 and f"\n{name}:" in "\n" + result["config"]
    assert not any("_living" in key for key in state_of(result)["model"])
    if name == "TALD":
        images = 3 * 2 * 10  # epochs, batches, images
        assert result["adversarial_teacher_passes"] == images * (4 + 4 + 5)


@both
def test_the_teacher_s_lens_is_before_adversarial_images_too(
    name: str, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, through = [], JPEGLens.forward

    def forward(self: JPEGLens, image: Tensor, **scale: Any) -> Tensor:
        seen.append(len(image))
        return through(self, image, **scale)

    monkeypatch.setattr(JPEGLens, "forward", forward)
    extra = ["BENCH.ADVERSARIAL", name, "BENCH.VIEWS", 1, "SOLVER.EPOCHS", 2]
    install(JPEGLens(q=9.0, kappa=5.0), "djip_ext.bench", any_teacher=True)
    try:
        result = run([*options, *extra, "BSS.WEIGHT", 9.0], "lens")
    finally:
        uninstall("djip_ext.bench")
    views = 40  # the kept answers; only adversarial images reach the living teacher
    assert sum(seen) - views == result["adversarial_teacher_passes"] > 0


def test_a_hard_lens_is_refused(options: list[Any]) -> None:
    install(JPEGLens(q=9.0, hard=True), "djip_ext.bench", any_teacher=True)
    try:
        with pytest.raises(DJIPError, match="hard lens .* use a soft one"):
            run([*options, "BENCH.ADVERSARIAL", "TALD"], "hard")
    finally:
        uninstall("djip_ext.bench")


@pytest.mark.parametrize(
    "change, names",
    [
        (["BENCH.ADVERSARIAL", "FGSM"], "FGSM'; choose TALD or BSS"),
        (["BENCH.ADVERSARIAL", "TALD", "DISTILLER.TYPE", "NONE"], "name a distiller"),
        (
            ["BENCH.ADVERSARIAL", "BSS", "BENCH.CKD", True, "BENCH.VIEWS", 1],
            "use one of the two",
        ),
        (
            ["BENCH.ADVERSARIAL", "BSS", "BENCH.ANSWERS", "top:1"],
            "gradients .* BENCH.ANSWERS top:1 ",
        ),
        (
            ["BENCH.ADVERSARIAL", "TALD", "BENCH.ANSWERS", "probabilities"],
            "gradients .* BENCH.ANSWERS probabilities ",
        ),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    change: list[Any], names: str, options: list[Any]
) -> None:
    with pytest.raises(DJIPError, match=names) as caught:
        run([*options, *change], "wrong")
    assert "\n" not in str(caught.value)


@both
def test_a_closed_teacher_is_refused_before_it_is_asked(
    name: str, options: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_service(tmp_path, 20)
    closed = ["DISTILLER.TEACHER", TEACHER, "BENCH.TEACHER_CHECKPOINT", ""]
    with pytest.raises(DJIPError, match="gradients .* closed:service.py:teacher ") as caught:
        run([*options, *closed, "BENCH.ADVERSARIAL", name], "closed")
    assert "\n" not in str(caught.value) and images_asked(tmp_path) == 0


def test_a_wrapped_method_keeps_its_own_parts(options: list[Any]) -> None:
    """FT's pretraining and translator, with the additional loss beside."""
    extra = ["DISTILLER.TYPE", "FT", "FT.PRETRAIN.EPOCHS", 1, "SOLVER.EPOCHS", 1]
    result = run([*options, *extra, "BENCH.ADVERSARIAL", "TALD"], "ft")
    assert any("translator" in key for key in state_of(result)["model"])
