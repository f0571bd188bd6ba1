"""The pictures hold what they promise, and drawing them leaves a user's matplotlib alone."""

import math
import sys

import matplotlib
import pytest
import torch
from torch import Tensor

from djip_ext.errors import DJIPError
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.metrics.class_simplex import Answers, OneClass
from djip_ext.metrics.cmi import CMI, conditional_mutual_information
from djip_ext.plots.cmi import cmi_figure
from djip_ext.plots.comparison import comparison_figure
from djip_ext.plots.images import images_figure
from djip_ext.plots.lens import fit_figure, simplex_figure, step_text, tables_figure
from djip_ext.plots.style import save_figure
from djip_ext.plots.table import axis_figure

HISTORY = [
    {
        "round": i,
        "cmi": 0.1 * i,
        "ce": 0.2,
        "accuracy": 95.0 - i,
        "lam": 1.0 - i,
        "q_low": 1 / (i + 1),
        "q_high": 1.0 + i,
    }
    for i in range(4)
]


def texts(axes: matplotlib.axes.Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def measured(scale: float, counts: tuple[int, ...] = (6, 6, 6)) -> CMI:
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return conditional_mutual_information(
        scale * torch.randn(len(labels), len(counts), generator=generator), labels, len(counts)
    )


def test_tables_write_every_step_and_frame_the_dead_ones() -> None:
    lens = JPEGLens(torch.linspace(0.1, 20, 128).view(2, 8, 8))
    luma, chroma, _ = tables_figure(lens, "a title").axes
    assert texts(luma) == [step_text(q) for q in lens.q[0].flatten().tolist()]
    assert texts(chroma) == [step_text(q) for q in lens.q[1].flatten().tolist()]
    assert (
        len(luma.patches) + len(chroma.patches)
        == lens.dead().sum()
        == lens.health(torch.rand(1, 3, 8, 8) * 255)["dead"]
        > 0
    )


@pytest.mark.parametrize(
    "lens", [JPEGLens(0.1, hard=True), JPEGLens(0.1, kappa=2.0), JPEGLens(4.0)]
)
def test_tables_without_dead_steps_have_no_frames(lens: JPEGLens) -> None:
    luma, chroma, _ = tables_figure(lens, "equal steps").axes
    assert len(luma.texts) == len(chroma.texts) == 64
    assert not luma.patches and not chroma.patches


@pytest.mark.parametrize("step", [1e-5, 0.00049, 0.9996, 1.0, 9.996, 12.34, 255.0])
def test_a_step_fits_its_cell_and_can_be_read_back(step: float) -> None:
    assert len(step_text(step)) <= 5
    assert float(step_text(step)) == pytest.approx(step, rel=0.05)


def test_images_stand_above_what_the_lens_makes_of_them_and_the_amplified_difference() -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    figure = images_figure(images, images.float() + 3, ["a", "b", "c"])
    original, lensed, difference = (figure.axes[i].images[0].get_array() for i in (0, 3, 6))
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]
    assert torch.equal(torch.as_tensor(original), images[0].permute(1, 2, 0))
    assert torch.equal(
        torch.as_tensor(lensed), (images[0].permute(1, 2, 0).int() + 3).clamp(max=255).byte()
    )
    assert "× 32" in texts(figure.axes[6])[0]
    assert (torch.as_tensor(difference) == 128 + 32 * 3).all()


def test_more_than_eight_images_continue_below() -> None:
    images = torch.zeros(10, 3, 8, 8)
    figure = images_figure(images, images, [str(i) for i in range(10)])
    assert sum(len(axes.images) for axes in figure.axes) == 30
    assert figure.axes[24].get_title() == "8"


def test_cmi_pairs_the_classes_in_order_of_the_lens_and_leaves_out_empty_ones() -> None:
    before, after = measured(0.5, (6, 0, 6, 6)), measured(2.0, (6, 0, 6, 6))
    (axes,) = cmi_figure(before, after, ["a", "b", "c", "d"]).axes
    plain, lens = (points.get_offsets()[:, 1].tolist() for points in axes.collections[1:])
    order = ["abcd".index(label.get_text()) for label in axes.get_xticklabels()]
    assert sorted(order) == [0, 2, 3]
    assert lens == sorted(lens) == pytest.approx(after.per_class[order].tolist())
    assert plain == pytest.approx(before.per_class[order].tolist())
    assert f"{before.total:.4f} → {after.total:.4f} nats" in axes.get_title()


def test_the_fit_shows_its_five_quantities_with_band_floor_and_choice() -> None:
    cmi, accuracy, ce, price, steps = fit_figure(HISTORY, (0.15, 0.25), 90.0, chosen=2).axes
    assert [axes.get_ylabel() for axes in (cmi, accuracy, ce, price)] == [
        "CMI [nats]",
        "accuracy [%]",
        "cross entropy [nats]",
        "λ",
    ]
    assert cmi.lines[0].get_ydata() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert texts(cmi) == ["target 0.15 to 0.25"] and texts(accuracy) == ["floor 90.0 %"]
    assert [line.get_ydata()[-1] for line in steps.lines[:2]] == [0.25, 4.0]
    assert all(
        list(axes.lines[-1].get_xdata()) == [2, 2] for axes in (cmi, accuracy, ce, price, steps)
    )


def test_a_fit_of_one_measurement_can_be_drawn() -> None:
    assert len(fit_figure(HISTORY[:1], (0.1, 0.2), 90.0).axes) == 5


def test_a_comparison_joins_seeds_and_writes_the_paired_difference_out() -> None:
    figure = comparison_figure(
        {"plain": [50.0, 51.0, 52.0], "lens": [51.0, 52.5, 52.5]}, "accuracy [%]", "KD"
    )
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [
        [50.0, 51.0],
        [51.0, 52.5],
        [52.0, 52.5],
    ]
    plain, lens = (label.get_text() for label in axes.get_xticklabels())
    assert plain == "plain\nmean 51.00\nreference"
    assert lens == "lens\nmean 52.00\ndifference +1.00 [−0.24, +2.24]"


def test_one_seed_has_a_difference_but_no_interval() -> None:
    (axes,) = comparison_figure({"plain": [50.0], "lens": [51.0]}, "accuracy [%]", "KD").axes
    assert axes.get_xticklabels()[1].get_text().endswith("difference +1.00")


def test_an_axis_none_of_whose_values_was_run_in_both_arms_says_so() -> None:
    same = {"teacher": "t", "student": "s", "distiller": "KD"}
    rows = [
        {**same, "arm": "plain", "lr": "", "pairs": "", "last_acc_diff": "", "last_acc_ci95": ""},
        {**same, "arm": "lens", "lr": "", "pairs": 2, "last_acc_diff": 1.0, "last_acc_ci95": 0.5},
        {**same, "arm": "plain", "lr": 0.1, "pairs": "", "last_acc_diff": "", "last_acc_ci95": ""},
    ]
    figure = axis_figure(rows, ["plain", "lens"], "lr", ["lr"])
    (note,) = [text.get_text() for text in figure.texts if text is not figure._suptitle]
    assert note == "no value of lr was run in plain and in another arm"


@pytest.mark.parametrize("arms", [{}, {"a": []}, {"a": [1.0, 2.0], "b": [1.0]}])
def test_a_comparison_needs_the_same_seeds_in_every_arm(arms: dict[str, list[float]]) -> None:
    with pytest.raises(DJIPError, match="same seeds"):
        comparison_figure(arms, "", "")


def corners(sharpness: float) -> Tensor:
    """Probabilities (20, 3) of a class and its rivals, which leave some to a fourth."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(20, 4, generator=generator) + sharpness * torch.tensor([1.0, 0.5, 0.3, -4.0])
    ).softmax(1)[:, :3]


def test_the_simplex_spans_the_class_and_its_two_rivals() -> None:
    before, after = corners(4.0), corners(0.1)
    figure = simplex_figure(
        OneClass(("c", "a", "d"), 4.0, Answers(0.1, 100.0, before), Answers(0.5, 60.0, after))
    )
    assert (
        "20 images of class “c”" in figure.get_suptitle()
        and "0.100 → 0.500 nats" in figure.get_suptitle()
        and "T = 4" in figure.get_suptitle()
    )
    for axes, f, right in zip(figure.axes, (before, after), (100, 60), strict=True):
        assert texts(axes) == ["c", "a", "d"]
        assert (
            f"{right} % right" in axes.get_title()
            and f"hold {100 * f.sum(1).mean():.0f} %" in axes.get_title()
        )
        samples, centre = (torch.as_tensor(points.get_offsets()) for points in axes.collections)
        assert len(samples) == 20
        height = f[:, 0] / f.sum(1) * math.sqrt(0.75)
        assert torch.allclose(samples[:, 1].float(), height, atol=1e-5)
        mean = f.mean(0)
        assert centre[0, 1].item() == pytest.approx(
            (mean[0] / mean.sum()).item() * math.sqrt(0.75), abs=1e-5
        )


def test_a_user_s_style_and_pyplot_stay_out_of_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        figure = comparison_figure({"plain": [1.0], "lens": [2.0]}, "", "")
        save_figure(figure, tmp_path / "picture.png")
        assert matplotlib.rcParams["font.size"] == 30
    assert figure.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    figure = comparison_figure({"plain": [1.0], "lens": [2.0]}, "", "")
    path = save_figure(figure, tmp_path / "new" / "picture.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5000

    def full_disk(target, **_) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(DJIPError, match="No space left"):
        save_figure(figure, path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
