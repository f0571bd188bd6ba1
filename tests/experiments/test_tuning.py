"""Choosing what goes before a teacher: a decision by pairs, within a budget, on held-out images."""

import math

import pytest
import torch
from scipy.stats import t as students_t

from djip_ext.bench.dataset.image_sets import hold_out, load_image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.temperature import distiller_temperature
from djip_ext.errors import DJIPError
from djip_ext.experiments.statistics import t_quantile
from djip_ext.experiments.tuning import (
    Candidate,
    candidates,
    choose,
    decided,
    differences,
    epochs_within,
    still_open,
)

PLAIN, LENS, JPEG = Candidate("plain", 1.0), Candidate("lens", 1.0), Candidate("jpeg", 1.0)


def scores(lens: list[float], jpeg: list[float]) -> dict[Candidate, dict[int, float]]:
    """Differences to a plain teacher whose students scatter by whole points."""
    plain = [30.0, 33.0, 28.0, 31.0, 35.0][: max(len(lens), len(jpeg))]
    rows = {
        PLAIN: plain,
        LENS: [p + gain for p, gain in zip(plain, lens, strict=False)],
        JPEG: [p + gain for p, gain in zip(plain, jpeg, strict=False)],
    }
    return {candidate: dict(enumerate(row)) for candidate, row in rows.items()}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30])
@pytest.mark.parametrize("confidence", [0.95, 0.975, 0.99])
def test_the_quantile_is_that_of_students_t(confidence: float, freedom: int) -> None:
    expected = students_t.ppf((1 + confidence) / 2, freedom)
    assert t_quantile(confidence, freedom) == pytest.approx(expected, rel=1e-10)


def test_intervals_hold_for_all_candidates_at_once() -> None:
    gains = differences(scores([1.0, 1.2, 0.8], [0.0, 0.1, -0.1]), PLAIN)
    alone = students_t.ppf(0.975, 2) * 0.2 / math.sqrt(3)
    together = students_t.ppf(1 - 0.05 / 2 / 2, 2) * 0.2 / math.sqrt(3)
    assert gains[LENS].mean == pytest.approx(1.0)
    assert gains[LENS].half_width == pytest.approx(together) and together > alone


def test_a_clear_gain_is_chosen() -> None:
    choice = choose(scores([2.0, 2.1, 1.9, 2.0], [0.5, -0.5, 0.0, 0.1]), PLAIN)
    assert choice.candidate == LENS and choice.gain is not None and choice.gain.n == 4


def test_noise_leaves_the_teacher_plain() -> None:
    choice = choose(scores([2.0, -1.0, 1.5, 0.2], [0.5, -0.5, 0.0, 0.1]), PLAIN)
    assert choice.candidate == PLAIN and choice.gain is None
    assert set(choice.differences) == {LENS, JPEG}


def test_two_pairs_decide_nothing_however_clear() -> None:
    two = scores([9.0, 9.0], [-9.0, -9.0])
    assert choose(two, PLAIN).candidate == PLAIN
    assert still_open(two, PLAIN) == [PLAIN, LENS, JPEG]


def test_a_candidate_that_is_clearly_worse_is_dropped() -> None:
    assert still_open(scores([0.1, -0.2, 0.2], [-3.0, -3.1, -2.9]), PLAIN) == [PLAIN, LENS]


def test_a_candidate_that_is_clearly_behind_the_leader_is_dropped() -> None:
    assert still_open(scores([3.0, 3.1, 2.9], [0.1, 0.0, 0.2]), PLAIN) == [PLAIN, LENS]


def test_what_was_dropped_neither_comes_back_nor_is_chosen() -> None:
    found = scores([5.0, 5.1, 4.9], [3.0, 3.1, 2.9])
    assert still_open(found, PLAIN) == [PLAIN, LENS]  # JPEG is behind it
    found[PLAIN][3], found[LENS][3] = 30.0, 31.0
    assert choose(found, PLAIN).candidate == PLAIN  # the lens is no longer better beyond noise
    assert choose(found, PLAIN).differences[JPEG].n == 3
    found[PLAIN][4], found[LENS][4] = 30.0, 20.0  # and now JPEG would lead
    assert still_open(found, PLAIN) == [PLAIN, LENS]
    assert choose(found, PLAIN).candidate == PLAIN


def test_it_ends_when_one_beats_the_baseline_and_the_others_are_dropped() -> None:
    assert decided(scores([3.0, 3.1, 2.9], [-3.0, -3.1, -2.9]), PLAIN)
    assert decided(scores([-3.0, -3.1, -2.9], [-3.0, -3.1, -2.9]), PLAIN)
    assert not decided(scores([0.5, -0.3, 0.2], [-3.0, -3.1, -2.9]), PLAIN)


def test_the_students_are_as_long_as_the_budget_allows() -> None:
    def price(epochs: int) -> float:
        return 10 + 9 * min(epochs, 20)  # what is kept costs nothing more

    assert epochs_within(100, price, 50) == 10
    assert epochs_within(190, price, 50) == 50
    assert epochs_within(15, price, 50) == 0


def test_every_arm_meets_every_temperature() -> None:
    pool = candidates(["plain", "lens"], [1.0, 4.0])
    assert len(pool) == 4 and str(pool[3]) == "lens at T = 4"


def test_held_out_images_are_training_images_that_are_left_out() -> None:
    whole = make_synthetic(per_class=10, seed=0)
    left, held = hold_out(whole, 0.2, seed=0)
    assert len(held.labels) == 0.2 * len(whole.labels)
    assert len(left.labels) + len(held.labels) == len(whole.labels)
    assert torch.equal(held.labels.bincount(), torch.full((whole.num_classes,), 2))
    known = {image.numpy().tobytes() for image in left.images}
    assert not any(image.numpy().tobytes() in known for image in held.images)


def test_with_a_holdout_no_test_image_is_seen() -> None:
    cfg = load_cfg(None, ["DATASET.TYPE", "synthetic", "BENCH.HOLDOUT", 0.25])
    train, held = load_image_sets(cfg)
    cfg.BENCH.HOLDOUT = 0.0
    whole, test = load_image_sets(cfg)
    seen = {image.numpy().tobytes() for image in test.images}
    assert len(train.labels) + len(held.labels) == len(whole.labels)
    assert not any(image.numpy().tobytes() in seen for image in held.images)


@pytest.mark.parametrize("fraction", [1.0, -0.1])
def test_a_holdout_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(DJIPError, match="BENCH.HOLDOUT"):
        hold_out(make_synthetic(per_class=4, seed=0), fraction, seed=0)


def test_a_holdout_that_empties_a_class_is_refused() -> None:
    with pytest.raises(DJIPError, match="every image of a class"):
        hold_out(make_synthetic(per_class=1, seed=0), 0.5, seed=0)


@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        (["DISTILLER.TYPE", "KD", "KD.TEMPERATURE", 1], 1.0),
        (["DISTILLER.TYPE", "DKD"], 4.0),
        (["DISTILLER.TYPE", "DIST"], 4.0),
        (["DISTILLER.TYPE", "WTTM", "WTTM.GAMMA", 0.5], 2.0),
        (["DISTILLER.TYPE", "LSKD"], None),
        (["DISTILLER.TYPE", "AT"], None),
    ],
)
def test_the_temperature_of_a_distiller(options: list, temperature: float | None) -> None:
    assert distiller_temperature(load_cfg(None, options)) == temperature
