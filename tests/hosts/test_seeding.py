"""The launcher's seed in a script that seeds itself."""

import functools
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorboardX  # noqa: F401  (here once, not in every fork)
import torch
import yacs.config  # noqa: F401
from helpers.forks import forked
from tiny_host import launched, write_checkout

from djip_ext.hosts.seeding import pass_seed_on
from djip_ext.launch import run_script


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return write_checkout(tmp_path)


def student(checkout: Path, *argv: str) -> tuple[torch.Tensor, str]:
    """The weights of the student that the launcher trains, and what it printed."""
    return trained(checkout, *launched(checkout, *argv))


def trained(checkout: Path, status: int, output: str) -> tuple[torch.Tensor, str]:
    assert status == 0, output
    (latest,) = (path for path in checkout.rglob("latest"))
    weight = torch.load(latest)["1.weight"]
    latest.unlink()
    return weight, output


def test_three_seeds_are_three_students_and_one_seed_twice_is_one(checkout: Path) -> None:
    students = {}
    for number in ("100", "101", "102"):
        students[number], output = student(checkout, "--seed", number, "tools/train.py")
        assert output.count("the script seeds itself with 42; it gets " + number) == 1
        assert f"trained in output/project/seed-{number}/name" in output
    assert not torch.equal(students["100"], students["101"])
    assert not torch.equal(students["101"], students["102"])
    assert not torch.equal(students["100"], students["102"])
    again, _ = student(checkout, "--seed", "100", "tools/train.py")
    assert torch.equal(again, students["100"])
    own, output = student(checkout, "tools/train.py", "--seed", "100")
    assert torch.equal(own, students["100"]) and "seeds itself" not in output


def test_the_scripts_own_seed_that_is_the_launchers_is_not_spoken_of(checkout: Path) -> None:
    _, output = student(checkout, "--seed", "7", "tools/train.py", "--seed", "7")
    assert "seeds itself" not in output


def test_the_added_line_passes_its_seed_on_too(checkout: Path) -> None:
    def run(number: str) -> None:
        sys.path.insert(0, str(checkout))
        run_script("tools/patched.py", ["--djip-seed", number])

    students = []
    for number in ("100", "101"):
        status, output = forked(checkout, functools.partial(run, number))
        students.append(trained(checkout, status, output)[0])
    assert not torch.equal(*students)
    assert torch.equal(students[0], student(checkout, "--seed", "100", "tools/train.py")[0])
    assert torch.equal(students[0], student(checkout, "tools/patched.py", "--djip-seed", "100")[0])


SCRIPT = """
import random
import numpy as np
import torch
from torch.utils.data import DataLoader

class Draws:
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return torch.rand(())

def drawn():
    return random.random(), np.random.rand(), torch.rand(()).item()

def epoch():
    return [x.item() for x in DataLoader(Draws(), None, num_workers=2)]
"""


def test_every_generator_gets_the_seed_with_the_scripts_differences(tmp_path: Path) -> None:
    def run() -> None:
        pass_seed_on(5)
        space = {"__name__": "__main__"}
        exec(SCRIPT, space)
        for number in (42, 43):
            exec(f"random.seed({number}); np.random.seed(seed={number})", space)
            exec(f"torch.manual_seed({number})", space)
            found = eval("drawn()", space)
            seed = 5 + number - 42
            expected = (
                random.Random(seed).random(),
                np.random.RandomState(seed).rand(),
                torch.rand((), generator=torch.Generator().manual_seed(seed)).item(),
            )
            assert found == expected
        exec("random.seed()", space)  # by the clock
        assert eval("random.random()", space) == random.Random(5).random()
        exec("random.seed('text')", space)
        assert eval("random.random()", space) == random.Random("text").random()

    status, output = forked(tmp_path, run)
    assert status == 0, output


def test_the_workers_of_a_loader_keep_numbers_of_their_own(tmp_path: Path) -> None:
    def run() -> None:
        space = {"__name__": "__main__"}
        exec(SCRIPT, space)
        torch.manual_seed(5)
        plain = [eval("epoch()", space) for _ in range(2)]
        pass_seed_on(5)
        exec("torch.manual_seed(42)", space)
        assert [eval("epoch()", space) for _ in range(2)] == plain
        assert len({value for values in plain for value in values}) == 8
        sys.stdout.flush()

    status, output = forked(tmp_path, run)
    assert status == 0, output


def test_a_worker_that_seeds_numpy_by_its_own_number_keeps_that(tmp_path: Path) -> None:
    """As the documentation of torch advises; with --seed 5 the run is that of the script's 5."""
    worker = """
def by_its_number(worker):
    np.random.seed(torch.initial_seed() % 2**32)

class Draws:
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return np.random.rand()

def epoch():
    return [float(x) for x in DataLoader(Draws(), None, num_workers=2,
                                         worker_init_fn=by_its_number)]
"""

    def run() -> None:
        space = {"__name__": "__main__"}
        exec(SCRIPT + worker, space)
        torch.manual_seed(5)
        plain = eval("epoch()", space)
        pass_seed_on(5)
        exec("torch.manual_seed(42)", space)
        assert eval("epoch()", space) == plain
        sys.stdout.flush()

    status, output = forked(tmp_path, run)
    assert status == 0, output


@pytest.mark.parametrize(
    "call, draw",
    [
        ("np.random.seed(np.array([1, 2]))", "np.random.rand()"),
        ("np.random.seed([1, 2])", "np.random.rand()"),
        ("random.seed(1.5)", "random.random()"),
    ],
)
def test_a_seed_that_is_no_integer_stays_and_is_spoken_of_once(
    call: str, draw: str, tmp_path: Path
) -> None:
    def run() -> None:
        space = {"__name__": "__main__", "np": np, "random": random}
        exec(call, space)
        plain = eval(draw, space)
        pass_seed_on(5)
        exec(f"{call}; {call}", space)
        assert eval(draw, space) == plain

    status, output = forked(tmp_path, run)
    assert status == 0, output
    assert output.count("which is no integer; this seed stays the script's own") == 1, output
