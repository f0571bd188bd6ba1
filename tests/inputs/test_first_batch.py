"""What a teacher behind a lens is asked once, with its first images."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from djip_ext import DJIPError, DJIPTeacher, JPEGLens

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
NOTHING = "the lens changes nothing"


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.fc, self.calls = nn.Linear(6, 5), 0

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return scale * self.fc(self.drop(self.bn(self.conv(x))).mean((2, 3)))


class Memory(nn.Module):
    """A teacher that looks its answer up by the image's index."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = nn.Parameter(torch.randn(20, 5))

    def forward(self, x: Tensor, index: Tensor) -> Any:
        return self.answers[index], {"f": index}


def behind(network: nn.Module, lens: Any = 40.0) -> DJIPTeacher:
    chosen = JPEGLens(lens) if isinstance(lens, float) else lens
    return DJIPTeacher(network.eval(), chosen, MEAN, STD)


@pytest.fixture
def image() -> Tensor:
    return 2 * torch.rand(12, 3, 16, 16) - 1


@pytest.mark.parametrize("by_name", [False, True])
def test_a_teacher_that_answers_from_memory_is_named_once(
    by_name: bool, image: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, index = behind(Memory()), torch.arange(12)
    for _ in range(2):
        if by_name:
            teacher(x=image, index=index)
        else:
            teacher(image, index)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and NOTHING in said


@pytest.mark.parametrize("chosen", ["identity", "temperature:2"])
def test_controls_change_nothing_on_purpose(
    chosen: str, image: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    behind(Memory(), chosen)(image, torch.arange(12))
    assert capsys.readouterr().err == ""


def test_a_teacher_that_looks_is_asked_once_more_and_left_as_it_was(
    image: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network()
    teacher = behind(network)
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    first = teacher(image)
    assert network.calls == 2 and torch.equal(torch.get_rng_state(), random)
    assert torch.equal(teacher(image), first) and network.calls == 3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert capsys.readouterr().err == ""


def test_asking_once_more_draws_nothing(image: Tensor) -> None:
    class Draws(Network):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x, scale) + torch.rand(())

    answers, states = [], []
    for calls in (2, 1):
        torch.manual_seed(1)
        network = Draws()
        teacher = behind(network)
        if calls == 1:
            teacher._looks = None  # as if it had seen its first images
        torch.manual_seed(2)
        answers.append(teacher(image))
        states.append(torch.get_rng_state())
        assert network.calls == calls
    assert torch.equal(*answers) and torch.equal(*states)


def test_it_is_not_asked_where_that_would_leave_traces(image: Tensor) -> None:
    network = Network()
    teacher = behind(network)
    kept: list[Tensor] = []
    network.conv.register_forward_hook(lambda module, inputs, output: kept.append(output))
    teacher(image)
    assert network.calls == len(kept) == 1 and len(kept[0]) == 12
    network = Network()
    teacher = behind(network)
    network.bn.train()
    teacher(image)
    assert network.calls == 1


def test_a_lens_that_does_nothing_is_named(
    image: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    behind(Network(), JPEGLens(2.0, alpha=0.01))(image)
    assert NOTHING in capsys.readouterr().err


@pytest.mark.parametrize(
    "image, reason",
    [
        (255 * torch.rand(2, 3, 16, 16), r"lie in .*divide pixels by 255"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8 .*takes normalised floats"),
        (torch.zeros(2, 1, 16, 16), r"float32 \(2, 1, 16, 16\)"),
        (torch.zeros(3, 16, 16), r"\(3, 16, 16\)"),
        ([1, 2], "are a list, not a tensor"),
    ],
)
def test_images_that_cannot_be_right(image: Any, reason: str) -> None:
    teacher = behind(Network())
    with pytest.raises(DJIPError, match=reason) as caught:
        teacher(image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("probe", [torch.zeros(2, 3, 16, 16), torch.randn(2, 3, 16, 16)])
def test_a_distillers_probe_does_not_use_up_the_look(
    probe: Tensor, image: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zeros or noise in the constructor tell the shape of the features, and of images nothing."""
    flat = JPEGLens(8.0, kappa=5.0)  # of which a block of zeros, -4 in DC, is a fixed point
    teacher = DJIPTeacher(Network().eval(), flat, (0.0,) * 3, (1.0,) * 3)
    teacher(probe)
    assert capsys.readouterr().err == ""
    with pytest.raises(DJIPError, match="divide pixels by 255"):
        teacher(255 * torch.rand(2, 3, 16, 16))
    remembers = behind(Memory())
    remembers(torch.zeros_like(image), torch.arange(12))
    remembers(image, torch.arange(12))
    assert NOTHING in capsys.readouterr().err


def test_later_batches_are_looked_at_too_and_not_for_ever(
    image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[float] = []
    monkeypatch.setattr(
        "djip_ext.teacher.check_range", lambda x, *_: looked.append(float(x[0, 0, 0, 0]))
    )
    teacher = behind(Network())
    for call in range(1, 20):
        teacher(torch.cat([torch.full((1, 3, 16, 16), 10.0 * call), image]))
    assert looked == [10, 20, 40, 80]


def test_a_recorded_call_reads_no_number(image: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph is recorded after some calls, at which a look may be due."""
    teacher = behind(Network())
    for _ in range(3):
        teacher(image)
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    monkeypatch.setattr("djip_ext.teacher.check_range", lambda *_: pytest.fail("it was looked at"))
    teacher(image)


def test_an_empty_first_batch_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    teacher = behind(Network())
    assert teacher(torch.zeros(0, 3, 16, 16)).shape == (0, 5)
    assert capsys.readouterr().err == ""
