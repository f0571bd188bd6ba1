"""Several processes, as torchrun starts them: sums over all, and what only the first one does.

Without a process group every function here is the identity, so that one process computes exactly
what it would alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from djip_ext.errors import DJIPError

T = TypeVar("T")


def processes() -> int:
    """How many processes share the work; 1 without a process group."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _grouped() else 0


def shard() -> tuple[int, int]:
    """(rank, processes)."""
    return rank(), processes()


def say(text: str) -> None:
    """Print ``text`` once, by the first process."""
    if rank() == 0:
        print(text, flush=True)


def sum_all(value: Tensor) -> Tensor:
    """The sum of ``value`` over all processes, the same in each.

    ``value`` itself may be overwritten.
    """
    if processes() == 1:
        return value
    shared = value.cuda() if dist.get_backend() == "nccl" else value  # NCCL knows GPUs only
    dist.all_reduce(shared)
    return shared.to(value.device)


def mean_all(value: Tensor, weight: int) -> Tensor:
    """The mean of ``value`` (K,) over all processes, each counted ``weight`` times.

    Sums are float64.
    """
    if processes() == 1:
        return value
    total = value.new_tensor([weight], dtype=torch.float64)
    weighted = sum_all(torch.cat([weight * value.double(), total]))
    return (weighted[:-1] / weighted[-1]).to(value.dtype)


def in_step(batches: Iterable[T]) -> Iterator[T | None]:
    """Yield batches until every process has run out.

    A process that has run out earlier gets ``None`` meanwhile.  A sum between two batches then
    always finds all processes.
    """
    if processes() == 1:
        yield from batches
        return
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if sum_all(torch.tensor(int(batch is not None))).item() == 0:
            return
        yield batch


def by_first(function: Callable[[], T]) -> T:
    """Call ``function`` in the first process; all of them return its result.

    Raises:
        DJIPError: ``function`` raised one; it is raised in all processes.
    """
    if processes() == 1:
        return function()
    answer: list[object] = [None, None]
    if rank() == 0:
        try:
            answer[0] = function()
        except DJIPError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise DJIPError(str(answer[1]))
    return answer[0]  # type: ignore[return-value]


@contextmanager
def joined() -> Iterator[None]:
    """Join the group that torchrun's environment announces; leave it at the end.

    Without such an environment, or where this process has joined already, do nothing.  Each process
    takes the GPU of its ``LOCAL_RANK`` (NCCL), or the CPU where there is none (Gloo).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or _grouped():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
