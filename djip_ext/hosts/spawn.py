"""Processes that a host's script spawns itself.

They start without what the first process did to the host; here they do it again.
"""

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
    """Let every process that ``torch.multiprocessing.spawn`` starts be prepared first.

    Args:
        prepare: called with the index of the process in that process; picklable.
        finished: called with the number of processes when they have ended well.
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
        context = start(Spawned(fn, prepare), args, nprocs, *rest, **options)
        finished(nprocs)
        return context

    module.start_processes = start_prepared
    package.start_processes = start_prepared
