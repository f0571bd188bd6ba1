"""Processes that a host's script spawns itself start without what its first process did to the host; here they do it again."""

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.multiprocessing  # noqa: F401  (patched below)


@dataclass(frozen=True)
class Spawned:
    """``function(index, *args)``, after ``prepare(index)`` in the same process."""

    function: Callable[..., Any]
    prepare: Callable[[int], None]

    def __call__(self, index: int, *args: Any) -> Any:
        self.prepare(index)
        return self.function(index, *args)


def follow_spawn(prepare: Callable[[int], None], finished: Callable[[int], None]) -> None:
    """Let every process that ``torch.multiprocessing.spawn`` starts call ``prepare(index)``, picklable, before its own work.

    ``finished`` gets the number of processes when they have ended well.
    """
    module = sys.modules["torch.multiprocessing.spawn"]  # the attribute of that name is a function
    start = module.start_processes

    @functools.wraps(start)
    def start_prepared(
        fn: Callable[..., Any],
        args: tuple[Any, ...] = (),
        nprocs: int = 1,
        *rest: Any,
        **options: Any,
    ) -> Any:
        context = start(Spawned(fn, prepare), args, nprocs, *rest, **options)
        finished(nprocs)
        return context

    module.start_processes = torch.multiprocessing.start_processes = start_prepared
