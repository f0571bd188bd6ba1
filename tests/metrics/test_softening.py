"""How soft answers are, and the temperature of equal entropy."""

import math

import pytest
import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.metrics import softening
from djip_ext.metrics.cmi import ClassStatistics, conditional_mutual_information
from djip_ext.metrics.softening import FACTORS, entropy_among_others, measure_softening


def network() -> nn.Module:
    """Without a bias: what divides the images divides the logits."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    images = 4 * torch.randn(40, 3, 2, 2)
    labels = torch.arange(40) % 5
    return [(images[:7], labels[:7]), (images[7:], labels[7:])]


def slow_entropy(logits: Tensor, temperature: float) -> float:
    """One number after the other."""
    total = 0.0
    for row in (logits.double() / temperature).tolist():
        weights = [math.exp(z) for z in row]
        p = [weight / sum(weights) for weight in weights]
        total -= sum(value * math.log(value) for value in p)
    return total / len(logits)


def slow_among_others(logits: Tensor, labels: Tensor, temperature: float) -> list[float]:
    """The label's number left out, then as above."""
    found = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        rest = torch.cat([row[:label], row[label + 1 :]])
        found.append(slow_entropy(rest[None], temperature))
    return found


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_entropy_among_the_others_is_that_without_the_label(temperature: float) -> None:
    torch.manual_seed(2)
    logits, labels = 5 * torch.randn(30, 6), torch.arange(30) % 6
    found = entropy_among_others(logits, labels, temperature)
    assert found.tolist() == pytest.approx(slow_among_others(logits, labels, temperature))
    surer = logits.scatter_add(1, labels[:, None], torch.full((30, 1), 9.0))
    assert torch.equal(entropy_among_others(surer, labels, temperature), found)
    sharp = torch.tensor([[0.0, 1000.0, -1000.0]])  # a probability of 0 adds nothing
    assert entropy_among_others(sharp, torch.tensor([0])).tolist() == [0.0]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_both_sides_are_those_of_the_whole_set_at_that_temperature(temperature: float) -> None:
    teacher = network()
    found = measure_softening(teacher, batches(), 5, lambda image: image.square(), temperature)
    images = torch.cat([image for image, _ in batches()])
    labels = torch.cat([label for _, label in batches()])
    for i, seen in enumerate((images, images.square())):
        logits = teacher(seen).detach()
        whole = conditional_mutual_information(logits, labels, 5, temperature)
        assert found.cmi[i] == pytest.approx(whole.total, rel=1e-6)
        assert found.entropy[i] == pytest.approx(slow_entropy(logits, temperature), rel=1e-6)
        others = slow_among_others(logits, labels, temperature)
        assert found.others[i] == pytest.approx(sum(others) / len(others), rel=1e-6)


@pytest.mark.parametrize("divided", [0.6, 1.0, 1.3, 5.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_lens_that_divides_the_logits_equals_that_temperature(
    divided: float, temperature: float
) -> None:
    found = measure_softening(network(), batches(), 5, lambda image: image / divided, temperature)
    assert found.factor == pytest.approx(divided, rel=0.01)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_factor_is_that_of_the_slow_entropies(temperature: float) -> None:
    teacher = network()
    found = measure_softening(teacher, batches(), 5, lambda image: 0.7 * image, temperature)
    logits = teacher(torch.cat([image for image, _ in batches()])).detach()
    slow = {factor: slow_entropy(logits, factor * temperature) for factor in FACTORS}
    expected = softening._factor_of(slow_entropy(0.7 * logits, temperature), slow)
    assert found.factor == pytest.approx(expected, rel=1e-6)


def test_class_statistics_are_kept_for_both_sides_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(ClassStatistics):
        def __init__(self, *arguments: float) -> None:
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(softening, "ClassStatistics", Counted)
    measure_softening(network(), batches(), 5, torch.square)
    assert len(made) == 2


@pytest.mark.parametrize("divided", [0.1, 100.0])
def test_beyond_the_factors_that_are_tried_there_is_none(divided: float) -> None:
    assert measure_softening(network(), batches(), 5, lambda x: x / divided).factor is None


def test_no_samples_have_no_entropy() -> None:
    with pytest.raises(DJIPError, match="of no samples"):
        ClassStatistics(3).entropy()
