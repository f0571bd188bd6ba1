"""Run a plan, as processes of this machine or as jobs of a cluster.

A step is skipped when its result is there, waited for while another process holds its lock, and
resumed otherwise.  That is all the coordination there is, and it is the commands' own (``djip
train`` and ``djip fit`` lock what they write), so several schedulers may work on one plan at once.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from djip_ext.errors import DJIPError
from djip_ext.experiments.plan import Step

AGAIN = 5.0  # seconds until a step that another process holds is tried again


class Job(Protocol):
    """A command under way."""

    def poll(self) -> int | None:
        """Its exit status, None while it runs."""

    def terminate(self) -> None:
        """End it; what it finished is safe."""


@dataclass
class Outcome:
    """What became of the steps of a plan.

    Attributes:
        here: finished by this scheduler.
        found: finished before, or elsewhere.
        failed: ended with an error.
        blocked: not begun, since they need a failed one.
    """

    here: list[Step] = field(default_factory=list)
    found: list[Step] = field(default_factory=list)
    failed: list[Step] = field(default_factory=list)
    blocked: list[Step] = field(default_factory=list)


def run_plan(
    steps: Sequence[Step],
    start: Callable[[Step], Job],
    workers: int,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Bring every step to its end, at most ``workers`` at a time, each after those it needs.

    A step that fails does not stop those that do not need it.  Interrupted, it terminates its jobs.

    Args:
        start: begins a step's command and returns at once.
        say: gets a line for every step that ends.

    Raises:
        DJIPError: a step's folder holds a run with other settings.
    """
    scheduler = _Scheduler(steps, start, workers, say)
    try:
        while scheduler.pending or scheduler.running:
            scheduler.begin_what_can()
            scheduler.collect_what_ended()
            time.sleep(0.1)
    finally:
        for job in scheduler.running.values():
            job.terminate()
    return scheduler.outcome


class _Scheduler:
    """The state of :func:`run_plan`."""

    def __init__(
        self,
        steps: Sequence[Step],
        start: Callable[[Step], Job],
        workers: int,
        say: Callable[[str], None],
    ) -> None:
        self.start = start
        self.workers = workers
        self.say = say
        self.total = len(steps)
        self.outcome = Outcome()
        self.pending = list(steps)
        self.running: dict[Step, Job] = {}
        self.finished: set[Step] = set()
        self.began: dict[Step, float] = {}
        self.retry_at: dict[Step, float] = {}

    def begin_what_can(self) -> None:
        """Begin the steps that can run, pass over those that are finished or never can."""
        unusable = {*self.outcome.failed, *self.outcome.blocked}
        for step in list(self.pending):
            if not unusable.isdisjoint(step.needs):
                self.pending.remove(step)
                self.outcome.blocked.append(step)
                unusable.add(step)
            elif self._can_begin(step):
                self.pending.remove(step)
                result = step.result()
                if result is not None:
                    self._finish(step, self.outcome.found, f"done already{_brief(result)}")
                else:
                    self.began[step] = time.monotonic()
                    self.running[step] = self.start(step)

    def _can_begin(self, step: Step) -> bool:
        return (
            len(self.running) < self.workers
            and self.finished.issuperset(step.needs)
            and time.monotonic() >= self.retry_at.get(step, 0)
        )

    def collect_what_ended(self) -> None:
        """Sort the steps whose command has ended: finished, failed, or to be tried again."""
        for step, job in list(self.running.items()):
            status = job.poll()
            if status is None:
                continue
            del self.running[step]
            result = step.result()
            if status == os.EX_TEMPFAIL:  # another process holds its lock
                self.retry_at[step] = time.monotonic() + AGAIN
                self.pending.append(step)
            elif status == 0 and result is not None:
                seconds = time.monotonic() - self.began[step]
                self._finish(step, self.outcome.here, f"{seconds:.0f} s{_brief(result)}")
            else:
                self.outcome.failed.append(step)
                self._tell(step, f"FAILED with status {status}")

    def _finish(self, step: Step, among: list[Step], what: str) -> None:
        among.append(step)
        self.finished.add(step)
        self._tell(step, what)

    def _tell(self, step: Step, what: str) -> None:
        outcome = self.outcome
        count = len(outcome.here) + len(outcome.found) + len(outcome.failed)
        self.say(f"[{count}/{self.total}] {step.name}: {what}")


def _brief(result: dict[str, Any]) -> str:
    if "last_acc" in result:
        return f", {result['last_acc']:.2f} %"
    before, after = (result["about"][key]["cmi"] for key in ("before", "after"))
    return f", CMI {before:.3f} -> {after:.3f}"


def call(words: Sequence[str], log: str, threads: int) -> int:
    """Run ``djip WORDS`` as a process of its own, appending to ``log``; returns its exit status."""
    return start_process(words, log, threads).wait()


def start_process(words: Sequence[str], log: str, threads: int) -> "subprocess.Popen[bytes]":
    """Begin ``djip WORDS`` with this Python, its output appended to ``log``.

    Args:
        threads: of torch, where OMP_NUM_THREADS does not say; 0 is torch's own choice.
    """
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    with open(log, "ab") as file:
        command = [sys.executable, "-m", "djip_ext", *words]
        return subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment
        )


def log_file(step: Step, out: str) -> str:
    """Where the output of ``step`` goes."""
    return str(Path(out, "logs", f"{step.name.replace(', ', '-').replace(' ', '-')}.log"))


def local_start(out: str, workers: int) -> Callable[[Step], Job]:
    """Steps as processes of this machine; several workers share its cores."""
    return lambda step: start_process(step.words, log_file(step, out), threads_of(workers))


def threads_of(workers: int) -> int:
    """How many threads each of several workers gets; 0, torch's own choice, for a single one."""
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0


def cluster_start(cluster: str, out: str, parameters: dict[str, Any]) -> Callable[[Step], Job]:
    """Steps as jobs of submitit: ``cluster`` is "slurm", or "local" to try it without one.

    Args:
        parameters: what ``submitit.AutoExecutor.update_parameters`` takes, e.g. ``timeout_min``,
            ``slurm_partition``.

    Raises:
        DJIPError: submitit is not installed, or refuses cluster or parameters.
    """
    try:
        import submitit
    except ImportError as error:
        raise DJIPError("--cluster needs submitit; pip install 'djip_ext[cluster]'") from error
    try:
        executor = submitit.AutoExecutor(folder=Path(out, "jobs"), cluster=cluster)
        executor.update_parameters(name="djip", **parameters)
    except (RuntimeError, ValueError, NameError, TypeError) as error:
        raise DJIPError(f"submitit refuses: {' '.join(str(error).split())}") from error
    return lambda step: _ClusterJob(executor.submit(call, step.words, log_file(step, out), 0))


class _ClusterJob:
    """A job of submitit with the interface of a process."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception:  # submitit's log says which of a dozen: killed, out of time, lost, ...
            return 1

    def terminate(self) -> None:
        self.job.cancel()
