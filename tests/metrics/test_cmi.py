"""CMI, its classes and Gamma against loops over samples and pairs of samples."""

import math

import pytest
import torch
from helpers import reference
from torch import Tensor

from djip_ext import CMI, ClassStatistics, DJIPError, conditional_mutual_information


def samples(count: int = 40, num_classes: int = 5, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    labels = torch.cat(
        [torch.arange(num_classes), torch.randint(num_classes, (count - num_classes,))]
    )
    return torch.randn(count, num_classes) * spread, labels


@pytest.mark.parametrize("temperature", (1.0, 0.5, 4.0))
@pytest.mark.parametrize("spread", (0.1, 3.0, 20.0))
def test_total_classes_and_gamma_equal_the_double_loops(spread: float, temperature: float) -> None:
    logits, labels = samples(spread=spread)
    total, per_class, gamma = reference.cmi(logits, labels, 5, temperature)
    found = conditional_mutual_information(logits, labels, 5, temperature)
    assert found.total == pytest.approx(total, abs=1e-12, rel=1e-10)
    assert found.per_class.tolist() == pytest.approx(per_class, abs=1e-12, rel=1e-10)
    assert found.gamma == pytest.approx(gamma, rel=1e-10)
    assert found.ncmi == pytest.approx(total / gamma, rel=1e-10)


def test_centres_are_the_mean_predictions_of_the_classes() -> None:
    logits, labels = samples()
    found = conditional_mutual_information(logits, labels, 5)
    f = torch.softmax(logits.double(), 1)
    for y in range(5):
        torch.testing.assert_close(found.centres[y], f[labels == y].mean(0), atol=1e-14, rtol=0)
    assert found.counts.tolist() == [(labels == y).sum().item() for y in range(5)]


def test_classes_weigh_by_how_often_they_occur() -> None:
    logits, _ = samples(10, 2)
    labels = torch.tensor([0] * 8 + [1] * 2)
    found = conditional_mutual_information(logits, labels, 2)
    assert found.total == pytest.approx(
        0.8 * found.per_class[0].item() + 0.2 * found.per_class[1].item()
    )


@pytest.mark.parametrize("sizes", ((40,), (1,) * 40, (7, 0, 32, 1), (13, 27)))
def test_streaming_in_uneven_batches_equals_one_batch(sizes: tuple[int, ...]) -> None:
    logits, labels = samples()
    whole, streamed = conditional_mutual_information(logits, labels, 5), ClassStatistics(5)
    for batch in zip(logits.split(list(sizes)), labels.split(list(sizes)), strict=True):
        streamed.update(*batch)
    assert (streamed.result().total, streamed.result().gamma) == pytest.approx(
        (whole.total, whole.gamma), rel=1e-12
    )
    torch.testing.assert_close(streamed.result().per_class, whole.per_class, atol=1e-13, rtol=0)


def test_order_of_the_samples_does_not_matter() -> None:
    logits, labels = samples()
    order = torch.randperm(len(labels))
    shuffled = conditional_mutual_information(logits[order], labels[order], 5)
    assert shuffled.total == pytest.approx(
        conditional_mutual_information(logits, labels, 5).total, rel=1e-12
    )


def test_constant_added_to_a_sample_s_logits_changes_nothing() -> None:
    logits, labels = samples()
    moved = conditional_mutual_information(
        logits.double() + torch.randn(40, 1).double() * 9, labels, 5
    )
    assert moved.total == pytest.approx(
        conditional_mutual_information(logits, labels, 5).total, rel=1e-10
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", (1e-4, 1.0, 300.0))
def test_never_negative_and_at_most_the_logarithm_of_the_number_of_classes(
    spread: float, seed: int
) -> None:
    torch.manual_seed(seed)
    per_class = conditional_mutual_information(*samples(spread=spread), 5).per_class
    assert (per_class >= 0).all() and (per_class <= math.log(5)).all()


def test_zero_when_the_predictions_of_each_class_coincide() -> None:
    prototypes, labels = torch.randn(5, 5) * 4, torch.arange(5).repeat(9)
    found = conditional_mutual_information(prototypes[labels], labels, 5)
    assert found.total < 1e-12 and found.gamma > 0.1


def test_one_class_at_odds_with_itself_is_the_only_one_above_zero() -> None:
    logits, labels = torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])
    logits[0, 0], logits[1, 1] = 60.0, 60.0  # one-hot on either side of the centre (1/2, 1/2)
    found = conditional_mutual_information(logits, labels, 2)
    assert found.per_class.tolist() == pytest.approx([math.log(2), 0.0], abs=1e-12)


def test_class_without_samples_adds_nothing_and_has_a_uniform_centre() -> None:
    logits, labels = samples(30, 4)
    padded = torch.cat([logits, torch.full((30, 1), -1e4)], 1)
    found = conditional_mutual_information(padded, labels, 5)
    assert found.per_class[4] == 0 and found.counts[4] == 0
    assert found.centres[4].tolist() == pytest.approx([0.2] * 5)
    assert found.total == pytest.approx(
        conditional_mutual_information(logits, labels, 4).total, rel=1e-9
    )


def test_gamma_of_a_single_class_is_nan() -> None:
    found = conditional_mutual_information(torch.randn(6, 3), torch.zeros(6, dtype=torch.long), 3)
    assert math.isnan(found.gamma) and math.isnan(found.ncmi) and found.total > 0


def test_ncmi_of_a_network_that_always_answers_the_same_is_nan() -> None:
    logits = torch.tensor([[2000.0, 0.0], [2000.0, 0.0]])
    assert math.isnan(conditional_mutual_information(logits, torch.tensor([0, 1]), 2).ncmi)


def test_float16_logits_lose_only_their_own_rounding() -> None:
    logits, labels = samples()
    half = conditional_mutual_information(logits.half(), labels, 5)
    assert half.total == conditional_mutual_information(logits.half().double(), labels, 5).total


def test_overconfident_logits_stay_finite() -> None:
    found = conditional_mutual_information(
        torch.eye(3).repeat(4, 1) * 1e4, torch.arange(3).repeat(4).roll(1), 3
    )
    assert math.isfinite(found.total) and math.isfinite(found.gamma)


def test_labels_of_any_integer_type_are_taken() -> None:
    logits, labels = samples()
    assert (
        conditional_mutual_information(logits, labels.int(), 5).total
        == conditional_mutual_information(logits, labels, 5).total
    )


def test_result_can_be_read_before_the_end() -> None:
    logits, labels = samples()
    statistics = ClassStatistics(5)
    statistics.update(logits[:20], labels[:20])
    early: CMI = statistics.result()
    statistics.update(logits[20:], labels[20:])
    assert early.total == conditional_mutual_information(logits[:20], labels[:20], 5).total
    assert statistics.result().total == pytest.approx(
        conditional_mutual_information(logits, labels, 5).total, rel=1e-12
    )


def test_refuses_nothing_at_all() -> None:
    with pytest.raises(DJIPError, match="no samples"):
        ClassStatistics(3).result()


@pytest.mark.parametrize("poison", (math.nan, math.inf, -math.inf))
def test_refuses_logits_that_are_not_finite(poison: float) -> None:
    logits, labels = samples()
    logits[7, 2] = poison
    with pytest.raises(DJIPError, match="NaN or infinity"):
        conditional_mutual_information(logits, labels, 5)


def test_a_fault_is_told_at_the_first_batch_and_in_the_end_whenever_it_was() -> None:
    logits, labels = samples()
    bad = logits.index_fill(0, torch.tensor([1]), math.nan)
    with pytest.raises(DJIPError, match="NaN or infinity"):
        ClassStatistics(5).update(bad, labels)
    for number in range(2, 12):
        statistics = ClassStatistics(5)
        with pytest.raises(DJIPError, match="NaN or infinity"):
            for batch in range(1, 12):
                statistics.update(bad if batch == number else logits, labels)
            statistics.result()


@pytest.mark.parametrize("num_classes", (4, 6))
def test_refuses_logits_of_another_number_of_classes(num_classes: int) -> None:
    with pytest.raises(DJIPError, match=f"num_classes is {num_classes}"):
        conditional_mutual_information(*samples(), num_classes)


@pytest.mark.parametrize("label", (-1, 5))
def test_refuses_labels_out_of_range(label: int) -> None:
    logits, labels = samples()
    labels[3] = label
    with pytest.raises(DJIPError, match=r"1 labels lie outside of 0 \.\. 4"):
        conditional_mutual_information(logits, labels, 5)


def test_refuses_as_many_labels_as_there_are_not_logits() -> None:
    logits, labels = samples()
    with pytest.raises(DJIPError, match="for labels"):
        conditional_mutual_information(logits, labels[:-1], 5)


@pytest.mark.parametrize("temperature", (0.0, -1.0, math.nan))
def test_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    with pytest.raises(DJIPError, match="temperature"):
        ClassStatistics(3, temperature)


@pytest.mark.parametrize("labels", (torch.tensor([0.0, 0.7, 1.0, 1.0]), torch.ones(4).half()))
def test_labels_that_are_no_class_numbers_are_refused(labels: Tensor) -> None:
    with pytest.raises(DJIPError, match="labels are torch.float.*integers"):
        conditional_mutual_information(torch.zeros(4, 2), labels, 2)


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int32, torch.int64))
def test_labels_may_be_integers_of_any_type(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 1, 0], dtype=dtype)
    assert conditional_mutual_information(torch.zeros(4, 2), labels, 2).counts.tolist() == [2, 2]
