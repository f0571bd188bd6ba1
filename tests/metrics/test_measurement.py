"""One pass over a data set, against the same numbers worked out at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from djip_ext import DJIPError, conditional_mutual_information
from djip_ext.metrics.measurement import measure

IMAGES, LABELS = (
    torch.randn(11, 3, 4, 4, generator=torch.Generator().manual_seed(1)),
    torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2]),
)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


def loader() -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(IMAGES.split(4), LABELS.split(4), torch.arange(11).split(4), strict=True))


def test_uneven_batches_give_the_numbers_of_the_whole_set() -> None:
    teacher = network()
    logits = teacher(IMAGES).detach()
    found = measure(teacher, loader(), 3)
    assert found.ce == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-6)
    assert found.accuracy == pytest.approx(
        100 * (logits.argmax(1) == LABELS).float().mean().item(), rel=1e-6
    )
    assert found.cmi.total == pytest.approx(
        conditional_mutual_information(logits, LABELS, 3).total, rel=1e-6
    )


def test_temperature_is_that_of_cmi_and_not_of_the_cross_entropy() -> None:
    teacher = network()
    hot, cold = measure(teacher, loader(), 3, temperature=5.0), measure(teacher, loader(), 3)
    logits = teacher(IMAGES).detach()
    assert hot.ce == cold.ce
    assert hot.cmi.total == pytest.approx(
        conditional_mutual_information(logits, LABELS, 3, 5.0).total, rel=1e-6
    )


def test_network_sees_what_look_makes_of_the_images() -> None:
    teacher = network()
    flipped = [(-image, label) for image, label, _ in loader()]
    assert (
        measure(teacher, loader(), 3, transform=torch.neg).summary()
        == measure(teacher, flipped, 3).summary()
    )


def test_log_probabilities_are_handed_over_with_their_indices() -> None:
    kept: dict[int, Tensor] = {}
    teacher = network()
    measure(
        teacher,
        loader(),
        3,
        temperature=2.0,
        keep_ln_f=lambda index, ln_f: kept.update(zip(index.tolist(), ln_f, strict=True)),
    )
    expected = torch.log_softmax(teacher(IMAGES) / 2.0, 1)
    torch.testing.assert_close(
        torch.stack([kept[i] for i in range(11)]), expected.detach(), atol=1e-5, rtol=0
    )


def test_bfloat16_rounds_the_network() -> None:
    teacher = network()
    full, low = measure(teacher, loader(), 3), measure(teacher, loader(), 3, precision="bfloat16")
    assert low.ce != full.ce and low.ce == pytest.approx(full.ce, rel=0.02)


def test_leaves_mode_and_gradients_of_the_network_alone() -> None:
    teacher = network().train()
    measure(teacher, loader(), 3)
    assert teacher.training and all(
        p.grad is None and p.requires_grad for p in teacher.parameters()
    )


def test_refuses_an_unknown_precision() -> None:
    with pytest.raises(DJIPError, match="float32 or bfloat16"):
        measure(network(), loader(), 3, precision="float16")


def test_refuses_an_empty_loader() -> None:
    with pytest.raises(DJIPError, match="loader empty"):
        measure(network(), [], 3)


def test_float64_images_are_cast_under_autocast_too() -> None:
    """Which leaves them alone, so that a network would see two dtypes."""
    teacher = network()
    doubles = [(image.double(), label) for image, label, _ in loader()]
    for precision in ("float32", "bfloat16"):
        found = measure(teacher, doubles, 3, precision=precision)
        assert found.summary() == measure(teacher, loader(), 3, precision=precision).summary()
