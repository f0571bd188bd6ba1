"""The scheduler on commands that are none: order, failure, another process, interruption."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from djip_ext.errors import Busy, DJIPError
from djip_ext.experiments import scheduler as engine
from djip_ext.experiments.scheduler import _ClusterJob, cluster_start, run_plan
from djip_ext.utils.files import claimed


@dataclass(frozen=True)
class Fake:
    """A step that is done when ``WORLD`` holds its name."""

    name: str
    needs: tuple = ()

    def result(self) -> dict | None:
        return {"last_acc": 1.0} if self.name in WORLD else None


WORLD: set[str] = set()


class Jobs:
    """Starts steps that end when asked twice, with a status by name (several: one for each try)."""

    def __init__(self, **statuses: list[int]) -> None:
        self.statuses, self.order, self.ended, self.most, self.open = statuses, [], [], 0, 0

    def __call__(self, step: Fake) -> "Jobs.Job":
        self.order.append(step.name)
        self.open += 1
        self.most = max(self.most, self.open)
        return Jobs.Job(self, step)

    class Job:
        def __init__(self, jobs: "Jobs", step: Fake) -> None:
            self.jobs, self.step, self.asked = jobs, step, 0

        def poll(self) -> int | None:
            self.asked += 1
            if self.asked < 2:
                return None
            self.jobs.open -= 1
            status = (
                self.jobs.statuses.get(self.step.name, [0]).pop(0)
                if self.jobs.statuses.get(self.step.name)
                else 0
            )
            if status == 0:
                WORLD.add(self.step.name)
            return status

        def terminate(self) -> None:
            self.jobs.ended.append(self.step.name)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    WORLD.clear()
    monkeypatch.setattr(engine.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(engine, "AGAIN", 0.0)


def steps() -> tuple[Fake, Fake, Fake, Fake]:
    a = Fake("a")
    b = Fake("b", (a,))
    return a, b, Fake("c", (a, b)), Fake("d")


def names(found: list) -> list[str]:
    return [step.name for step in found]


def test_steps_wait_for_those_they_need_and_no_more_than_the_workers_run() -> None:
    jobs = Jobs()
    outcome = run_plan(steps(), jobs, 2, lambda line: None)
    assert jobs.order == ["a", "d", "b", "c"] and jobs.most == 2
    assert sorted(names(outcome.here)) == ["a", "b", "c", "d"] and not outcome.failed


def test_what_is_done_is_not_begun() -> None:
    WORLD.update("ab")
    jobs, lines = Jobs(), []
    outcome = run_plan(steps(), jobs, 1, lines.append)
    assert jobs.order == ["c", "d"] and names(outcome.found) == ["a", "b"]
    assert lines[0] == "[1/4] a: done already, 1.00 %"


def test_a_failure_stops_only_what_needs_it() -> None:
    jobs, lines = Jobs(b=[2]), []
    outcome = run_plan(steps(), jobs, 1, lines.append)
    assert (names(outcome.failed), names(outcome.blocked), names(outcome.here)) == (
        ["b"],
        ["c"],
        ["a", "d"],
    )
    assert any("b: FAILED with status 2" in line for line in lines)


def test_a_command_that_ends_well_without_its_result_has_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Fake, "result", lambda self: None)
    assert names(run_plan(steps()[:1], Jobs(), 1, lambda line: None).failed) == ["a"]


def test_what_another_process_holds_is_tried_again() -> None:
    jobs = Jobs(a=[os.EX_TEMPFAIL, os.EX_TEMPFAIL, 0])
    outcome = run_plan(steps(), jobs, 2, lambda line: None)
    assert jobs.order.count("a") == 3 and len(outcome.here) == 4


def test_what_another_process_finished_meanwhile_is_not_begun_again() -> None:
    class Elsewhere(Jobs):
        def __call__(self, step: Fake) -> Jobs.Job:
            job = super().__call__(step)
            if step.name == "a":
                WORLD.add("a")  # by the process that holds it
            return job

    outcome = run_plan(steps(), Elsewhere(a=[os.EX_TEMPFAIL]), 1, lambda line: None)
    assert names(outcome.found) == ["a"] and len(outcome.here) == 3


def test_an_interruption_ends_the_jobs_under_way() -> None:
    jobs = Jobs()

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(steps(), jobs, 2, interrupt)
    assert jobs.ended == ["d"]  # a had ended, and told so


def test_a_lock_is_for_one_and_is_free_afterwards(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "a.lock", "the run"),
        pytest.raises(Busy, match="at work on the run"),
        claimed(tmp_path / "a.lock", "the run"),
    ):
        pass
    with claimed(tmp_path / "a.lock", "the run"):
        pass


def test_a_cluster_without_submitit_or_with_a_wrong_parameter_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(DJIPError, match="submitit refuses"):
        cluster_start("local", str(tmp_path), {"no_such_parameter": 1})
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(DJIPError, match="pip install"):
        cluster_start("local", str(tmp_path), {})


def test_a_job_that_the_cluster_kills_has_failed_and_one_under_way_can_be_ended() -> None:
    def killed() -> int:
        raise RuntimeError("out of time")

    ended: list[str] = []
    lost = SimpleNamespace(done=lambda: True, result=killed)
    going = SimpleNamespace(done=lambda: False, result=killed, cancel=lambda: ended.append("it"))
    assert (_ClusterJob(lost).poll(), _ClusterJob(going).poll()) == (1, None)
    _ClusterJob(going).terminate()
    assert ended == ["it"]
