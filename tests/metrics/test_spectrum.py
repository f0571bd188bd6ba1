"""CMI over temperatures: each point is CMI at that temperature, all of them in one pass."""

import pytest
import torch
from helpers import reference
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.metrics.cmi import conditional_mutual_information
from djip_ext.metrics.spectrum import TEMPERATURES, cmi_spectrum, measure_spectrum


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 5
    return 3 * torch.randn(40, 5, generator=generator, dtype=torch.float64), labels


def test_every_point_is_the_cmi_of_the_double_loops_at_that_temperature() -> None:
    logits, labels = samples()
    found = cmi_spectrum(logits, labels, 5, [0.25, 1.0, 4.0])
    for temperature, value in found.items():
        assert value == pytest.approx(reference.cmi(logits, labels, 5, temperature)[0], rel=1e-10)


def test_the_grid_is_logarithmic_from_a_quarter_to_sixteen() -> None:
    ratios = [b / a for a, b in zip(TEMPERATURES[:-1], TEMPERATURES[1:], strict=True)]
    assert (TEMPERATURES[0], TEMPERATURES[-1]) == (0.25, 16.0)
    assert ratios == pytest.approx([2**0.5] * 12)
    assert {1.0, 2.0, 4.0} <= set(TEMPERATURES)


def test_a_pass_over_batches_equals_the_whole_set_at_once() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    images = torch.randn(40, 3, 2, 2)
    labels = samples()[1]
    loader = [(images[:7], labels[:7]), (images[7:], labels[7:])]
    found = measure_spectrum(network, loader, 5, lambda image: 2 * image)
    logits = network(2 * images).detach()
    assert list(found) == list(TEMPERATURES)
    for temperature, value in found.items():
        whole = conditional_mutual_information(logits, labels, 5, temperature)
        assert value == pytest.approx(whole.total, rel=1e-5)


def test_at_high_temperatures_it_is_the_variance_of_the_logits_over_twice_the_square() -> None:
    logits, labels = samples()
    centred = logits - logits.mean(1, keepdim=True)
    variance = torch.stack(
        [centred[labels == y].var(0, correction=0).mean() for y in range(5)]
    ).mean()
    found = cmi_spectrum(logits, labels, 5, [1000.0])[1000.0]
    assert found * 1000**2 == pytest.approx(float(variance) / 2, rel=0.02)


@pytest.mark.parametrize("temperatures", [[], [1.0, 0.0]])
def test_no_temperature_or_one_that_is_not_positive_is_refused(temperatures: list) -> None:
    with pytest.raises(DJIPError, match="temperature"):
        cmi_spectrum(*samples(), 5, temperatures)
