"""The lens against a block-by-block float64 codec, against Pillow's JPEG, and its own promises."""

import copy
import io
import math
import pickle
import weakref

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.pretend_gpu import GPU, pretend_gpu
from PIL import Image
from torch import Tensor
from torch.func import functional_call

from djip_ext import DJIPError, JPEGLens
from djip_ext.lens.initial_tables import standard_jpeg
from djip_ext.lens.straight_through import StraightThroughLens
from djip_ext.ops import fused
from djip_ext.ops.curves import no_buffers
from djip_ext.ops.dct import block_idct

NORMALISED = {"gain": (64.0,) * 3, "offset": (128.0,) * 3}


def images(*shape: int) -> Tensor:
    return torch.rand(*shape) * 255


def random_tables() -> Tensor:
    return 10 ** (torch.rand(2, 8, 8) * 1.5 - 0.3)


def through_pillow(mode: str, planes: Tensor, tables: Tensor) -> Tensor:
    """Encode whole numbers (3, H, W) as 4:4:4 JPEG with the given tables, decode to RGB."""
    height, width = planes.shape[1:]
    image = Image.frombytes(
        mode, (width, height), planes.permute(1, 2, 0).byte().contiguous().numpy().tobytes()
    )
    file = io.BytesIO()
    image.save(
        file, "JPEG", qtables=[table.flatten().int().tolist() for table in tables], subsampling=0
    )
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()


def test_has_128_parameters() -> None:
    assert [p.shape for p in JPEGLens().parameters()] == [(2, 8, 8)]


@pytest.mark.parametrize("window", (None, 5))
@pytest.mark.parametrize("max_index", (20, 1023))
def test_equals_the_block_by_block_reference(max_index: int, window: int | None) -> None:
    image, tables = images(1, 3, 7, 11), random_tables()
    lens = JPEGLens(tables, alpha=1.5, max_index=max_index, window=window).double()
    expected = reference.lens(
        image[0].double(), tables, torch.full((2, 8, 8), 1.5), max_index, window
    )
    torch.testing.assert_close(lens(image.double())[0].detach(), expected, atol=1e-6, rtol=0)


def test_tied_sharpness_equals_the_block_by_block_reference() -> None:
    image, tables = images(1, 3, 8, 8), random_tables()
    lens = JPEGLens(tables, kappa=2.5).double()
    expected = reference.lens(image[0].double(), tables, 2.5 / tables.double() ** 2, 1023)
    torch.testing.assert_close(lens(image.double())[0].detach(), expected, atol=1e-6, rtol=0)


def test_float32_stays_close_to_float64() -> None:
    image, lens = images(2, 3, 24, 24), JPEGLens(random_tables(), alpha=0.5)
    exact = copy.deepcopy(lens).double()(image.double())
    assert (lens(image) - exact).abs().max() < 5e-3


@pytest.mark.parametrize(
    "shape", ((2, 3, 32, 32), (2, 3, 33, 33), (1, 3, 224, 224), (3, 3, 5, 50), (0, 3, 33, 32))
)
def test_output_has_the_shape_of_the_input(shape: tuple[int, ...]) -> None:
    assert JPEGLens(q=4.0)(images(*shape)).shape == shape


def test_odd_sizes_equal_the_crop_of_the_padded_image() -> None:
    image, lens = images(1, 3, 33, 35), JPEGLens(q=8.0)
    padded = torch.nn.functional.pad(image, (0, 5, 0, 7), mode="replicate")
    torch.testing.assert_close(lens(image), lens(padded)[:, :, :33, :35], atol=1e-4, rtol=0)


def test_blocks_do_not_see_each_other() -> None:
    image, lens = images(1, 3, 16, 24).double(), JPEGLens(q=8.0).double()
    torch.testing.assert_close(
        lens(image)[:, :, 8:, 16:], lens(image[:, :, 8:, 16:]), atol=1e-9, rtol=0
    )


@pytest.mark.parametrize("settings", ({"q": 0.37, "max_index": 4000}, {"q": 2.0, "kappa": 0.7}))
def test_identity_while_kappa_is_below_0_7_and_nothing_saturates(
    settings: dict[str, float],
) -> None:
    image = images(2, 3, 32, 32)
    assert (JPEGLens(**settings)(image) - image).abs().max() < 2e-3


def test_large_sharpness_approaches_the_hard_lens() -> None:
    image, tables = images(2, 3, 16, 16).double(), torch.rand(2, 8, 8) * 9 + 1
    soft, hard = JPEGLens(tables, alpha=1e7).double(), JPEGLens(tables, hard=True).double()
    torch.testing.assert_close(soft(image), hard(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(3))
def test_hard_lens_decodes_as_pillow_does(seed: int) -> None:
    """Within two grey levels, which rounding in the file format may cost.

    Coefficients keep clear of rounding's ties.
    """
    torch.manual_seed(seed)
    tables = torch.randint(10, 31, (2, 8, 8)).float()
    low = (torch.arange(8)[:, None] + torch.arange(8) < 3).repeat(5, 7)
    index = torch.randint(-4, 5, (1, 3, 40, 56)) * low + torch.rand(1, 3, 40, 56) * 0.6 - 0.3
    ycc = (block_idct(index * tables[[0, 1, 1]].repeat(1, 5, 7)) + 128).round()
    assert ycc.min() >= 0 and ycc.max() <= 255
    rgb = (reference.rgb(ycc[0] - 128) + 128).float()
    seen = JPEGLens(tables, hard=True)(rgb[None])[0].detach().clamp(0, 255)
    assert (seen - through_pillow("YCbCr", ycc[0], tables)).abs().max() <= 2.0


@pytest.mark.parametrize("quality", (20, 50))
def test_hard_lens_with_standard_tables_is_pillow_s_jpeg_of_an_rgb_image(quality: int) -> None:
    """Close in the mean: an encoder rounds YCbCr to bytes first, so a few coefficients differ."""
    smooth = (
        torch.nn.functional.interpolate(images(1, 3, 5, 7), size=(40, 56), mode="bicubic")
        .clamp(0, 255)
        .round()
    )
    tables = standard_jpeg(quality)
    decoded = through_pillow("RGB", smooth[0], tables)
    seen = JPEGLens(tables, hard=True)(smooth)[0].detach().clamp(0, 255)
    assert (seen - decoded).abs().mean() < 1.1


def test_gradient_of_all_128_steps_equals_central_differences() -> None:
    image, weight = images(1, 3, 8, 16).double(), torch.randn(1, 3, 8, 16, dtype=torch.float64)
    lens = JPEGLens(random_tables(), alpha=1.3, max_index=40).double()
    exact = torch.autograd.grad((weight * lens(image)).sum(), lens.q)[0]
    numeric, h = torch.zeros(128, dtype=torch.float64), 1e-6
    for k in range(128):
        step = torch.zeros(128, dtype=torch.float64).index_fill(0, torch.tensor(k), h).view(2, 8, 8)
        up, down = (JPEGLens(1.0, alpha=1.3, max_index=40).double() for _ in range(2))
        up.q.data, down.q.data = lens.q.data + step, lens.q.data - step
        numeric[k] = ((weight * (up(image) - down(image))).sum() / (2 * h)).item()
    torch.testing.assert_close(exact.flatten(), numeric, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("settings", ({"kappa": 2.0}, {"alpha": 1.3}))
def test_gradient_of_the_steps_equals_the_difference_along_a_direction(
    settings: dict[str, float],
) -> None:
    image, weight = images(1, 3, 16, 16).double(), torch.randn(1, 3, 16, 16, dtype=torch.float64)
    lens = JPEGLens(random_tables(), **settings).double()
    direction = torch.randn(2, 8, 8, dtype=torch.float64)
    exact = (torch.autograd.grad((weight * lens(image)).sum(), lens.q)[0] * direction).sum().item()
    tables, ends = lens.q.data, []
    for h in (1e-6, -1e-6):
        lens.q.data = tables + h * direction
        ends.append((weight * lens(image)).sum().item())
    assert exact == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("settings", ({"alpha": 2.0}, {"kappa": 3.0}, {"alpha": 2.0, "window": 5}))
def test_gradcheck_of_the_image(settings: dict[str, float]) -> None:
    lens = JPEGLens(1.4, **settings).double()
    image = images(1, 3, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lens, (image,), atol=1e-5)


def test_luma_table_moves_luma_only_and_chroma_table_both_chroma_planes() -> None:
    image = images(1, 3, 16, 16).double()
    fine = torch.full((8, 8), 1e-3)
    base = reference.ycbcr(image[0])
    changed = []
    for tables in (torch.stack([fine + 40, fine]), torch.stack([fine, fine + 40])):
        seen = JPEGLens(tables, hard=True, max_index=10**7).double()(image)[0].detach()
        changed.append(
            [(reference.ycbcr(seen) - base)[plane].abs().max().item() > 1 for plane in range(3)]
        )
    assert changed == [[True, False, False], [False, True, True]]


def test_entry_v_u_belongs_to_vertical_frequency_v() -> None:
    rows = torch.cos(math.pi * 2 * (2 * torch.arange(8.0) + 1) / 16)
    vertical_wave = (128 + 50 * rows[:, None].expand(1, 3, 8, 8)).contiguous()
    fine = torch.full((2, 8, 8), 1e-3)
    coarse_v, coarse_u = fine.clone(), fine.clone()
    coarse_v[:, 2, 0], coarse_u[:, 0, 2] = 250.0, 250.0
    moved = [
        (JPEGLens(t, hard=True, max_index=10**7)(vertical_wave) - vertical_wave).abs().max() > 1
        for t in (coarse_v, coarse_u)
    ]
    assert moved == [True, False]


def test_pixels_are_not_clamped() -> None:
    seen = JPEGLens(60.0)((images(1, 3, 16, 16) > 127).float() * 255)
    assert seen.min() < -1 and seen.max() > 256


def test_gain_and_offset_come_together() -> None:
    image = torch.randn(1, 3, 8, 8)
    for one in ({"gain": (60.0,) * 3}, {"offset": (120.0,) * 3}):
        with pytest.raises(DJIPError, match="gain and offset together"):
            JPEGLens(3.0)(image, **one)


@pytest.mark.parametrize("buffers", [True, False])  # those of a CPU; autocast leaves them alone
@pytest.mark.parametrize("hard", [False, True])
def test_autocast_and_low_precision_images_are_computed_in_float32(
    hard: bool, buffers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not buffers:
        monkeypatch.setattr(fused, "_chunks", lambda x: iter([(slice(None), no_buffers)]))
    image, lens = images(1, 3, 16, 16).bfloat16(), JPEGLens(3.0, hard=hard)
    pixels = image.float().requires_grad_()
    wanted = (lens.q, pixels)
    plain = lens(pixels)
    weight = torch.randn_like(plain)
    slopes = () if hard else torch.autograd.grad(plain, wanted, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lens(image), plain) and lens(image).dtype == torch.float32
        seen = lens(pixels)
        found = () if hard else torch.autograd.grad(seen, wanted, weight)
    assert all(torch.equal(a, b) for a, b in zip(found, slopes, strict=True))


def test_memory_layout_does_not_matter() -> None:
    image, lens = images(2, 3, 24, 16), JPEGLens(3.0)
    torch.testing.assert_close(
        lens(image.contiguous(memory_format=torch.channels_last)), lens(image), atol=1e-4, rtol=0
    )


def test_steps_are_kept_within_their_range() -> None:
    tables = torch.full((2, 8, 8), 1e-9)
    tables[1] = 1e9
    q = JPEGLens(tables).q
    assert q.min().item() == pytest.approx(1e-5) and q.max().item() == 255


def test_does_not_share_memory_with_the_given_tables() -> None:
    tables = torch.full((2, 8, 8), 3.0)
    lens = JPEGLens(tables)
    tables.fill_(7.0)
    assert lens.q.max().item() == 3.0


def test_jpeg_dl_preset_is_five_bins_and_127_indices() -> None:
    cifar, imagenet = JPEGLens.jpeg_dl(), JPEGLens.jpeg_dl(dataset="imagenet")
    assert (cifar.window, cifar.max_index, cifar.alpha, cifar.kappa) == (5, 127, 5.0, None)
    assert (imagenet.window, imagenet.max_index, imagenet.kappa) == (5, 127, 0.7)


def test_tied_sharpness_follows_the_step() -> None:
    lens = JPEGLens(2.0, kappa=0.7)
    torch.testing.assert_close(lens.sharpness(), torch.full((2, 8, 8), 0.7 / 4))


def test_frozen_lens_sees_the_same_and_has_nothing_to_train_or_to_save() -> None:
    image, lens = images(1, 3, 16, 16), JPEGLens(random_tables())
    frozen = copy.deepcopy(lens).freeze()
    assert torch.equal(frozen(image), lens(image))
    assert (
        not list(frozen.parameters())
        and not frozen.state_dict()
        and not frozen(image).requires_grad
    )


def test_freezing_twice_is_freezing_once() -> None:
    assert not list(JPEGLens().freeze().freeze().parameters())


def test_health_counts_dead_steps() -> None:
    tables = torch.full((2, 8, 8), 2.0)
    tables[0, 0, :7] = 0.3  # kappa = 5 * 0.09 < 1
    assert JPEGLens(tables).health(images(1, 3, 8, 8))["dead"] == 7


@pytest.mark.parametrize(
    "settings, dead", (({"kappa": 0.7}, 128), ({"kappa": 2.0}, 0), ({"hard": True}, 0))
)
def test_health_counts_dead_steps_of_tied_and_hard_lenses(
    settings: dict[str, float], dead: int
) -> None:
    assert JPEGLens(1e-3, **settings).health(images(1, 3, 8, 8))["dead"] == dead


def test_health_counts_saturated_coefficients() -> None:
    image = images(1, 3, 16, 8)
    z = torch.cat(
        [
            reference.dct(plane[top : top + 8])
            for plane in reference.ycbcr(image[0] - 128)
            for top in (0, 8)
        ]
    )
    health = JPEGLens(2.0, max_index=10).health(image)
    assert health["saturated"] == pytest.approx((z.abs() > 20).double().mean().item(), abs=1e-6)


def test_health_counts_visible_coefficients_that_vanish() -> None:
    flat = torch.full((1, 3, 8, 8), 200.0)  # one visible coefficient of 192, the luma mean
    assert JPEGLens(1e-3, max_index=127).health(flat) == {
        "dead": 128,
        "saturated": pytest.approx(1 / 192),
        "zeroed": 1.0,
    }
    assert JPEGLens(1.0).health(flat) == {"dead": 0, "saturated": 0.0, "zeroed": 0.0}


@pytest.mark.parametrize(
    "tables, cause",
    (
        (torch.ones(8, 8), "shape"),
        (torch.ones(3, 8, 8), "shape"),
        (torch.ones(128), "shape"),
        (torch.zeros(2, 8, 8), "positive"),
        (-1.0, "positive"),
        (torch.full((2, 8, 8), math.nan), "positive"),
        (math.inf, "positive"),
    ),
)
def test_refuses_bad_tables(tables: Tensor | float, cause: str) -> None:
    with pytest.raises(DJIPError, match=cause):
        JPEGLens(tables)


@pytest.mark.parametrize(
    "settings",
    ({"alpha": 0.0}, {"kappa": -1.0}, {"alpha": math.nan}, {"max_index": 0}, {"window": 4}),
)
def test_refuses_bad_settings(settings: dict[str, float]) -> None:
    with pytest.raises(DJIPError, match="|".join(settings)):
        JPEGLens(1.0, **settings)


@pytest.mark.parametrize(
    "image", (images(3, 32, 32), images(2, 1, 32, 32), images(1, 3, 8, 8).byte())
)
def test_refuses_what_is_not_a_float_batch_of_rgb_images(image: Tensor) -> None:
    with pytest.raises(DJIPError, match="float images"):
        JPEGLens()(image)


@pytest.mark.parametrize("scaled", (torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8) * 2 - 1))
def test_refuses_images_scaled_to_one(scaled: Tensor) -> None:
    with pytest.raises(DJIPError, match="multiply by 255"):
        JPEGLens()(scaled)


def test_black_images_do_not_use_up_the_look_at_the_range() -> None:
    lens = JPEGLens()
    lens(torch.zeros(1, 3, 8, 8))
    with pytest.raises(DJIPError, match="multiply by 255"):
        lens(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    "image", (torch.randn(3, 8, 8), torch.randn(2, 1, 8, 8), images(1, 3, 8, 8).byte())
)
@pytest.mark.parametrize("lens", (JPEGLens(8.0), StraightThroughLens(JPEGLens(8.0))))
def test_normalised_images_are_held_to_the_same_shape(lens: torch.nn.Module, image: Tensor) -> None:
    with pytest.raises(DJIPError, match="float images"):
        lens(image, **NORMALISED)


@pytest.mark.parametrize("kernel", ("of a CPU", "of a GPU"))
@pytest.mark.parametrize("hard", (False, True))
def test_an_empty_batch_goes_through_forward_and_back(
    hard: bool, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "of a GPU":
        monkeypatch.setattr(fused, "_chunks", lambda x: iter([(slice(None), no_buffers)]))
    lens, image = JPEGLens(4.0, hard=hard), torch.empty(0, 3, 16, 32, requires_grad=True)
    for module in (lens, StraightThroughLens(lens)):
        seen = module(image, **NORMALISED)
        (slope,) = torch.autograd.grad(seen.sum(), image)
        assert seen.shape == slope.shape == image.shape
    assert lens.health(image)["zeroed"] == 0


@pytest.mark.parametrize("size", ((28, 28), (16, 13), (16, 16)))
@pytest.mark.parametrize("hard", (False, True))
def test_what_a_network_sees_can_be_viewed_as_a_row_of_numbers(
    hard: bool, size: tuple[int, int]
) -> None:
    lens, image = JPEGLens(4.0, hard=hard), torch.randn(2, 3, *size)
    for module in (lens, StraightThroughLens(lens)):
        seen = module(image, **NORMALISED)
        assert torch.equal(seen.view(2, -1), seen.flatten(1))
    traced = torch.export.export(lens.freeze(), (images(2, 3, *size),)).module()
    assert traced(images(2, 3, *size)).is_contiguous()


def test_settings_changed_after_freezing_are_not_exported_as_they_were() -> None:
    lens, pixels = JPEGLens(8.0, kappa=5.0).freeze(), (images(1, 3, 16, 16),)
    lens.kappa = 100.0
    with pytest.raises(DJIPError, match="changed after lens.freeze"):
        torch.export.export(lens, pixels)
    exported = torch.export.export(lens.freeze(), pixels).module()
    torch.testing.assert_close(exported(*pixels), lens(*pixels), atol=0.05, rtol=0)


def test_settings_are_compared_where_dynamo_traces_as_well() -> None:
    lens, pixels = JPEGLens(8.0, kappa=5.0).freeze(), (images(1, 3, 16, 16),)
    exported = torch.export.export(lens, pixels, strict=True).module()
    torch.testing.assert_close(exported(*pixels), lens(*pixels), atol=0.05, rtol=0)
    lens.kappa = 100.0
    with pytest.raises(Exception, match="changed after lens.freeze"):
        torch.export.export(lens, pixels, strict=True)


@pytest.mark.parametrize("kappa, dead", ((1.0, 0), (math.nextafter(1, 0), 128)))
def test_a_tied_sharpness_is_dead_by_kappa_itself(kappa: float, dead: int) -> None:
    tables = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) * 20 + 1
    assert int(JPEGLens(tables, kappa=kappa).dead().sum()) == dead


@pytest.mark.parametrize("name", ("alpha", "kappa"))
def test_a_sharpness_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(DJIPError, match=f"{name} is '5'; .*positive"):
        JPEGLens(8.0, **{name: "5"})


def test_a_lens_without_values_can_be_printed() -> None:
    assert "q on meta, kappa=5.0" in repr(JPEGLens(8.0, kappa=5.0).to("meta"))
    assert "q in [8, 8], kappa=5.0" in repr(JPEGLens(8.0, kappa=5.0))


# ---- constants kept between calls; on a GPU by address and torch's count of changes


STEPS = (8.0, 40.0, 80.0)


def test_new_steps_at_an_old_address_are_not_taken_for_the_old_ones() -> None:
    lens, image = JPEGLens(8.0, kappa=5.0), images(1, 3, 16, 16)
    wanted = {step: JPEGLens(step, kappa=5.0)(image).detach() for step in STEPS}
    with pretend_gpu(), torch.no_grad():
        lens.to(GPU)
        image = image.to(GPU)
        for step in STEPS * 20:
            seen = functional_call(lens, {"q": torch.full((2, 8, 8), step).to(GPU)}, (image,))
            torch.testing.assert_close(seen.cpu(), wanted[step], atol=1e-3, rtol=0)


def test_transposed_steps_at_the_same_address_are_others() -> None:
    lens, image, tables = JPEGLens(8.0, kappa=5.0), images(1, 3, 16, 16), random_tables()
    wanted = JPEGLens(tables.mT, kappa=5.0)(image).detach()
    with pretend_gpu(), torch.no_grad():
        lens.to(GPU)
        q, image = tables.to(GPU), image.to(GPU)
        functional_call(lens, {"q": q}, (image,))
        seen = functional_call(lens, {"q": q.transpose(1, 2)}, (image,))
    torch.testing.assert_close(seen.inner, wanted, atol=1e-3, rtol=0)


def test_a_replica_takes_its_own_steps_and_leaves_the_original_its_constants() -> None:
    lens, image = JPEGLens(8.0, kappa=5.0), images(1, 3, 16, 16)
    wanted = {step: JPEGLens(step, kappa=5.0)(image).detach() for step in STEPS}
    with pretend_gpu(), torch.no_grad():
        lens.to(GPU)
        image = image.to(GPU)
        torch.testing.assert_close(lens(image).cpu(), wanted[8.0], atol=1e-3, rtol=0)
        kept = lens._kept
        for step in STEPS * 5:
            replica = lens._replicate_for_data_parallel()
            replica.q = torch.full((2, 8, 8), step).to(GPU)
            torch.testing.assert_close(replica(image).cpu(), wanted[step], atol=1e-3, rtol=0)
        lens(image)
        assert lens._kept is kept


def test_steps_changed_in_place_on_a_gpu_are_seen() -> None:
    lens, image = JPEGLens(8.0, kappa=5.0), images(1, 3, 16, 16)
    wanted = JPEGLens(40.0, kappa=5.0)(image).detach()
    with pretend_gpu(), torch.no_grad():
        lens.to(GPU)(image.to(GPU))
        lens.q.fill_(40.0)
        torch.testing.assert_close(lens(image.to(GPU)).cpu(), wanted, atol=1e-3, rtol=0)


def test_the_constants_keep_no_graph_alive() -> None:
    lens, image = JPEGLens(8.0, kappa=5.0), images(1, 3, 16, 16)
    with pretend_gpu():
        lens.to(GPU)
        factor = torch.full((2, 8, 8), 3.0).to(GPU)
        saved_by_graph = weakref.ref(factor)
        q = factor * torch.full((2, 8, 8), 2.0).to(GPU).requires_grad_()
        functional_call(lens, {"q": q}, (image.to(GPU),))
        assert lens._kept is not None and q.grad_fn is not None
        del factor
        assert saved_by_graph() is not None
        del q
        assert saved_by_graph() is None


@pytest.mark.parametrize(
    "duplicate", (copy.deepcopy, copy.copy, lambda lens: pickle.loads(pickle.dumps(lens)))
)
@pytest.mark.parametrize("frozen", (False, True))
def test_a_copy_makes_constants_of_its_own(duplicate, frozen: bool) -> None:
    """A copied tensor counts its changes anew, so that the old count would mean another state."""
    lens, image = JPEGLens(8.0, kappa=5.0), images(1, 3, 16, 16)
    lens = lens.freeze() if frozen else lens
    seen = lens(image)
    again = duplicate(lens)
    assert again._kept is None and lens._kept is not None
    assert torch.equal(again(image), seen)
