"""The numbers of a fit: what cannot be one is a line that names it, numpy's become plain ones."""

import math
from typing import Any

import numpy as np
import pytest

from djip_ext import DJIPError, FitSettings


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_accuracy_drop", -5.0),
        ("max_accuracy_drop", 100.5),
        ("max_accuracy_drop", math.nan),
        ("lam", math.nan),
        ("lam", "high"),
        ("lam_max", math.inf),
        ("lr", math.inf),
        ("lr", "0.1"),
        ("lr", -0.1),
        ("temperature", None),
        ("ce_weight", math.nan),
        ("q_min", 300.0),
        ("q_min", 1e-6),
        ("q_min", math.nan),
        ("rounds", 2.5),
        ("rounds", 3.0),
        ("rounds", "3"),
        ("patience", 0.5),
        ("refresh", 1.5),
        ("seed", 0.5),
        ("seed", None),
        ("cmi_gain", 0.3),
        ("cmi_gain", (0.1, 0.2, 0.3)),
        ("cmi_gain", (0.1, math.nan)),
        ("cmi_gain", (0.1, math.inf)),
        ("cmi_gain", "12"),
        ("cmi_gain", None),
    ],
)
def test_what_no_fit_can_use_is_one_line_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(DJIPError, match=f"^{name} is ") as caught:
        FitSettings(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, value",
    [("max_accuracy_drop", 0), ("max_accuracy_drop", 100), ("q_min", 255), ("q_min", 1e-5)],
)
def test_the_ends_of_a_range_belong_to_it(name: str, value: float) -> None:
    assert getattr(FitSettings(**{name: value}), name) == value


def test_numpy_numbers_become_plain_ones() -> None:
    given = {
        "cmi_gain": np.array([0.25, 0.5]),
        "max_accuracy_drop": np.float32(5),
        "lam": np.float64(0.5),
        "lr": np.float16(0.25),
        "rounds": np.int64(3),
        "patience": np.uint8(2),
        "seed": np.int32(7),
    }
    plain = FitSettings(
        cmi_gain=(0.25, 0.5), max_accuracy_drop=5.0, lam=0.5, lr=0.25, rounds=3, patience=2, seed=7
    )
    found = FitSettings(**given)
    assert found == plain
    for name, value in vars(plain).items():
        assert type(getattr(found, name)) is type(value), name
    assert [type(value) for value in found.cmi_gain] == [float, float]
