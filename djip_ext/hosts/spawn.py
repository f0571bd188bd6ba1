"""Processes that a host's script spawns itself.

They start without what the first process did to the host; here they do it again.
"""

import functools
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.multiprocessing  # noqa: F401  (patched below)


@dataclass(frozen=True)
class Spawned:
    """``function(index, *args)``, after ``prepare(index)`` in the same process.

    ``teachers``, shared by the processes, holds one for this process until it ends, and then what
    ``built()`` says.
    """

    function: Callable[..., Any]
    prepare: Callable[[int], None]
    built: Callable[[], int]
    teachers: Any

    def __call__(self, index: int, *args: Any) -> Any:
        self.prepare(index)
        try:
            return self.function(index, *args)
        finally:
            with self.teachers.get_lock():
                self.teachers.value += self.built() - 1


def follow_spawn(
    prepare: Callable[[int], None],
    built: Callable[[], int],
    started: Callable[[Callable[[], int]], None],
) -> None:
    """Let every process that ``torch.multiprocessing.spawn`` starts be prepared first.

    Args:
        prepare: called with the index of the process in that process; picklable.
        built: how many teachers that process has put behind the lens; picklable.
        started: called here, with a function that sums this up over the processes; one that still
            runs counts as one.
    """
    # The attribute torch.multiprocessing.spawn is the function, not this module.
    module: Any = sys.modules["torch.multiprocessing.spawn"]
    package: Any = torch.multiprocessing
    start = module.start_processes

    @functools.wraps(start)
    def start_prepared(
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        nprocs: int = 1,
        *rest: Any,
        **options: Any,
    ) -> Any:
        teachers = multiprocessing.get_context("spawn").Value("q", nprocs)
        started(lambda: teachers.value)
        return start(Spawned(fn, prepare, built, teachers), args, nprocs, *rest, **options)

    module.start_processes = start_prepared
    package.start_processes = start_prepared
