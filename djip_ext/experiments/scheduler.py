"""Running a plan: as processes of this machine, or as jobs of a cluster; several engines may work on one plan at once.

A step is skipped when its result is there, waited for while another process holds its lock, and resumed otherwise: that is
all the coordination there is, and it is the commands' own (``djip train`` and ``djip fit`` lock what they write).
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
    """What became of the steps: finished here, finished before or elsewhere, failed, and left undone since they need a failed one."""

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
    outcome, pending, running = Outcome(), list(steps), {}
    finished: set[Step] = set()
    retry_at: dict[Step, float] = {}
    began: dict[Step, float] = {}
    total = len(steps)

    def tell(step: Step, what: str) -> None:
        count = len(outcome.here) + len(outcome.found) + len(outcome.failed)
        say(f"[{count}/{total}] {step.name}: {what}")

    try:
        while pending or running:
            for step in list(pending):
                if any(need in outcome.failed or need in outcome.blocked for need in step.needs):
                    pending.remove(step)
                    outcome.blocked.append(step)
                elif (
                    len(running) < workers
                    and finished.issuperset(step.needs)
                    and time.monotonic() >= retry_at.get(step, 0)
                ):
                    pending.remove(step)
                    if (result := step.result()) is not None:
                        outcome.found.append(step)
                        finished.add(step)
                        tell(step, f"done already{_brief(result)}")
                    else:
                        began[step], running[step] = time.monotonic(), start(step)
            for step, job in list(running.items()):
                status = job.poll()
                if status is None:
                    continue
                del running[step]
                result = step.result()
                if status == os.EX_TEMPFAIL:
                    retry_at[step] = time.monotonic() + AGAIN
                    pending.append(step)
                elif status == 0 and result is not None:
                    outcome.here.append(step)
                    finished.add(step)
                    tell(step, f"{time.monotonic() - began[step]:.0f} s{_brief(result)}")
                else:
                    outcome.failed.append(step)
                    tell(step, f"FAILED with status {status}")
            time.sleep(0.1)
    finally:
        for job in running.values():
            job.terminate()
    return outcome


def _brief(result: dict[str, Any]) -> str:
    if "last_acc" in result:
        return f", {result['last_acc']:.2f} %"
    before, after = (result["about"][key]["cmi"] for key in ("before", "after"))
    return f", CMI {before:.3f} -> {after:.3f}"


def call(words: Sequence[str], log: str, threads: int) -> int:
    """Run ``djip WORDS`` as a process of its own with its output appended to ``log``; returns its exit status."""
    return start_process(words, log, threads).wait()


def start_process(words: Sequence[str], log: str, threads: int) -> "subprocess.Popen[bytes]":
    """Begin ``djip WORDS`` with this Python; ``threads`` only where OMP_NUM_THREADS does not say (0: torch's own choice)."""
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
    """What each of several workers gets of this machine's cores; 0, torch's own choice, for a single one."""
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else 0


def cluster_start(cluster: str, out: str, parameters: dict[str, Any]) -> Callable[[Step], Job]:
    """Steps as jobs of submitit: ``cluster`` is "slurm", or "local" to try it without one.

    Args:
        parameters: what ``submitit.AutoExecutor.update_parameters`` takes, e.g. ``timeout_min``, ``slurm_partition``.

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
    """A job of submitit with the surface of a process."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return self.job.result()
        except (
            Exception
        ):  # killed, out of time, lost: submitit has a dozen ways to say it, and its own log
            return 1

    def terminate(self) -> None:
        self.job.cancel()
