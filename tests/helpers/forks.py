"""Running host code in a child process, since it changes the process it runs in."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(folder: Path, run: Callable[[], object], seconds: int = 0) -> tuple[int, str]:
    """Exit status and output of ``run()`` in a child process that works in ``folder``.

    A child that computes for longer than ``seconds`` (0: no limit), or waits ten times as long, is
    killed: its status is negative.
    """
    log = folder / "log.txt"
    child = os.fork()
    if child == 0:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w")
        sys.excepthook = sys.__excepthook__
        os.chdir(folder)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.alarm(10 * seconds)
        status = 0
        try:
            run()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        except BaseException:
            status = 99
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), log.read_text(errors="replace")
