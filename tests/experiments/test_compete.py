"""The rounds of ``djip tune`` on students that are numbers: who stays, when it ends, a signal."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from djip_ext.cli import tune
from djip_ext.errors import DJIPError
from djip_ext.experiments import scheduler
from djip_ext.experiments.tuning import Candidate

PLAIN, A, B = map(Candidate, ("plain", "a", "b"))
SETTINGS = {"epochs": 5, "seeds": 6}  # 18 students of three candidates


@dataclass(frozen=True)
class Student:
    """A student whose accuracy is known; None: still to be trained."""

    name: str
    accuracy: float | None
    needs: tuple = ()

    def result(self) -> dict[str, float] | None:
        return None if self.accuracy is None else {"last_acc": self.accuracy}


def tuning(a: Sequence[float | None], b: Sequence[float | None]) -> SimpleNamespace:
    """Candidates whose differences to the plain teacher repeat in turn over the seeds."""

    def students(seeds: int, epochs: int = 5) -> dict[Candidate, list[Student]]:
        assert epochs == SETTINGS["epochs"]
        return {
            candidate: [
                Student(f"{candidate}, seed {seed}", None if gain is None else 50.0 + seed + gain)
                for seed, gain in enumerate((list(gains) * seeds)[:seeds])
            ]
            for candidate, gains in ((PLAIN, [0.0]), (A, a), (B, b))
        }

    return SimpleNamespace(
        pool=[PLAIN, A, B],
        baseline=PLAIN,
        out=Path("out"),
        steps=SimpleNamespace(students=students),
        seeds=lambda settings: settings["seeds"],
        settings=lambda data: SETTINGS,
    )


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize(
    ("a", "b", "trained"),
    [
        ([-5.0, -5.1], [1.0, -1.0], (7, 3, 7)),
        ([5.0, 5.1], [-5.0, -5.1], (3, 3, 3)),
        ([1.0, -1.0], [-1.0, 1.0], (6, 6, 6)),
    ],
    ids=["what is dropped leaves its share", "a clear winner ends it", "noise takes the budget"],
)
def test_the_budget_goes_to_those_between_whom_it_is_open(
    a: list[float], b: list[float], trained: tuple[int, int, int]
) -> None:
    scores = tune.compete(tuning(a, b), SETTINGS, lambda step: 1 / 0, 1)
    expected = zip((PLAIN, A, B), trained, strict=True)
    assert {one: list(seeds) for one, seeds in scores.items()} == {
        one: list(range(seeds)) for one, seeds in expected
    }
    assert scores[A][1] == 51.0 + a[1]


def test_a_student_that_fails_is_named_with_its_log() -> None:
    failed = SimpleNamespace(poll=lambda: 1)
    with pytest.raises(DJIPError, match=r"a, seed 1 failed, see out/logs/a-seed-1\.log"):
        tune.compete(tuning([1.0, None], [2.0]), SETTINGS, lambda step: failed, 1)


def test_a_signal_ends_the_students_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list = []
    ended: list[str] = []
    job = SimpleNamespace(
        poll=lambda: handlers[0](signal.SIGTERM, None), terminate=lambda: ended.append("it")
    )
    monkeypatch.setattr(signal, "signal", lambda number, handler: handlers.append(handler))
    monkeypatch.setattr(tune, "Tuning", lambda args: tuning([None], [1.0]))
    monkeypatch.setattr(tune, "check_data", lambda steps: {})
    monkeypatch.setattr(tune, "local_start", lambda out, workers: lambda step: job)
    with pytest.raises(SystemExit) as stop:
        tune.run(SimpleNamespace(workers=1, cluster=None))
    assert (stop.value.code, ended) == (128 + signal.SIGTERM, ["it"])
