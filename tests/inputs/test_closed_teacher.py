"""Answers of every kind become logits; what is neither logits nor probabilities is refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from djip_ext import ClosedTeacher, DJIPError, DJIPTeacher, JPEGLens
from djip_ext.lens.io import weight_hash

IMAGES = torch.zeros(2, 3, 8, 8)
F = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.25, 0.25]])


def answer(value: object, answers: str = "probabilities", classes: int = 4) -> Tensor:
    return ClosedTeacher(lambda images: value, classes, answers)(IMAGES)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [lambda f: f, lambda f: f.numpy(), lambda f: f.tolist()])
def test_probabilities_become_their_logarithms(kind: object) -> None:
    logits = answer(kind(F))  # type: ignore[operator]
    assert torch.allclose(logits.softmax(1), F, atol=1e-6)
    assert torch.isfinite(logits).all() and logits.dtype == torch.float32


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: (x, "more"),
        lambda x: SimpleNamespace(logits=x),
        lambda x: SimpleNamespace(logits=x.numpy()),
    ],
)
def test_logits_are_taken_from_the_usual_places(wrap: object) -> None:
    logits = torch.randn(2, 4)
    assert torch.equal(answer(wrap(logits), "logits"), logits)  # type: ignore[operator]
    assert torch.equal(answer([logits.numpy()][0], "logits"), logits)


def test_the_rest_of_the_largest_is_spread_evenly() -> None:
    values, classes = F.topk(2)
    spread = answer((values, classes)).softmax(1)
    assert torch.allclose(spread[0], torch.tensor([0.7, 0.1, 0.1, 0.1]), atol=1e-6)
    assert spread[1, 1] == pytest.approx(0.5, abs=1e-6)
    assert answer((values, classes)).exp().sum(1) == pytest.approx(1)
    assert torch.equal(answer((values.tolist(), classes.tolist())), answer((values, classes)))
    whole = answer(tuple(F.topk(4)))
    assert torch.allclose(whole.softmax(1), F, atol=1e-6)


def test_what_is_taken_for_something_else_is_refused() -> None:
    with pytest.raises(DJIPError, match="answers='probabilities'"):
        answer(F, "logits")
    with pytest.raises(DJIPError, match="no probabilities"):
        answer(torch.randn(2, 4) * 5)
    with pytest.raises(DJIPError, match=r"answers \(2, 3\) to 2 images of 4"):
        answer(torch.randn(2, 3), "logits")
    with pytest.raises(DJIPError, match="classes in 0"):
        answer((F[:, :2], torch.tensor([[0, 4], [0, 1]])))
    with pytest.raises(DJIPError, match="sum to"):
        answer((F[:, :2] + 0.6, torch.tensor([[0, 3], [0, 1]])))
    with pytest.raises(DJIPError, match="needs numbers"):
        answer("an error message", "logits")
    with pytest.raises(DJIPError, match="choose logits or probabilities"):
        answer(F, "labels")


def test_modules_that_answer_are_told_apart_by_their_weights() -> None:
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4)) for _ in range(2)]
    first, second = (ClosedTeacher(network, 4) for network in networks)
    assert weight_hash(first) != weight_hash(second)
    images = torch.randn(2, 3, 2, 2)
    assert torch.equal(first(images), networks[0](images).detach())


def test_queries_are_counted_and_names_tell_teachers_apart() -> None:
    one, other = (ClosedTeacher(lambda x: F, 4, "probabilities", name=n) for n in "ab")
    one(IMAGES)
    one(IMAGES)
    assert one.queries == 4 and other.queries == 0
    assert weight_hash(one) != weight_hash(other)
    lens = JPEGLens()
    lens.metadata = {"teacher_hash": weight_hash(one)}
    behind = DJIPTeacher(one, lens, (0.5,) * 3, (0.2,) * 3)
    assert torch.allclose(behind(IMAGES).softmax(1), F, atol=1e-6)
    with pytest.raises(DJIPError, match="fitted for"):
        DJIPTeacher(other, lens, (0.5,) * 3, (0.2,) * 3)
