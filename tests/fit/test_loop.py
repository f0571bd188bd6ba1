"""The fit: it raises CMI, meets its band, leaves the teacher alone, survives interruptions."""

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.textures import CLASSES, MEAN, QUICK, STD, Teacher, data, fit
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from djip_ext import DJIPError, DJIPTeacher, FitSettings, JPEGLens, fit_lens
from djip_ext.bench.dataset.imageset import ImageSet
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.fit import loop
from djip_ext.fit.checkpoint import LAST_DIGITS, ImageSums
from djip_ext.fit.loop import default_start
from djip_ext.fit.objective import lens_objective
from djip_ext.lens.io import lens_id, load_lens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.metrics.measurement import measure


class Stop(Exception):
    """Interrupts a fit."""


def interrupted(checkpoint: Path, **settings: object) -> None:
    """Leave the checkpoint of a fit that was stopped in its third round."""

    def stop(row: dict[str, float]) -> None:
        if row["round"] == 2:
            raise Stop

    with pytest.raises(Stop):
        fit(checkpoint=checkpoint, log=stop, **settings)


def test_cmi_rises_when_the_cross_entropy_is_off() -> None:
    result = fit(ce_weight=0.0, lam=1.0, rounds=4, cmi_gain=(1e-4, 10.0))
    cmi = [row["cmi"] for row in result.history]
    assert cmi[-1] > cmi[0] + 0.003


def test_lambda_zero_never_pays_cross_entropy_for_cmi() -> None:
    result = fit(lam=0.0, lens=JPEGLens(q=60.0, kappa=5.0), rounds=4)
    assert result.history[-1]["ce"] < result.history[0]["ce"]


def test_the_controller_settles_near_the_middle_of_the_band() -> None:
    result = fit(rounds=12, cmi_gain=(0.002, 0.004))
    gain = result.after.cmi.total - result.before.cmi.total
    assert result.in_band and 0.002 <= gain <= 0.004


def test_a_round_above_the_accuracy_floor_is_preferred_to_any_in_the_band() -> None:
    how = {"lr": 3.0, "q_min": 2.0, "cmi_gain": (0.02, 0.2)}
    free, strict = fit(**how), fit(**how, max_accuracy_drop=0.0)
    assert free.in_band and free.after.accuracy < free.before.accuracy
    assert strict.after.accuracy == strict.before.accuracy and not strict.in_band


def test_of_the_rounds_in_the_band_the_one_that_paid_least_per_nat_is_taken() -> None:
    result = fit(rounds=12, cmi_gain=(1e-4, 10.0))
    plain = result.before
    gains = {row["round"]: row["cmi"] - plain.cmi.total for row in result.history}
    prices = {
        row["round"]: (row["ce"] - plain.ce) / gains[row["round"]]
        for row in result.history
        if gains[row["round"]] >= 1e-4
    }
    assert result.chosen == min(prices, key=prices.__getitem__)
    assert result.chosen not in (min(prices), max(prices, key=gains.__getitem__))


def test_the_chosen_lens_measures_what_the_result_says() -> None:
    result, loader, normalisation = fit(), data(), Normalisation(MEAN, STD)
    with torch.no_grad():
        again = measure(
            Teacher().eval(), loader, CLASSES, lambda x: normalisation.through(result.lens, x)
        )
    assert again.cmi.total == result.after.cmi.total and again.ce == result.after.ce
    assert result.lens.metadata["after"]["cmi"] == result.after.cmi.total


def test_no_rounds_only_measures_the_start() -> None:
    start = JPEGLens(q=7.0)
    result = fit(rounds=0, lens=start)
    assert torch.equal(result.lens.q, start.q) and len(result.history) == 1


def test_the_teacher_keeps_weights_statistics_mode_and_flags() -> None:
    teacher = Teacher().train()
    teacher.fc.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    fit_lens(teacher, data(), CLASSES, mean=MEAN, std=STD, **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training and teacher.bn.training
    assert teacher.fc.weight.requires_grad and not teacher.fc.bias.requires_grad
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_given_lens_is_not_changed() -> None:
    start = JPEGLens(q=8.0, kappa=5.0)
    result = fit(lens=start)
    assert torch.equal(start.q, torch.full((2, 8, 8), 8.0)) and not torch.equal(
        result.lens.q, start.q
    )


def test_steps_stay_between_their_smallest_and_255() -> None:
    result = fit(lr=3.0, q_min=2.0)
    assert result.lens.q.min() >= 2.0 * (1 - 1e-6) and result.lens.q.max() <= 255.0


AT_THE_END: list[dict[str, Any]] = [
    {"lens": JPEGLens(q=200.0, kappa=5.0), "lr": 3.0, "cmi_gain": (9.0, 10.0)},
    {"lens": JPEGLens(q=255.0, kappa=5.0), "tables": "one", "rounds": 0},
]


@pytest.mark.parametrize("settings", AT_THE_END)
def test_the_lens_that_is_returned_is_the_one_that_is_saved(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    lens = fit(**settings).lens
    assert lens.q.max() == 255.0  # exp(ln 255) exceeds it by the last digit of a float32
    path = tmp_path / "lens.safetensors"
    lens.save(path)
    assert lens_id(load_lens(path)) == lens_id(lens)


@pytest.mark.parametrize("settings", AT_THE_END)
def test_a_checkpoint_of_steps_above_255_goes_on_within_the_range(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path, whole = tmp_path / "fit.pth", fit(**settings)
    if settings.get("rounds") == 0:
        fit(**settings, checkpoint=path)
    else:
        interrupted(path, **settings)
    state = torch.load(path, weights_only=True)
    above = 255.00001525878906  # as older versions left it
    assert (state["q"] == 255.0).any()
    for tables in (state["q"], state["best"]["tables"]):
        tables[tables == 255.0] = above
    start = state["identity"]["start"]
    if settings.get("tables") == "one":
        state["identity"]["start"] = [above if step == 255.0 else step for step in start]
    torch.save(state, path)
    resumed = fit(**settings, checkpoint=path)
    assert torch.equal(resumed.lens.q, whole.lens.q)
    assert resumed.history[-1]["q_high"] == 255.0


def test_equal_seeds_give_equal_lenses() -> None:
    assert torch.equal(fit(seed=5).lens.q, fit(seed=5).lens.q)


def test_a_shuffling_loader_is_read_in_an_order_that_only_the_seed_sets() -> None:
    x, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))

    def shuffled() -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, labels), 8, shuffle=True
        )

    torch.manual_seed(1)
    first = fit(shuffled(), seed=2).lens.q
    torch.manual_seed(9)
    assert torch.equal(first, fit(shuffled(), seed=2).lens.q)
    assert not torch.equal(first, fit(shuffled(), seed=3).lens.q)


def test_literal_needs_indices_and_uses_them() -> None:
    with pytest.raises(DJIPError, match="ind"):
        fit(variant="literal")
    assert (
        fit(data(indexed=True), variant="literal").history[-1]["cmi"]
        != fit(data(indexed=True)).history[-1]["cmi"]
    )


def third(convert: Callable[[Tensor], Any]) -> list[Any]:
    """The images of a fit with ``convert(index)`` as the third entry of each batch."""
    return [(image, label, convert(index)) for image, label, index in data(indexed=True)]


def numbered_per_batch(index: Tensor) -> Tensor:
    return index % 8


@pytest.mark.parametrize("convert", [lambda index: index // 2, numbered_per_batch])
def test_images_that_share_an_index_are_refused(convert: Callable[[Tensor], Any]) -> None:
    with pytest.raises(DJIPError, match="24 images .* give each image its own index third"):
        fit(third(convert), variant="literal")


@pytest.mark.parametrize(
    "convert",
    [
        lambda index: tuple(f"{i}.png" for i in index),
        lambda index: index.float(),
        lambda index: index > 3,
        lambda index: index[:3],
        lambda index: {"index": index},
        lambda index: [[1, 2], [3]],
    ],
)
def test_what_is_no_index_is_refused_where_it_is_needed(convert: Callable[[Tensor], Any]) -> None:
    with pytest.raises(DJIPError, match="give each image its own index third") as caught:
        fit(third(convert), variant="literal")
    assert "\n" not in str(caught.value)
    assert torch.equal(fit(third(convert)).lens.q, fit().lens.q)  # nobody reads it there


@pytest.mark.parametrize(
    "convert",
    [Tensor.tolist, Tensor.numpy, Tensor.int, list, tuple, lambda index: index[:, None]],
)
def test_an_index_may_be_a_tensor_an_array_or_a_list(convert: Callable[[Tensor], Any]) -> None:
    expected = fit(third(lambda index: index), variant="literal")
    assert torch.equal(fit(third(convert), variant="literal").lens.q, expected.lens.q)


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> list[inspect.BoundArguments]:
    """What every step of a fit gives to its objective."""
    calls: list[inspect.BoundArguments] = []

    def recorded(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(inspect.signature(lens_objective).bind(*arguments))
        return lens_objective(*arguments)

    monkeypatch.setattr(loop, "lens_objective", recorded)
    return calls


def test_fixed_keeps_the_plain_teachers_centres(objectives: list[inspect.BoundArguments]) -> None:
    plain = fit(variant="fixed", lens=JPEGLens(q=40.0, kappa=5.0)).before.cmi.centres
    assert len(objectives) == 9
    assert all(torch.equal(step.arguments["centres"], plain) for step in objectives)


def test_cmi_is_raised_and_measured_at_the_temperature(
    objectives: list[inspect.BoundArguments],
) -> None:
    result, normalisation = fit(temperature=4.0, rounds=1), Normalisation(MEAN, STD)
    assert [step.arguments["temperature"] for step in objectives] == [4.0] * 3
    with torch.no_grad():
        for found, view in (
            (result.before, None),
            (result.after, lambda image: normalisation.through(result.lens, image)),
        ):
            expected = measure(Teacher().eval(), data(), CLASSES, view, temperature=4.0)
            assert found.cmi.total == expected.cmi.total


def test_the_learning_rate_decays_as_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[0]["lr"])
    )
    fit(rounds=4, lr=0.2)
    assert rates[::3] == rates[2::3] == pytest.approx([0.2, 0.1707107, 0.1, 0.0292893])


def test_centres_are_refreshed_every_so_many_rounds() -> None:
    settings = {"lam": 1.0, "lens": JPEGLens(q=40.0, kappa=5.0), "lr": 0.2}

    def drift(refresh: int) -> list[float]:
        return [row["cmi"] for row in fit(rounds=4, refresh=refresh, **settings).history]

    every, second, never = drift(1), drift(2), drift(9)
    assert every[:2] == second[:2] == never[:2]  # all start from fresh centres
    assert every[2] != second[2] == never[2]  # the second round's are new, or still the first's
    assert second[3] != never[3]  # the third round's are new, or still the first's


def shuffled() -> DataLoader:
    return DataLoader(TensorDataset(*map(torch.cat, zip(*data(), strict=True))), 8, shuffle=True)


def shuffled_on_the_device() -> DeviceLoader:
    image, labels = map(torch.cat, zip(*data(), strict=True))
    pixels = Normalisation(MEAN, STD).to_pixels(image).round().byte().permute(0, 2, 3, 1)
    return DeviceLoader(ImageSet(pixels, labels, CLASSES, MEAN, STD), 8, shuffle=True)


@pytest.mark.parametrize("loader", [data, shuffled, shuffled_on_the_device])
def test_a_fit_with_stale_centres_resumes_to_the_same_lens(
    loader: Callable[[], Any], tmp_path: Path
) -> None:
    settings = {"rounds": 4, "refresh": 3, "lam": 1.0}
    interrupted(tmp_path / "fit.pth", loader=loader(), **settings)
    resumed = fit(loader(), checkpoint=tmp_path / "fit.pth", **settings)
    whole = fit(loader(), **settings)
    assert torch.equal(resumed.lens.q, whole.lens.q)
    assert [row["cmi"] for row in resumed.history] == [row["cmi"] for row in whole.history]


def test_one_table_for_all_channels_starts_from_the_mean_and_stays_one() -> None:
    start = JPEGLens(torch.stack([torch.full((8, 8), 12.0), torch.full((8, 8), 27.0)]), kappa=5.0)
    result = fit(tables="one", lens=start, ce_weight=0.0, lam=1.0, cmi_gain=(0.001, 10.0))
    assert result.history[0]["q_low"] == result.history[0]["q_high"] == pytest.approx(18.0)
    assert result.chosen > 0 and torch.equal(result.lens.q[0], result.lens.q[1])
    assert result.lens.q.max() > 1.5 * result.lens.q.min()


def test_one_table_follows_the_gradients_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    start, steps = JPEGLens(q=6.0, kappa=5.0), []
    monkeypatch.setattr(
        torch.optim.Adam,
        "step",
        lambda self: steps.append(self.param_groups[0]["params"][0].grad.clone()),
    )
    fit(lens=start, rounds=1)
    fit(lens=start, rounds=1, tables="one")
    both, one = steps[0], steps[len(steps) // 2]
    torch.testing.assert_close(one, (both[0] + both[1]).expand(2, 8, 8))


@pytest.mark.parametrize("value", [0, 2])
def test_a_refresh_that_means_nothing_is_refused(value: int) -> None:
    with pytest.raises(DJIPError, match=f"refresh is {value}"):
        FitSettings(variant="fixed", refresh=value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("tables", "three"),
        ("variant", "stale"),
        ("precision", "int8"),
        ("cmi_gain", (0.3, 0.1)),
        ("lr", 0.0),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(DJIPError, match=name):
        FitSettings(**{name: value})


def test_nan_from_the_teacher_is_refused() -> None:
    teacher = Teacher()
    with torch.no_grad():
        teacher.fc.bias[0] = float("nan")
    with pytest.raises(DJIPError, match="NaN"):
        fit_lens(teacher, data(), CLASSES, mean=MEAN, std=STD, **QUICK)


def test_a_wrong_number_of_classes_is_refused() -> None:
    with pytest.raises(DJIPError, match="num_classes is 7"):
        fit_lens(Teacher(), data(), 7, mean=MEAN, std=STD, **QUICK)


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(DJIPError, match="empty"):
        fit_lens(Teacher(), [], CLASSES, mean=MEAN, std=STD, **QUICK)


class Changing:
    """Another set from the third pass on.

    The first two measure the teacher, without the lens and with it.
    """

    def __init__(self) -> None:
        self.passes, self.batches = 0, data(indexed=True)

    def __iter__(self):
        self.passes += 1
        for image, label, index in self.batches:
            yield (
                (image, label.clamp(max=1), index)
                if self.passes < 3
                else (image, label.clamp(min=1), index + 1)
            )


@pytest.mark.parametrize(
    "variant, what", [("fresh", "classes"), ("fixed", "classes"), ("literal", "images")]
)
def test_a_loader_whose_set_changes_between_passes_is_refused(variant: str, what: str) -> None:
    with pytest.raises(
        DJIPError, match=f"second pass holds {what} that its first did not; every pass must"
    ):
        fit(Changing(), variant=variant)


def test_a_hard_lens_is_refused() -> None:
    with pytest.raises(DJIPError, match="hard"):
        fit(lens=JPEGLens(q=4.0, hard=True))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_or_foreign_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "fit.pth"
    if content is None:
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(DJIPError, match="fit.pth"):
        fit(checkpoint=path)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    fit(checkpoint=tmp_path / "fit.pth")
    with pytest.raises(DJIPError, match="settings"):
        fit(checkpoint=tmp_path / "fit.pth", lr=0.2)


def test_a_checkpoint_of_another_quantizer_batch_size_or_set_is_refused(tmp_path: Path) -> None:
    def loader(images: int, batch: int) -> DataLoader:
        x, labels = (torch.cat(parts) for parts in zip(*data(images), strict=True))
        return DataLoader(TensorDataset(x, labels), batch)

    path = tmp_path / "fit.pth"
    fit(loader(24, 8), rounds=3, checkpoint=path)
    assert len(fit(loader(24, 8), rounds=3, checkpoint=path).history) == 4
    with pytest.raises(DJIPError, match="another quantizer"):
        fit(loader(24, 8), rounds=3, checkpoint=path, lens=JPEGLens(q=default_start().q, alpha=5.0))
    with pytest.raises(DJIPError, match="another batch size"):
        fit(loader(24, 6), rounds=3, checkpoint=path)
    with pytest.raises(DJIPError, match="begun on other images .16 images.* 24"):
        fit(loader(16, 8), rounds=3, checkpoint=path)
    others = [(image + 1, label) for image, label in data()]
    with pytest.raises(DJIPError, match="begun on other images"):
        fit(
            DataLoader(
                TensorDataset(*(torch.cat(parts) for parts in zip(*others, strict=True))), 8
            ),
            rounds=3,
            checkpoint=path,
        )
    with pytest.raises(DJIPError, match="another scale"):
        fit_lens(
            Teacher(),
            loader(24, 8),
            CLASSES,
            mean=MEAN,
            std=(0.2, 0.2, 0.2),
            checkpoint=path,
            **QUICK,
        )


class Margin(Teacher):
    """Does not see the first column of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., 1:])


def test_other_images_of_equal_cross_entropy_are_refused(tmp_path: Path) -> None:
    path, how = tmp_path / "fit.pth", {"mean": MEAN, "std": STD, **QUICK, "rounds": 1}
    others = [
        (torch.cat([image[..., :1].flip(2), image[..., 1:]], -1), label) for image, label in data()
    ]
    first = fit_lens(Margin(), data(), CLASSES, checkpoint=path, **how)
    assert fit_lens(Margin(), others, CLASSES, **how).before.ce == first.before.ce
    with pytest.raises(DJIPError, match="begun on other images"):
        fit_lens(Margin(), others, CLASSES, checkpoint=path, **how)
    assert fit_lens(Margin(), data()[::-1], CLASSES, checkpoint=path, **how).history
    state = torch.load(path, weights_only=True)
    del state["images"]  # as an older version wrote it: what it lacks counts as equal
    torch.save(state, path)
    assert fit_lens(Margin(), others, CLASSES, checkpoint=path, **how).history


def test_other_labels_of_equal_cross_entropy_are_refused(tmp_path: Path) -> None:
    teacher, path = Teacher(), tmp_path / "fit.pth"
    nn.init.zeros_(teacher.fc.weight)
    nn.init.zeros_(teacher.fc.bias)
    how = {"mean": MEAN, "std": STD, "checkpoint": path, **QUICK, "rounds": 0}
    fit_lens(teacher, data(), CLASSES, **how)
    others = [(image, label.clamp(max=1)) for image, label in data()]
    with pytest.raises(DJIPError, match="begun on other images"):
        fit_lens(teacher, others, CLASSES, **how)


def test_images_are_known_again_in_any_order_and_batches() -> None:
    images = torch.cat([image for image, _ in data()])

    def sums(images: Tensor, batch: int) -> Tensor:
        found = ImageSums()
        assert all(found(part) is part for part in images.split(batch))
        return found.total()

    known = sums(images, 8)
    torch.testing.assert_close(sums(images.flip(0), 5), known, rtol=1e-12, atol=1e-12)
    images[3, 0, 0, 0] += 1 / (255 * STD[0])  # one pixel, by one level
    assert (sums(images, 8) - known).abs().max() > 0.1 * LAST_DIGITS * len(images)
    images[3] = images[4]
    assert (sums(images, 8) - known).abs().max() > 10 * LAST_DIGITS * len(images)


class Noisy(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image), label


def test_a_fit_on_augmented_images_resumes_whatever_was_drawn_before(tmp_path: Path) -> None:
    x, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        loader = DataLoader(Noisy(x, labels), 8, shuffle=True)
        found.append(fit(loader, rounds=1, checkpoint=tmp_path / "fit.pth"))
    assert found[0].before.ce == found[1].before.ce


def test_a_fit_leaves_the_callers_random_numbers_and_the_loader_as_they_were() -> None:
    x, labels = (torch.cat(parts) for parts in zip(*data(), strict=True))
    loader = DataLoader(
        TensorDataset(x, labels), 8, shuffle=True, generator=torch.Generator().manual_seed(5)
    )
    loader.epoch = 7
    teacher = Teacher()

    def tables() -> Tensor:
        return fit_lens(teacher, loader, CLASSES, mean=MEAN, std=STD, **QUICK).lens.q.detach()

    torch.manual_seed(1)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    lenses = [tables(), tables()]
    assert torch.equal(torch.rand(3), drawn) and loader.epoch == 7
    assert torch.equal(loader.generator.get_state(), torch.Generator().manual_seed(5).get_state())
    loader.generator.manual_seed(6)
    assert torch.equal(lenses[0], lenses[1]) and torch.equal(
        tables(), lenses[0]
    )  # whatever it had drawn before


def test_a_fit_may_start_from_the_lens_of_an_amplified_teacher() -> None:
    lens = DJIPTeacher(Teacher(), default_start(), MEAN, STD).djip_lens
    result = fit(lens=lens)
    assert torch.equal(result.lens.q, fit().lens.q) and isinstance(result.lens.q, nn.Parameter)
    assert "q" in lens._buffers and not lens.q.requires_grad


class Weightless(nn.Module):
    """A runtime's session, say: the network is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.__dict__["network"] = Teacher().eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return self.network(images)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_checkpoint_needs_a_teacher_that_can_be_told_from_others(
    gradients: bool, tmp_path: Path
) -> None:
    how = {"mean": MEAN, "std": STD, **QUICK, "gradients": gradients}
    if not gradients:
        pytest.importorskip("scipy", minversion="1.14")
        how |= {"queries": 100}
    teacher = Weightless()
    with pytest.raises(DJIPError, match=r"wrap it as ClosedTeacher\(ask, C, name=") as caught:
        fit_lens(teacher, data(), CLASSES, checkpoint=tmp_path / "fit.pth", **how)
    assert "\n" not in str(caught.value)
    assert teacher.calls == 0 and not list(tmp_path.iterdir())
    result = fit_lens(teacher, data(), CLASSES, **how)
    assert teacher.calls and result.lens.metadata["teacher_hash"] == ""


def test_numpy_numbers_leave_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "fit.pth"
    start = JPEGLens(q=8.0, kappa=np.float64(5.0))

    def found(checkpoint: Path | None) -> Any:
        how = QUICK | {"lr": np.float64(0.3), "rounds": np.int64(1)}
        return fit_lens(
            Teacher(),
            data(),
            np.int64(CLASSES),
            mean=np.array(MEAN),
            std=np.array(STD),
            lens=start,
            checkpoint=checkpoint,
            **how,
        )

    whole = found(None)
    found(path)
    assert torch.equal(found(path).lens.q, whole.lens.q)
    whole.lens.save(tmp_path / "lens.safetensors")


def test_what_torch_says_of_a_file_comes_without_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "fit.pth"
    torch.save({"identity": np.float64(1.0)}, path)
    with pytest.raises(DJIPError, match="not a checkpoint of a fit .*; delete it") as caught:
        fit(checkpoint=path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda known: known["settings"].pop("patience"), lambda known: known.pop("start")]
)
def test_a_checkpoint_of_another_version_is_refused_as_such(
    change: Callable[[dict], object], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "fit.pth"
    fit(rounds=1, checkpoint=checkpoint)
    state = torch.load(checkpoint, weights_only=True)
    change(state["identity"])
    torch.save(state, checkpoint)
    with pytest.raises(
        DJIPError, match="another version of djip_ext; finish that fit with it, or delete"
    ):
        fit(rounds=1, checkpoint=checkpoint)


def test_the_default_start_is_alive_and_unsaturated() -> None:
    health = default_start().health(torch.rand(4, 3, 16, 16) * 255)
    assert health["dead"] == 0 and health["saturated"] == 0


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from djip_ext import fit_lens
from helpers.textures import CLASSES, MEAN, QUICK, STD, Teacher, data, fit
torch.set_num_threads(1)

class Mortal(Teacher):
    calls = 0
    def forward(self, x):
        Mortal.calls += 1
        if Mortal.calls == {calls}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

fit_lens(Mortal(), data(), CLASSES, mean=MEAN, std=STD, checkpoint={checkpoint!r}, **QUICK)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("calls", [8, 17])  # in a centre pass and in a pass of steps
def test_a_fit_killed_anywhere_resumes_to_the_same_lens(calls: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.pth"
    script = KILLED.format(
        tests=str(Path(__file__).parents[1]), calls=calls, checkpoint=str(checkpoint)
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert checkpoint.exists() == (calls > 9)
    resumed, whole = fit(checkpoint=checkpoint), fit()
    assert torch.equal(resumed.lens.q, whole.lens.q)
    assert [row["cmi"] for row in resumed.history] == [row["cmi"] for row in whole.history]


def test_patience_stops_the_fit_after_rounds_that_were_not_better() -> None:
    patient = fit(rounds=12, cmi_gain=(1e-4, 10.0))
    hasty = fit(rounds=12, cmi_gain=(1e-4, 10.0), patience=1)
    assert hasty.in_band and len(hasty.history) == hasty.chosen + 2 < len(patient.history)
    assert [row["cmi"] for row in hasty.history] == [
        row["cmi"] for row in patient.history[: len(hasty.history)]
    ]


def test_patience_waits_for_a_round_in_the_band() -> None:
    assert len(fit(cmi_gain=(50.0, 60.0), patience=1).history) == QUICK["rounds"] + 1


def test_an_impatient_fit_resumed_stops_where_it_stopped(tmp_path: Path) -> None:
    settings = {
        "rounds": 12,
        "cmi_gain": (1e-4, 10.0),
        "patience": 1,
        "checkpoint": tmp_path / "fit.pth",
    }
    whole, resumed = fit(**settings), fit(**settings)
    assert torch.equal(whole.lens.q, resumed.lens.q) and len(whole.history) == len(resumed.history)


def as_the_last_version_wrote_it(checkpoint: Path, optimizer: str) -> None:
    """Version 0.1.0 had a setting ``optimizer`` and wrote everything into one flat dictionary.

    It kept the band as it was given, a list for example.
    """
    state = torch.load(checkpoint, weights_only=True)
    assert set(state) == {
        "identity",
        "ln_q",
        "q",
        "optimizer",
        "history",
        "before",
        "centres",
        "best",
        "images",
    }
    del state["images"]
    assert set(state["best"]) == {"rank", "index", "tables", "measured"}
    assert set(state["before"]) == {"cmi", "ce", "accuracy"}
    assert set(state["before"]["cmi"]) == {"total", "per_class", "gamma", "centres", "counts"}
    assert state["identity"]["quantizer"]["clamp"] is False
    settings = state["identity"]["settings"]
    settings |= {"optimizer": optimizer, "cmi_gain": list(settings["cmi_gain"])}
    torch.save(state, checkpoint)


def test_a_fit_begun_by_the_last_version_resumes_to_the_same_lens(tmp_path: Path) -> None:
    interrupted(tmp_path / "fit.pth", rounds=5)
    as_the_last_version_wrote_it(tmp_path / "fit.pth", "adam")
    resumed, whole = fit(checkpoint=tmp_path / "fit.pth", rounds=5), fit(rounds=5)
    assert torch.equal(resumed.lens.q, whole.lens.q)
    assert [row["cmi"] for row in resumed.history] == [row["cmi"] for row in whole.history]


def test_a_fit_begun_with_an_optimizer_that_is_gone_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path / "fit.pth", rounds=5)
    as_the_last_version_wrote_it(tmp_path / "fit.pth", "sgd")
    with pytest.raises(DJIPError, match="begun with optimizer sgd, which fits no longer have"):
        fit(checkpoint=tmp_path / "fit.pth", rounds=5)


def test_a_shield_lowers_cmi_and_keeps_the_accuracy_floor() -> None:
    start = JPEGLens(q=60.0, kappa=5.0)
    how = {"lens": start, "rounds": 6, "max_accuracy_drop": 100.0}
    shield = fit(goal="shield", **how)
    cmi = [row["cmi"] for row in shield.history]
    assert {row["lam"] for row in shield.history} == {-2.0}
    assert cmi[-1] < cmi[0] - 1e-4
    assert shield.after.cmi.total == min(cmi) and shield.in_band
    coarse = JPEGLens(q=255.0, kappa=5.0)
    strict = fit(goal="shield", lens=coarse, rounds=0, max_accuracy_drop=0.0)
    assert not strict.in_band  # its only round lies below the floor, and the fit says so


def test_a_shield_is_not_fitted_without_gradients() -> None:
    with pytest.raises(DJIPError, match="a shield is fitted by gradients"):
        fit(goal="shield", gradients=False)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("wrap", [lambda t: t, nn.DataParallel])
def test_a_teacher_behind_a_lens_is_refused(wrap: Any, gradients: bool) -> None:
    behind = wrap(DJIPTeacher(Teacher(), default_start(), MEAN, STD))
    with pytest.raises(DJIPError, match="has a lens already; fit one for the plain teacher"):
        fit_lens(behind, data(), CLASSES, mean=MEAN, std=STD, gradients=gradients)
