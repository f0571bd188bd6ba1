"""What a lens file can hold, and what is refused before anything is written."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from djip_ext import DJIPError, JPEGLens, load_lens
from djip_ext.lens.io import lens_id


@pytest.mark.parametrize(
    "step, found",
    (
        (300.0, "8 .. 300"),
        (math.nextafter(255.0, 256.0) + 2e-5, "8 .. 255.00002"),  # one float32 beyond
        (0.0, "0 .. 8"),
        (-4.0, "-4 .. 8"),
        (math.nan, "nan .. nan"),
        (math.inf, "8 .. inf"),
    ),
)
def test_steps_outside_of_the_range_are_not_saved(tmp_path: Path, step: float, found: str) -> None:
    lens, path = JPEGLens(8.0), tmp_path / "a.lens"
    lens.save(path)
    before = path.read_bytes()
    with torch.no_grad():
        lens.q[0, 3, 3] = step
    with pytest.raises(DJIPError, match=r"\[1e-05, 255\].* lens.q.clamp_") as caught:
        lens.save(path)
    assert found in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.lens"]


@pytest.mark.parametrize("frozen", (False, True))
@pytest.mark.parametrize("step", (1e-5, 255.0))
def test_the_ends_of_the_range_are_saved_and_loaded_as_they_are(
    tmp_path: Path, step: float, frozen: bool
) -> None:
    lens = JPEGLens(step).double()
    lens = lens.freeze() if frozen else lens
    lens.save(tmp_path / "a.lens")
    assert lens_id(load_lens(tmp_path / "a.lens")) == lens_id(lens)


@pytest.mark.parametrize(
    "value, kind",
    ((Path("x"), "Path"), (np.float32(0.1), "float32"), (torch.ones(2), "Tensor"), ({1}, "set")),
)
def test_metadata_that_are_no_json_are_refused(tmp_path: Path, value: Any, kind: str) -> None:
    lens = JPEGLens(8.0)
    lens.metadata = {"deep": [{"note": value}]}
    with pytest.raises(DJIPError, match=f"metadata .*{kind}.*; keep"):
        lens.save(tmp_path / "new" / "a.lens")
    assert not os.listdir(tmp_path)


def test_metadata_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    lens = JPEGLens(8.0)
    lens.metadata = {"me": lens.metadata}
    lens.metadata["me"]["me"] = lens.metadata
    with pytest.raises(DJIPError, match="metadata .*Circular"):
        lens.save(tmp_path / "a.lens")
