"""What `djip fit` prints at the end."""

from pathlib import Path

import pytest

from djip_ext import JPEGLens
from djip_ext.cli.train_lens import report


def fitted(of_the_fit: tuple[float, float], of_all: tuple[float, float]) -> JPEGLens:
    """A lens whose fit moved CMI from and to these values, towards a gain of 0.2 to 0.4."""
    lens = JPEGLens()
    lens.metadata = {"teacher": "Network", "seconds": 1.0, "fit": {"cmi_gain": (0.2, 0.4)}}
    for name, values in (("fit_", of_the_fit), ("", of_all)):
        for when, cmi, accuracy in zip(("before", "after"), values, (80.0, 60.0), strict=True):
            lens.metadata[name + when] = {"cmi": cmi, "accuracy": accuracy}
    return lens


@pytest.mark.parametrize(
    "gain, cure", ((0.1, "a coarser --start"), (0.3, "another --cmi-gain"), (0.5, "another"))
)
def test_a_missed_band_or_floor_comes_with_what_to_try(
    gain: float, cure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lens = fitted((0.6, 0.6 + gain), (0.6, 0.6 + gain))
    report(tmp_path / "lens.safetensors", lens, in_band=False)
    assert f"Try more --rounds or {cure}" in capsys.readouterr().out
    report(tmp_path / "lens.safetensors", lens, in_band=True)
    assert "note:" not in capsys.readouterr().out


def test_the_band_is_that_of_the_images_of_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All images may gain less, or more, than those on which the band was measured."""
    lens = fitted((0.4, 0.7), (0.6, 0.7))
    report(tmp_path / "lens.safetensors", lens, in_band=False)
    assert "another --cmi-gain" in capsys.readouterr().out
