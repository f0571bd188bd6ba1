"""MCMI: its loss against a slow reference, its centres, its steered lambda, its runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.slow_losses import divergence, mean, probabilities
from helpers.small_bench import assert_resumes_bit_for_bit, run, small_options, state_of

from djip_ext.bench.distillers._centres import cmi_of_powers
from djip_ext.bench.distillers.rivals.mcmi import MCMI, POWERS, steered_lambda
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import build_model, load_weights
from djip_ext.errors import DJIPError

TARGET = torch.tensor([0, 3, 2, 2])


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A run that fine-tunes the small teacher."""
    small = small_options(tmp_path, monkeypatch)
    start = small[small.index("BENCH.TEACHER_CHECKPOINT") + 1]
    return [*small, "DISTILLER.TYPE", "MCMI", "BENCH.STUDENT_CHECKPOINT", start]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (4, 5) and centres (5, 5)."""
    generator = torch.Generator().manual_seed(0)
    z, c = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator)
    return 3 * z[:4], c.softmax(1)


def test_the_divergence_is_the_slow_one() -> None:
    z, centres = inputs()
    expected = mean(
        [
            divergence(probabilities(row), list(centres[y]))
            for row, y in zip(z, TARGET.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(cmi_of_powers(z, TARGET, centres[None], POWERS)[0], expected)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cmi_of_powers(x, TARGET, centres[None], POWERS), (z,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("images", [1, 3, 20, 64, 257])
def test_the_power_one_changes_no_bit_of_the_divergence(images: int, dtype: torch.dtype) -> None:
    """Of (1/|B|) sum_x KL(f_x || S_y) as the paper writes it, and of its gradient."""
    generator = torch.Generator().manual_seed(images)
    z = torch.randn(images, 100, dtype=dtype, generator=generator).mul(5).requires_grad_()
    centres = torch.randn(100, 100, generator=generator).mul(9).softmax(1)
    target = torch.randint(100, (images,), generator=generator)
    ln_f = torch.log_softmax(z, dim=1)
    ln_centres = centres.to(dtype).clamp_min(1e-12).log()[target]
    written_out = (ln_f.exp() * (ln_f - ln_centres)).sum(1).mean()
    shared = cmi_of_powers(z, target, centres[None], POWERS)[0]
    assert torch.equal(shared, written_out)
    gradients = [torch.autograd.grad(-0.7 * value, z)[0] for value in (shared, written_out)]
    assert torch.equal(*gradients)


def test_lambda_is_proportional_to_the_missing_cmi_within_its_bounds() -> None:
    found = [
        steered_lambda(torch.tensor(cmi), torch.tensor(0.8), 0.4, 2.0).item()
        for cmi in (0.1, 0.7, 0.75, 0.8, 0.85, 2.0)
    ]
    assert found == pytest.approx([2.0, 2.0, 1.0, 0.0, -1.0, -2.0], abs=1e-5)


def method(*options: Any) -> MCMI:
    cfg = load_cfg(None, [*options])
    return MCMI(build_model("resnet8", 5), cfg, 5)


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, 32, 32, generator=generator), TARGET) for _ in range(count)]


def class_means(network: torch.nn.Module, loader: Any) -> torch.Tensor:
    """S_y by hand, uniform for a class without images."""
    answers: list[list[torch.Tensor]] = [[] for _ in range(5)]
    with torch.no_grad():
        for image, label in loader:
            for f, y in zip(network(image)[0].softmax(1), label.tolist(), strict=True):
                answers[y].append(f)
    return torch.stack([mean(rows) if rows else torch.full((5,), 0.2) for rows in answers])


@pytest.mark.parametrize("centres", ["fixed", "refreshed"])
def test_the_centres_are_class_means_in_eval_mode(centres: str) -> None:
    distiller = method("MCMI.CENTRES", centres).train()
    loader = batches()
    distiller.begin_epoch(loader, 1, "float32")
    first = class_means(distiller.student.eval(), loader)
    torch.testing.assert_close(distiller.centres, first, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        for parameter in distiller.student.parameters():
            parameter.mul_(1.1)
    distiller.begin_epoch(loader, 2, "float32")
    expected = first if centres == "fixed" else class_means(distiller.student, loader)
    torch.testing.assert_close(distiller.centres, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_a_step_is_ce_minus_lambda_times_the_divergence(gain: float) -> None:
    distiller = method("MCMI.LAMBDA", 0.7, "MCMI.GAIN", gain)
    distiller.begin_epoch(batches(), 1, "float32")
    distiller.cmi += 0.27
    before = distiller.cmi.clone()
    image, _ = batches(1)[0]
    distiller.eval()  # so that a second pass gives the same logits
    logits, losses = distiller.forward_train(image, TARGET)
    kl = cmi_of_powers(logits, TARGET, distiller.centres[None], POWERS)[0]
    lam = 0.7 if gain == 0 else 0.7 * (0.03 / (0.25 * 0.3))
    torch.testing.assert_close(losses["loss_ce"], F.cross_entropy(logits, TARGET))
    torch.testing.assert_close(losses["loss_cmi"], -lam * kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distiller.cmi, (0.9 * before + 0.1 * kl).detach())
    sum(losses.values()).backward()
    assert not distiller.centres.requires_grad and not distiller.cmi.requires_grad


@pytest.mark.parametrize("gain", [0.0, 0.2])
def test_a_resumed_run_is_the_uninterrupted_one(
    gain: float, options: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = ["MCMI.CENTRES", "fixed", "MCMI.GAIN", gain, "MCMI.LAMBDA", 0.5]
    assert_resumes_bit_for_bit([*options, *extra], monkeypatch)


def test_a_run_starts_from_the_checkpoint_and_raises_cmi(
    options: list[Any], tmp_path: Path
) -> None:
    """Its weights serve as a teacher's, and lambda 0 is plain fine-tuning."""

    def kl(lam: float) -> float:
        result = run([*options, "MCMI.LAMBDA", lam], f"lam-{lam}")
        load_weights(build_model("resnet8", 20), Path(result["folder"]) / "student_last.pth")
        return state_of(result)["model"]["cmi"].item()

    assert kl(1.0) > kl(0.0)


@pytest.mark.parametrize(
    "change, names",
    [
        (["BENCH.STUDENT_CHECKPOINT", ""], "BENCH.STUDENT_CHECKPOINT is empty"),
        (["MCMI.CENTRES", "moving"], "MCMI.CENTRES is 'moving'; choose"),
        (["MCMI.GAIN", -0.1], "MCMI.GAIN is -0.1"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(
    change: list[Any], names: str, options: list[Any]
) -> None:
    with pytest.raises(DJIPError, match=names) as caught:
        run([*options, *change], "wrong")
    assert "\n" not in str(caught.value)
