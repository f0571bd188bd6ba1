"""results/cifar100/beyond.py: what a family of lenses answers together."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

VIEWS, IMAGES, CLASSES = 7, 40, 5


@pytest.fixture(scope="module")
def beyond() -> ModuleType:
    path = Path(__file__).parents[2] / "results/cifar100/beyond.py"
    spec = importlib.util.spec_from_file_location("beyond", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kept(beyond: ModuleType) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    shape = (VIEWS, IMAGES, CLASSES)
    return [{"logits": (9 * torch.randn(shape)).half()} for _ in beyond.FAMILY]


def test_mean_averages_the_probabilities_that_the_distiller_reads(
    beyond: ModuleType, kept: list[dict[str, Tensor]]
) -> None:
    logits = beyond.answers_of("mean", kept, 4.0)["logits"]
    expected = sum(torch.softmax(answer["logits"].double() / 4, 2) for answer in kept) / len(kept)
    torch.testing.assert_close(torch.softmax(logits.double() / 4, 2), expected)


def test_draw_takes_each_answer_from_one_lens_and_all_lenses_in_turn(
    beyond: ModuleType, kept: list[dict[str, Tensor]]
) -> None:
    logits = beyond.answers_of("draw", kept, 4.0)["logits"]
    of_lens = torch.stack([(logits == answer["logits"].float()).all(2) for answer in kept])
    assert (of_lens.sum(0) == 1).all()  # random answers: none equals another
    share = of_lens.float().mean((1, 2))
    assert (share > 0.5 / len(kept)).all()
    again = beyond.answers_of("draw", kept, 4.0)["logits"]
    assert torch.equal(logits, again)


def test_both_shows_student_and_teacher_a_view_through_the_same_lens(
    beyond: ModuleType, kept: list[dict[str, Tensor]]
) -> None:
    logits = beyond.answers_of("both", kept, 4.0)["logits"]

    class Loader:
        views = VIEWS
        epoch = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield torch.zeros(1), None, None

    seen = []

    class Recorder(list):  # type: ignore[type-arg]
        def __getitem__(self, number):  # type: ignore[no-untyped-def]
            seen.append(number)
            return "identity"

    loader = beyond.BehindLenses(Loader(), Recorder(range(len(kept))), None)
    for epoch in range(2 * VIEWS):
        loader.epoch = epoch
        list(loader)
        view = epoch % VIEWS
        assert torch.equal(logits[view], kept[seen[-1]]["logits"][view].float())
    assert set(seen) == set(range(len(kept)))
