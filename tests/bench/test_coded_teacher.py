"""CKD: the coding against Pillow, the rule against a slow reference, choices kept and resumed."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.slow_losses import divergence, probabilities
from helpers.small_bench import assert_resumes_bit_for_bit, run, small_options
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from djip_ext import DJIPTeacher, JPEGLens
from djip_ext.bench.dataset.loader import DeviceLoader
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.coded_teacher import (
    CANDIDATES,
    ORIGINAL,
    QUALITIES,
    choice_record,
    choose,
    coded,
    coded_teacher,
    standard_tables,
)
from djip_ext.bench.engine.run import build_model
from djip_ext.bench.engine.teacher_cache import answers_key, cached_teacher
from djip_ext.errors import DJIPError
from djip_ext.hosts.registry import install, uninstall


def photographs(count: int, side: int) -> Tensor:
    """Smooth shades with some noise: whole pixels in [0, 255], float (count, 3, side, side)."""
    draw = np.random.default_rng(0)
    v, u = np.mgrid[:side, :side] / side
    waves = [
        [np.sin(draw.uniform(2, 9) * (u + draw.uniform() * v)) for _ in "rgb"] for _ in "i" * count
    ]
    pixels = 128 + 60 * np.stack(waves) + draw.normal(0, 6, (count, 3, side, side))
    return torch.from_numpy(pixels.round().clip(0, 255)).float()


def pillow(pixels: Tensor, quality: int) -> Tensor:
    """One image (3, H, W), as a real 4:4:4 JPEG file of that quality shows it."""
    content = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy().astype(np.uint8))
    image.save(content, "JPEG", quality=quality, subsampling=0)
    return torch.from_numpy(np.array(Image.open(content))).permute(2, 0, 1).float()


@pytest.mark.parametrize("side", [32, 29])
def test_the_coding_is_that_of_a_real_file(side: int) -> None:
    images = photographs(len(QUALITIES), side)
    seen = coded(images, standard_tables())
    for image, ours, quality in zip(images, seen, QUALITIES, strict=True):
        # libjpeg takes quality 0 for 1; its integer DCT has a grain of 1/8, which moves a
        # coefficient on the border between two steps, and with it one of 48 blocks
        error = (ours - pillow(image, quality)).abs()
        assert error.mean() < 1 and (error <= 2).float().mean() > 0.85, quality


def test_the_coding_is_that_of_the_hard_lens_but_for_rounded_colours() -> None:
    images = photographs(3, 32)
    numbers = [0, 8, 18]
    seen = coded(images, standard_tables()[numbers])
    for image, ours, number in zip(images, seen, numbers, strict=True):
        lens = JPEGLens(standard_tables()[number], hard=True)
        error = (ours - lens(image[None])[0].detach().clamp(0, 255)).abs()
        assert error.mean() < 1.5 and (error <= 2).float().mean() > 0.75


def slow_choice(logits: Tensor, label: int) -> int:
    """The rule for one image (K, C), a candidate at a time."""
    original = probabilities(logits[-1])
    best = None
    for number, row in enumerate(logits):
        if int(row.argmax()) != label:
            continue
        kl = divergence(probabilities(row), original)
        if best is None or kl > best[0]:
            best = kl, number
    return len(logits) - 1 if best is None else best[1]


def test_the_rule_is_the_slow_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(6, 200, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (200,), generator=generator)
    found = choose(logits, labels)
    expected = [slow_choice(logits[:, i], y) for i, y in enumerate(labels.tolist())]
    assert found.tolist() == expected and len(set(expected)) == 6


def test_the_original_stays_where_no_candidate_is_right() -> None:
    logits = torch.tensor([[[0.0, 3.0]], [[0.0, 1.0]]])
    assert choose(logits, torch.tensor([0])).tolist() == [1]
    assert choose(logits, torch.tensor([1])).tolist() == [0]


class Recorded(nn.Module):
    """A network that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build_model("resnet8", 20).eval()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Any:
        self.seen.append(image)
        return self.network(image)


def loader_of(views: int) -> DeviceLoader:
    return DeviceLoader(make_synthetic(2, 0), 16, augment=True, views=views)


@pytest.mark.parametrize("coded", [True, False])
def test_runs_that_start_together_ask_once(tmp_path: Path, coded: bool) -> None:
    loader = loader_of(2)
    networks = [Recorded(), Recorded()]
    networks[1].load_state_dict(networks[0].state_dict())
    start = threading.Barrier(2)

    def ask(network: Recorded) -> None:
        start.wait()
        if coded:
            coded_teacher(network, loader, tmp_path / "choice.safetensors", "float32")
        else:
            cached_teacher(network, loader, tmp_path, "float32")

    threads = [threading.Thread(target=ask, args=[network]) for network in networks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    once = 2 * 3 * (CANDIDATES if coded else 1)  # views, batches
    assert sorted(len(network.seen) for network in networks) == [0, once]


def test_the_teacher_sees_each_view_as_it_is_coded(tmp_path: Path) -> None:
    """Its kept answers, logits and features alike, are those to the images that Pillow's are."""
    loader = loader_of(2)
    network = Recorded()
    teacher = coded_teacher(network, loader, tmp_path / "choice.safetensors", "float32")
    assert len(network.seen) == 2 * 3 * CANDIDATES  # views, batches
    assert teacher.choice.shape == (2, 40) and teacher.choice.dtype == torch.uint8
    teacher.choice = torch.arange(80).view(2, 40).remainder(CANDIDATES).to(torch.uint8)
    network.seen.clear()
    kept = cached_teacher(teacher, loader, tmp_path, "float32").kept
    seen = torch.cat(network.seen).view(2, 40, 3, 32, 32)
    errors = []
    for view in range(2):
        images = torch.cat(list(loader.view_batches(view, loader.batch_size)))
        for number in range(40):
            quality = int(teacher.choice[view, number])
            shown = seen[view, number]
            if quality == ORIGINAL:
                assert torch.equal(shown, images[number])
                continue
            pixels = teacher.normalisation.to_pixels(images[number][None]).round()[0]
            found = teacher.normalisation.to_pixels(shown[None])[0]
            errors.append((found - pillow(pixels, QUALITIES[quality])).abs().mean())
        with torch.no_grad():
            logits, features = network.network(seen[view])
        torch.testing.assert_close(kept["logits"][view].float(), logits, rtol=2e-3, atol=2e-3)
        pooled = features["pooled_feat"]
        torch.testing.assert_close(kept["pooled_feat"][view].float(), pooled, rtol=2e-3, atol=2e-3)
    # hard borders and noise: now and then a whole block falls to the other side of a step
    assert torch.stack(errors).mean() < 0.7 and max(errors) < 3


def test_a_choice_is_kept_and_an_interrupted_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "choice.safetensors"
    whole = coded_teacher(Recorded().network, loader_of(3), tmp_path / "whole", "float32").choice
    torch.manual_seed(0)

    class Interrupted(Recorded):
        def forward(self, image: Tensor) -> Any:
            if len(self.seen) == 4 * CANDIDATES:  # in the second view
                raise KeyboardInterrupt
            return super().forward(image)

    broken = Interrupted()
    broken.network.load_state_dict(fixed().state_dict())
    with pytest.raises(KeyboardInterrupt):
        coded_teacher(broken, loader_of(3), path, "float32")
    assert len(load_file(path)["choice"]) == 1
    again = Recorded()
    again.network.load_state_dict(fixed().state_dict())
    resumed = coded_teacher(again, loader_of(3), path, "float32").choice
    assert len(again.seen) == 2 * 3 * CANDIDATES
    fresh = coded_teacher(fixed(), loader_of(3), tmp_path / "fresh", "float32").choice
    assert torch.equal(resumed, fresh) and whole.shape == fresh.shape


def fixed() -> nn.Module:
    """The same random network whenever it is asked for."""
    torch.manual_seed(7)
    return build_model("resnet8", 20).eval()


def test_answers_to_coded_images_have_a_key_of_their_own(tmp_path: Path) -> None:
    loader = loader_of(1)
    network = fixed()
    teacher = coded_teacher(network, loader, tmp_path / "a", "float32")
    other = coded_teacher(network, loader, tmp_path / "a", "float32")
    assert answers_key(teacher, loader, "float32") == answers_key(other, loader, "float32")
    other.choice = other.choice.clone()
    other.choice[0, 0] = (int(other.choice[0, 0]) + 1) % CANDIDATES
    keys = {answers_key(t, loader, "float32") for t in (network, teacher, other)}
    assert len(keys) == 3


def test_a_lens_comes_after_the_coding(tmp_path: Path) -> None:
    loader = loader_of(1)
    network = Recorded()
    data = loader.data
    lens = JPEGLens(q=40.0)
    behind = DJIPTeacher(network, lens, data.mean, data.std)
    teacher = coded_teacher(behind, loader, tmp_path / "a", "float32")
    teacher.select(torch.arange(4), 0)
    image = next(iter(loader.view_batches(0, loader.batch_size)))[:4]
    network.seen.clear()
    with torch.no_grad():
        teacher(image)
        expected = behind.apply_lens(teacher.apply_coding(image))
    torch.testing.assert_close(network.seen[-1], expected)


def test_a_record_counts_the_choices() -> None:
    record = choice_record(torch.tensor([[0, 0, 21], [1, 20, 21]], dtype=torch.uint8))
    assert record["teacher_passes"] == 22 * 6 and sum(record["qualities"].values()) == 6
    found = {name: count for name, count in record["qualities"].items() if count}
    assert found == {"0": 2, "5": 1, "100": 1, "original": 2}


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    small = small_options(tmp_path, monkeypatch)
    return [*small, "DISTILLER.TYPE", "KD", "BENCH.VIEWS", 2, "BENCH.CKD", True]


def test_a_run_records_its_choice_and_resumes(
    options: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert_resumes_bit_for_bit(options, monkeypatch)
    result = run(options, "whole", resume=True)
    assert result["ckd"]["teacher_passes"] == 22 * 2 * 40
    assert sum(result["ckd"]["qualities"].values()) == 2 * 40
    assert len(list((tmp_path / "teacher_cache").glob("*.ckd.safetensors"))) == 1
    plain = run([*options, "BENCH.CKD", False], "plain")
    assert "ckd" not in plain


def test_a_run_behind_a_lens_has_a_choice_of_its_own(options: list[Any], tmp_path: Path) -> None:
    run([*options, "SOLVER.EPOCHS", 1], "plain")
    install(JPEGLens(q=60.0), "djip_ext.bench", any_teacher=True)
    try:
        run([*options, "SOLVER.EPOCHS", 1], "lens")
    finally:
        uninstall("djip_ext.bench")
    assert len(list((tmp_path / "teacher_cache").glob("*.ckd.safetensors"))) == 2


@pytest.mark.parametrize("change", [["BENCH.VIEWS", 0], ["DISTILLER.TYPE", "NONE"]])
def test_it_needs_views_and_a_teacher(change: list[Any], options: list[Any]) -> None:
    with pytest.raises(DJIPError, match="set BENCH.VIEWS") as caught:
        run([*options, *change], "wrong")
    assert "\n" not in str(caught.value)


def test_a_damaged_choice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "choice.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(DJIPError, match="choice.safetensors is damaged"):
        coded_teacher(fixed(), loader_of(1), path, "float32")
