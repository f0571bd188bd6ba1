"""Everything that runs on a GPU, on a pretended one.

No operation mixes devices, and the numbers are those of the CPU.
"""

from pathlib import Path

import pytest
import torch
from helpers.pretend_gpu import GPU, OnGPU, pretend_gpu
from torch import Tensor, nn

from djip_ext import DJIPTeacher, JPEGLens, fit_lens, install, load_lens, uninstall
from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.distillers import distiller_dict, methods
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import train
from djip_ext.bench.engine.trainer import BaseTrainer
from djip_ext.bench.models import cifar_model_dict
from djip_ext.fit.loop import default_start
from djip_ext.lens.initial_tables import mean_magnitude, random_tables, sensitivity
from djip_ext.lens.normalisation import NORMALISATIONS

MEAN, STD = NORMALISATIONS["synthetic"]
LENSES = {
    "the default": default_start,
    "sharp": lambda: JPEGLens(q=8.0, alpha=5.0),
    "mixed": lambda: JPEGLens(random_tables(2.0, 0), alpha=1.0),
    "sharp and tied": lambda: JPEGLens(q=8.0, kappa=20.0),
    "JPEG-DL on CIFAR": lambda: JPEGLens.jpeg_dl(),
    "JPEG-DL on ImageNet": lambda: JPEGLens.jpeg_dl(4.0, "imagenet"),
    "hard": lambda: JPEGLens(q=8.0, hard=True),
}


def images(count: int = 2, side: int = 33) -> Tensor:
    return 255 * torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_pretence_refuses_what_a_gpu_refuses() -> None:
    with pretend_gpu():
        x = torch.ones(3, device=GPU)
        assert (
            isinstance(x, OnGPU)
            and (x + 1).device == GPU
            and (x * torch.tensor(2.0)).tolist() == [2, 2, 2]
        )
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: torch.addcmul(torch.tensor(1.0), x, x),
            lambda: torch.ones(3)[x > 0],
        ):
            with pytest.raises((RuntimeError, NotImplementedError)):
                mixed()


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("to_pixels", [False, True], ids=["to q", "to q and pixels"])
def test_a_lens_sees_and_learns_the_same(name: str, to_pixels: bool) -> None:
    def results(device: torch.device) -> list[Tensor]:
        lens = LENSES[name]().to(device)
        x = images().to(device).requires_grad_(to_pixels)
        seen = lens(x)
        wanted = [] if lens.hard else [lens.q, x] if to_pixels else [lens.q]
        return [
            t.cpu()
            for t in (
                seen.detach(),
                *(torch.autograd.grad(seen.square().mean(), wanted) if wanted else ()),
            )
        ]

    expected = results(torch.device("cpu"))
    with pretend_gpu():
        for ours, theirs in zip(results(GPU), expected, strict=True):
            torch.testing.assert_close(
                ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max())
            )


def test_what_a_lens_says_of_itself_is_the_same() -> None:
    expected = default_start().health(images())
    with pretend_gpu():
        assert default_start().to(GPU).health(images().to(GPU)) == pytest.approx(expected, abs=1e-6)


class Teacher(nn.Module):
    """A little network whose predictions depend on high frequencies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)
        nn.init.normal_(self.fc.weight, std=5.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def batches() -> list[tuple[Tensor, Tensor, Tensor]]:
    """On the CPU, as a DataLoader yields them."""
    x = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return list(
        zip(x.split(8), Teacher()(x).argmax(1).split(8), torch.arange(24).split(8), strict=True)
    )


def test_the_readme_works_for_a_teacher_on_a_gpu(tmp_path: Path) -> None:
    """With a loader and a lens file that know nothing of it."""
    default_start().save(tmp_path / "lens.safetensors")
    x = batches()[0][0]
    expected = DJIPTeacher(Teacher(), load_lens(tmp_path / "lens.safetensors"), MEAN, STD)(x)
    with pretend_gpu():
        amplified = DJIPTeacher(
            Teacher().to(GPU), load_lens(tmp_path / "lens.safetensors"), MEAN, STD
        )
        torch.testing.assert_close(
            amplified(x.to(GPU)).detach().cpu(), expected.detach(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("variant", ["fresh", "literal", "fixed"])
def test_a_fit_ends_with_the_same_lens_and_resumes(variant: str, tmp_path: Path) -> None:
    how = {
        "mean": MEAN,
        "std": STD,
        "rounds": 2,
        "cmi_gain": (0.002, 0.01),
        "max_accuracy_drop": 100.0,
        "variant": variant,
        "progress": False,
    }
    expected = fit_lens(Teacher(), batches(), 3, **how).lens.q
    rows: list[object] = []

    def break_off(row: object) -> None:
        rows.append(row)
        if len(rows) == 2:
            raise KeyboardInterrupt

    with pretend_gpu():
        there = {"checkpoint": tmp_path / "fit.pth", "log": break_off, **how}
        with pytest.raises(KeyboardInterrupt):
            fit_lens(Teacher().to(GPU), batches(), 3, **there)
        lens = fit_lens(Teacher().to(GPU), batches(), 3, **there).lens
        assert len(rows) > 2
        torch.testing.assert_close(lens.q.detach().cpu(), expected.detach(), rtol=1e-3, atol=1e-3)


def test_the_starts_that_look_at_images_look_there() -> None:
    loader = [(x, y) for x, y, _ in batches()]
    expected = mean_magnitude(loader, MEAN, STD), sensitivity(Teacher(), loader, MEAN, STD)
    with pretend_gpu():
        there = [(x.to(GPU), y.to(GPU)) for x, y in loader]
        for ours, theirs in zip(
            (mean_magnitude(there, MEAN, STD), sensitivity(Teacher().to(GPU), loader, MEAN, STD)),
            expected,
            strict=True,
        ):
            torch.testing.assert_close(ours.cpu(), theirs.cpu(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", list(methods))
def test_every_distiller_takes_a_step_behind_a_lens(kind: str) -> None:
    cfg = load_cfg(None, ["CRD.FEAT.STUDENT_DIM", 64, "CRD.FEAT.TEACHER_DIM", 64, "CRD.NCE.K", 4])
    batch = {
        "image": images(4, 32) / 255,
        "target": torch.tensor([0, 1, 2, 3]),
        "index": torch.arange(4),
    }
    batch["contrastive_index"] = torch.tensor(
        [[0, 5, 6, 7, 8], [1, 7, 4, 5, 6], [2, 5, 7, 8, 9], [3, 6, 4, 5, 7]]
    )

    def losses(device: torch.device) -> list[float]:
        torch.manual_seed(0)
        student, teacher = (cifar_model_dict["resnet8"][0](num_classes=10) for _ in range(2))
        distiller = distiller_dict[kind](
            student,
            DJIPTeacher(teacher, default_start(), MEAN, STD),
            cfg,
            *([10] if kind == "CRD" else []),
        )
        if kind == "FT":
            distiller.pretrained = True
        distiller.to(device).train()
        _, found = distiller(**{key: value.to(device) for key, value in batch.items()}, epoch=1)
        sum(value.mean() for value in found.values()).backward()
        assert all(p.grad is None or p.grad.device == device for p in distiller.parameters())
        return [float(value.detach().mean()) for value in found.values()]

    expected = losses(torch.device("cpu"))
    with pretend_gpu():
        assert losses(GPU) == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.filterwarnings(
    "ignore:.*which is a no-op"
)  # of a state that is copied into the pretence: it is copied
@pytest.mark.parametrize(
    "kind, more", [("KD", []), ("KD", ["BENCH.VIEWS", 2]), ("FT", ["FT.PRETRAIN.EPOCHS", 1])]
)
def test_a_student_is_trained_there_and_resumes(
    kind: str, more: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    weights = tmp_path / "teacher.pth"
    torch.save({"model": cifar_model_dict["resnet8"][0](num_classes=20).state_dict()}, weights)
    options = [
        "DATASET.TYPE",
        "synthetic",
        "SOLVER.BATCH_SIZE",
        20,
        "SOLVER.LR",
        0.01,
        "DISTILLER.TEACHER",
        "resnet8",
        "DISTILLER.STUDENT",
        "resnet8",
    ]
    options += ["DISTILLER.TYPE", kind, "BENCH.TEACHER_CHECKPOINT", str(weights), *more]
    real = BaseTrainer.train_epoch

    def weights_on(device: torch.device, break_off: bool) -> dict[str, Tensor]:
        def broken_off(self: BaseTrainer, epoch: int) -> dict[str, float]:
            if epoch == 2:
                raise KeyboardInterrupt
            return real(self, epoch)

        where = ["LOG.PREFIX", str(tmp_path / device.type), "BENCH.DEVICE", str(device)]
        cfg = load_cfg(None, [*options, *where, "SOLVER.EPOCHS", 2])
        if break_off:
            with monkeypatch.context() as broken:
                broken.setattr(BaseTrainer, "train_epoch", broken_off)
                with pytest.raises(KeyboardInterrupt):
                    train(cfg)
        result = train(cfg, resume=break_off)
        assert result["epochs"] == 2
        path = Path(result["folder"]) / "student_last.pth"
        return torch.load(path, weights_only=True)["model"]

    install(default_start(), "djip_ext.bench")
    try:
        expected = weights_on(torch.device("cpu"), break_off=False)
        with pretend_gpu():
            found = weights_on(GPU, break_off=True)
    finally:
        uninstall("djip_ext.bench")
    for name, value in expected.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-2, atol=1e-3)
