"""``djip ARGUMENTS`` on forty images, its commands forked instead of started anew, for speed.

With ``ON`` in the environment, a command's first write of a file whose path ends like that, after
``SKIP`` of them that go well, goes wrong half-way: ``HOW=kill`` kills the whole process group with
signal 9, ``HOW=full`` says that the disk is full.  ``PER_CLASS`` images of each class are
generated, two unless it says otherwise.
"""

import fnmatch
import os
import signal
import sys

import torch
import torch._dynamo  # the first optimizer would import it, in every fork anew

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.cli.main import main
from djip_ext.experiments import scheduler

torch.set_num_threads(1)


class Forked:
    """A ``djip`` command as a fork of this process, with the surface of a ``Popen``."""

    def __init__(self, words: list[str], log: str, threads: int) -> None:
        os.makedirs(os.path.dirname(log), exist_ok=True)
        sys.stdout.flush()
        self.process = os.fork()
        if self.process == 0:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            status = 1
            try:
                main(words)
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(status)

    def poll(self) -> int | None:
        found, status = os.waitpid(self.process, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def terminate(self) -> None:
        os.kill(self.process, signal.SIGTERM)


def replace(source: str, target: str) -> None:
    """``os.replace``, which every write of ours ends with."""
    if (
        "ON" in os.environ
        and fnmatch.fnmatch(str(target), f"*{os.environ['ON']}")
        and not next(to_skip, False)
    ):
        os.truncate(source, os.path.getsize(source) // 2)
        if os.environ["HOW"] == "kill":
            os.killpg(0, signal.SIGKILL)
        raise OSError(28, "No space left on device")
    move(source, target)


PER_CLASS = int(os.environ.get("PER_CLASS", "2"))
to_skip = iter([True] * int(os.environ.get("SKIP", "0")))
move, os.replace = os.replace, replace
image_sets.make_synthetic = lambda per_class, seed: make_synthetic(PER_CLASS, seed)
scheduler.start_process = Forked
scheduler.AGAIN = 0.2
main(sys.argv[1:])
