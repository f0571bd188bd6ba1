"""A fit without gradients: any callable will do, the budget holds, resuming changes nothing."""

import hashlib
import http.server
import io
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.textures import CLASSES, MEAN, STD, Teacher, data
from torch import Tensor

from djip_ext import ClosedTeacher, DJIPError, FitResult, FitSettings, JPEGLens, fit_lens
from djip_ext.fit import black_box
from djip_ext.inputs.batches import Batches
from djip_ext.lens.normalisation import Normalisation
from djip_ext.metrics.measurement import measure

IMAGES = 24
GAIN = {"cmi_gain": (0.002, 0.01), "max_accuracy_drop": 100.0}


def logits(images: Tensor) -> Tensor:
    with torch.no_grad():
        return Teacher().eval()(images)


def search(teacher: Any = logits, **arguments: Any) -> FitResult:
    arguments = {"progress": False, "queries": 12 * IMAGES} | GAIN | arguments
    return fit_lens(teacher, data(), CLASSES, mean=MEAN, std=STD, gradients=False, **arguments)


def test_the_search_reaches_the_band_and_then_pays_less_at_equal_cmi() -> None:
    first = search(queries=8 * IMAGES)
    longer = search(queries=40 * IMAGES)
    for result in (first, longer):
        gain = result.after.cmi.total - result.before.cmi.total
        assert result.in_band and 0.002 <= gain <= 0.01

    def price(result: FitResult) -> float:
        lam = longer.history[-1]["lam"]
        gain = result.after.cmi.total - result.before.cmi.total
        return result.after.ce - result.before.ce - lam * gain

    assert price(longer) < price(first)


def test_the_chosen_lens_measures_what_the_result_says() -> None:
    result, normalisation = search(), Normalisation(MEAN, STD)
    again = measure(
        Teacher().eval(), data(), CLASSES, lambda x: normalisation.through(result.lens, x)
    )
    assert again.cmi.total == result.after.cmi.total and again.ce == result.after.ce
    row = result.history[result.chosen]
    assert row["round"] == result.chosen and row["cmi"] == result.after.cmi.total
    assert result.lens.metadata["fit"]["in_band"] and not result.lens.metadata["fit"]["gradients"]


@pytest.mark.parametrize("passes", [2, 3, 5, 9, 17])
def test_the_budget_is_never_exceeded(passes: int) -> None:
    asked = []

    def teacher(images: Tensor) -> Tensor:
        asked.append(len(images))
        return logits(images)

    result = search(teacher, queries=passes * IMAGES + IMAGES - 1)
    assert sum(asked) <= passes * IMAGES
    assert result.lens.metadata["queries"] == sum(asked) == result.history[-1]["queries"]


def test_an_open_teacher_is_taken_as_it_is_and_left_alone() -> None:
    teacher = Teacher().train()
    result = search(teacher)
    assert teacher.training and all(p.requires_grad for p in teacher.parameters())
    same = search(logits)
    assert torch.equal(result.lens.q, same.lens.q)
    assert result.lens.metadata["teacher"] == "Teacher"


def test_one_table_stays_one_and_steps_stay_in_their_range() -> None:
    result = search(tables="one", q_min=2.0, lens=JPEGLens(1 + 9 * torch.rand(2, 8, 8), kappa=5.0))
    assert torch.equal(result.lens.q[0], result.lens.q[1])
    assert float(result.lens.q.detach().min()) >= 2.0


def test_what_no_factor_reaches_ends_with_the_nearest() -> None:
    result = search(cmi_gain=(50.0, 60.0))
    assert not result.in_band
    assert result.after.cmi.total == max(row["cmi"] for row in result.history)


def test_tables_above_the_accuracy_floor_are_preferred_to_any_in_the_band() -> None:
    how = {"cmi_gain": (0.02, 0.04)}
    free, strict = search(**how), search(**how, max_accuracy_drop=0.0)
    assert free.in_band and free.after.accuracy < free.before.accuracy
    assert strict.after.accuracy == strict.before.accuracy and not strict.in_band


def test_the_factor_is_lowered_to_the_accuracy_floor_and_points_below_it_cost() -> None:
    finder = black_box._Search(
        Teacher(),
        Batches([], CLASSES, MEAN, STD),
        1,
        CLASSES,
        Normalisation(MEAN, STD),
        JPEGLens(q=10.0),
        FitSettings(cmi_gain=(0.2, 0.4), max_accuracy_drop=5.0),
    )

    def ask(ln_q: Tensor) -> dict[str, float]:
        factor = float(ln_q.exp().mean()) / 10
        return {"cmi": factor**2 / 100, "ce": factor**3 / 1000, "accuracy": 100 - factor}

    finder.ask, finder.rows = ask, [{"cmi": 0.0, "ce": 0.0, "accuracy": 100.0}]
    found = ask(finder.find_factor())
    assert 0.2 <= found["cmi"] < 0.26 and found["accuracy"] >= 95  # 94.5 at the middle of the band
    three_below = finder.cost(found | {"accuracy": 92.0}) - finder.cost(found)
    assert three_below == pytest.approx(3 * 0.02 * finder.rate)


def test_a_start_above_the_band_comes_down() -> None:
    result = search(lens=JPEGLens(q=255.0, kappa=5.0))
    assert result.in_band and float(result.lens.q.detach().median()) < 200


class Mortal:
    """A teacher that dies when asked for a number of batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, images: Tensor) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return logits(images)


@pytest.mark.parametrize("batches", [2, 4, 11, 25, 52])
def test_a_search_killed_anywhere_goes_on_to_the_same_lens(batches: int, tmp_path: Path) -> None:
    place = tmp_path / "fit.pth"
    logged: list[dict[str, float]] = []
    whole = search(queries=20 * IMAGES)
    named = ClosedTeacher(Mortal(batches), CLASSES, name="t")
    with pytest.raises(KeyboardInterrupt):
        search(named, queries=20 * IMAGES, checkpoint=place, log=logged.append)
    named.ask, spent = logits, named.queries
    result = search(named, queries=20 * IMAGES, checkpoint=place, log=logged.append)
    assert torch.equal(result.lens.q, whole.lens.q)
    assert result.after.cmi.total == whole.after.cmi.total
    kept = [row["cmi"] for row in result.history]
    assert kept == [row["cmi"] for row in whole.history] == [row["cmi"] for row in logged]
    # What was answered for whole passes is not paid for again.
    assert named.queries - spent <= 20 * IMAGES - (spent // IMAGES - 1) * IMAGES


def test_a_search_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    place = tmp_path / "fit.pth"
    search(queries=7 * IMAGES, checkpoint=place)
    result = search(queries=21 * IMAGES, checkpoint=place)
    assert torch.equal(result.lens.q, search(queries=21 * IMAGES).lens.q)


def test_a_budget_below_what_a_checkpoint_holds_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "fit.pth"
    whole = search(queries=7 * IMAGES, checkpoint=place)
    with pytest.raises(DJIPError, match="holds 168 queries .* 144; allow at least 168"):
        search(queries=6 * IMAGES, checkpoint=place)
    assert torch.equal(search(queries=7 * IMAGES, checkpoint=place).lens.q, whole.lens.q)


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "fit.pth"
    search(checkpoint=place)
    with pytest.raises(DJIPError, match="another settings"):
        search(checkpoint=place, q_min=3.0)
    with pytest.raises(DJIPError, match="another teacher_hash"):
        search(lambda images: logits(images), checkpoint=place)
    place.write_bytes(b"nothing")
    with pytest.raises(DJIPError, match="not a checkpoint of a fit"):
        search(checkpoint=place)
    fit_lens(
        Teacher(), data(), CLASSES, mean=MEAN, std=STD, checkpoint=place.with_name("b"), rounds=1,
        progress=False,
    )  # fmt: skip
    with pytest.raises(DJIPError, match="another method"):
        search(checkpoint=place.with_name("b"))


def test_a_search_goes_on_with_other_settings_that_it_does_not_read(tmp_path: Path) -> None:
    place, whole = tmp_path / "fit.pth", search()
    search(checkpoint=place)
    asked = []

    def teacher(images: Tensor) -> Tensor:
        asked.append(len(images))
        return logits(images)

    named = ClosedTeacher(teacher, CLASSES, name="logits")  # as the function is called
    of_the_descent = {"rounds": 3, "patience": 2, "lr": 0.2, "lam": 1.0, "lam_max": 3.0}
    how = of_the_descent | {"variant": "fixed", "gradient": "straight-through", "ce_weight": 0.0}
    assert torch.equal(search(named, checkpoint=place, **how).lens.q, whole.lens.q)
    assert not asked


@pytest.mark.parametrize(
    "name, value",
    [
        ("cmi_gain", (0.002, 0.011)),
        ("max_accuracy_drop", 99.0),
        ("tables", "one"),
        ("temperature", 2.0),
        ("q_min", 1.02),
        ("precision", "bfloat16"),
        ("seed", 1),
    ],
)
def test_a_search_with_another_setting_that_it_reads_is_another(
    name: str, value: Any, tmp_path: Path
) -> None:
    search(checkpoint=tmp_path / "fit.pth", queries=2 * IMAGES)
    with pytest.raises(DJIPError, match="belongs to a fit with another settings"):
        search(checkpoint=tmp_path / "fit.pth", queries=2 * IMAGES, **{name: value})


def as_the_last_version_wrote_it(place: Path, **settings: Any) -> None:
    """It kept all settings, and the band as it was given."""
    state = torch.load(place, weights_only=True)
    kept = state["identity"]["settings"]
    assert set(kept) <= set(vars(FitSettings()))
    state["identity"]["settings"] = asdict(FitSettings()) | kept | settings
    torch.save(state, place)


def test_a_search_begun_by_the_last_version_goes_on(tmp_path: Path) -> None:
    place, whole = tmp_path / "fit.pth", search(queries=9 * IMAGES)
    search(checkpoint=place, queries=5 * IMAGES)
    as_the_last_version_wrote_it(place, rounds=4, cmi_gain=list(GAIN["cmi_gain"]))
    result = search(checkpoint=place, queries=9 * IMAGES)
    assert torch.equal(result.lens.q, whole.lens.q)
    as_the_last_version_wrote_it(place, q_min=2.0)
    with pytest.raises(DJIPError, match="belongs to a fit with another settings"):
        search(checkpoint=place, queries=9 * IMAGES)


def test_numpy_numbers_leave_a_checkpoint_that_can_be_read(tmp_path: Path) -> None:
    place, whole = tmp_path / "fit.pth", search()

    def found() -> FitResult:
        return fit_lens(
            logits,
            data(),
            np.int64(CLASSES),
            mean=np.array(MEAN),
            std=np.array(STD),
            lens=JPEGLens(q=8.0, kappa=np.float64(5.0)),
            gradients=False,
            queries=np.int64(12 * IMAGES),
            checkpoint=place,
            progress=False,
            cmi_gain=np.array(GAIN["cmi_gain"]),
            max_accuracy_drop=np.float64(100.0),
        )

    found()
    assert torch.equal(found().lens.q, whole.lens.q)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_images_in_half_precision_are_searched_with(dtype: torch.dtype, tmp_path: Path) -> None:
    halves = [(image.to(dtype), label) for image, label in data()]
    place = tmp_path / "fit.pth"

    def found(batches: Any) -> FitResult:
        return fit_lens(
            lambda image: logits(image.float()), batches, CLASSES, mean=MEAN, std=STD,
            gradients=False, queries=3 * IMAGES, checkpoint=place, progress=False, **GAIN,
        )  # fmt: skip

    assert torch.isfinite(found(halves).lens.q).all()
    others = [(image + 0.5, label) for image, label in halves]
    with pytest.raises(DJIPError, match="another images"):
        found(others)


def test_the_digest_of_the_images_is_that_of_older_checkpoints() -> None:
    _, digest, _ = black_box._count(Batches(data(), CLASSES, MEAN, STD), CLASSES)
    expected = hashlib.sha256()
    for image, label in data():
        expected.update(image.numpy().tobytes())
        expected.update(label.numpy().tobytes())
    assert digest == expected.hexdigest()[:16]


def test_mistakes_are_refused_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(images: Tensor) -> Tensor:
        raise AssertionError("asked")

    with pytest.raises(DJIPError, match="the budget is 30 queries"):
        search(never, queries=30)
    with pytest.raises(DJIPError, match="queries is the budget"):
        fit_lens(Teacher(), data(), CLASSES, mean=MEAN, std=STD, queries=100)
    with monkeypatch.context() as two, pytest.raises(DJIPError, match="asks from one process"):
        two.setattr(black_box, "processes", lambda: 2)
        search(never)
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(DJIPError, match=r"djip_ext\[blackbox\]"):
        search(never)


def test_a_loader_that_changes_is_refused() -> None:
    batches = data()

    class Shrinking:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return iter(batches[: 3 if self.passes < 3 else 2])

    with pytest.raises(DJIPError, match="second pass"):
        fit_lens(
            logits,
            Shrinking(),
            CLASSES,
            mean=MEAN,
            std=STD,
            gradients=False,
            progress=False,
            **GAIN,
        )


def test_shapes_are_orthonormal() -> None:
    shapes = black_box._shapes("two").flatten(1)
    assert torch.allclose(shapes @ shapes.T / 64, torch.eye(6, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(black_box._shapes("one")[0], torch.ones(2, 8, 8).double())


@pytest.fixture
def service() -> Iterator[Callable[[Tensor], list[list[float]]]]:
    """The teacher behind HTTP: images as torch.save writes them, probabilities as JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            images = torch.load(io.BytesIO(body), weights_only=True)
            answer = json.dumps(logits(images).softmax(1).tolist()).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(images: Tensor) -> list[list[float]]:
        body = io.BytesIO()
        torch.save(images.contiguous(), body)
        url = f"http://127.0.0.1:{server.server_port}/"
        with urllib.request.urlopen(urllib.request.Request(url, body.getvalue())) as answer:
            found: list[list[float]] = json.load(answer)
            return found

    yield ask
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_behind_http_is_a_teacher(service: Callable[[Tensor], Any]) -> None:
    closed = ClosedTeacher(service, CLASSES, answers="probabilities", name="textures v1")
    result, expected = search(closed), search(logits)
    assert result.in_band and torch.allclose(result.lens.q, expected.lens.q, rtol=0.1)
    assert result.lens.metadata["teacher"] == "textures v1"
    assert closed.queries == result.lens.metadata["queries"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_and_a_quantised_module_are_teachers() -> None:
    scripted = torch.jit.trace(Teacher().eval(), torch.zeros(1, 3, 16, 16))
    assert torch.equal(search(scripted).lens.q, search(logits).lens.q)
    reduced = Teacher().eval()
    for weight in reduced.parameters():  # to eight bits, as integer engines keep them
        scale = (weight.detach().abs().amax() / 127).clamp_min(1e-12)
        weight.data = (weight / scale).round() * scale
    assert search(reduced).in_band
