"""Files that are written whole or not at all, and by one process at a time.

A crash, a kill -9 or a full disk never leaves half of one.
"""

import contextlib
import csv
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from djip_ext.errors import Busy, DJIPError, first_line
from djip_ext.utils.distributed import say

# A list of numbers in indented JSON; no string there holds a real line break.
NUMBERS = re.compile(r"\[\n([^\[\]{}\"]+)\n *\]")


def atomic_write(path: str | os.PathLike[str], write: Callable[[Path], object]) -> Path:
    """Let ``write(temporary)`` make the file beside ``path``, then move it into place in one step.

    Args:
        path: the file to make or to replace; its folder is made when missing.
        write: receives the temporary path and writes the whole file there.

    Raises:
        DJIPError: the operating system refused (disk full, no permission); ``path`` is then as it
            was before.
    """
    path = Path(path)
    # machines that share the folder may have processes of one number
    own = f"{socket.gethostname()}.{os.getpid()}"
    temporary = path.with_name(f".{path.name}.{own}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DJIPError(
            f"cannot write {path}: {reason}; free space or choose another place. Nothing was "
            "changed"
        ) from error
    except RuntimeError as error:  # of torch.save and safetensors, about a full disk for example
        raise DJIPError(f"cannot write {path}: {first_line(error)}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):  # not there, nor can be: the error above says why
            temporary.unlink()
    return path


def write_json(path: str | os.PathLike[str], record: dict[str, Any]) -> Path:
    """Write ``record`` as indented JSON, a list of numbers on one line, atomically."""
    text = NUMBERS.sub(
        lambda match: f"[{' '.join(match[1].split())}]", json.dumps(record, indent=2)
    )
    return atomic_write(path, lambda p: p.write_text(text + "\n"))


def write_csv(path: str | os.PathLike[str], rows: Sequence[dict[str, Any]]) -> Path:
    """Write one or more rows with equal keys as CSV under a header, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)

    return atomic_write(path, write)


@contextlib.contextmanager
def claimed(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold the lock file ``path`` while ``what`` is worked on.

    The system frees it with the process, however that ends.

    Raises:
        Busy: another process holds it.
        DJIPError: the file cannot be made.
    """
    lock = FileLock(path)
    with _making(path):
        try:
            lock.acquire(blocking=False)
            while not _names(path, lock):
                lock.release()
                lock.acquire(blocking=False)
        except Timeout as error:
            raise Busy(f"another process is at work on {what}; wait for it or stop it") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows keeps a file that is open
            Path(path).unlink()  # while it is held: see _names
        lock.release()


@contextlib.contextmanager
def taking_turns(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold the lock file ``path`` while ``what`` is made, waiting for a process that holds it.

    The file stays: others may be waiting for it.

    Args:
        what: names the work, for the line that says why nothing happens.

    Raises:
        DJIPError: the file cannot be made.
    """
    lock = FileLock(path)
    with _making(path):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            say(f"waiting for another process, which makes {what}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _making(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make the folder of the lock file ``path``; what the system refuses is a DJIPError."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DJIPError(
            f"cannot lock {path}: {error.strerror or error}; choose another place"
        ) from error


def _names(path: str | os.PathLike[str], lock: BaseFileLock) -> bool:
    """Whether ``path`` is the file that is locked.

    It is not when the process that held the lock before deleted the file as we opened it.
    """
    held = lock._context.lock_file_fd
    try:
        return held is not None and os.path.samestat(os.fstat(held), os.stat(path))
    except FileNotFoundError:
        return False
