"""The random numbers of a fit: the order in which a loader is read, and the caller's own state."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import torch

CHANGED = (
    "the loader's second pass holds {} that its first did not; every pass must yield the same "
    "images, so fix its set before the fit"
)


class HasEpoch(Protocol):
    """A loader whose order or augmentation depends on the number of the epoch."""

    epoch: int


def has_epoch(loader: object) -> TypeGuard[HasEpoch]:
    """Whether ``loader`` counts epochs."""
    return hasattr(loader, "epoch")


def begin_round(loader: Iterable[Any], seed: int, index: int) -> None:
    """Make the order in which ``loader`` is read a function of (seed, round).

    Whatever was drawn before does not matter.
    """
    number = 1_000_003 * seed + index
    torch.manual_seed(number)
    for generator in generators(loader):
        generator.manual_seed(number)
    if has_epoch(loader):
        loader.epoch = index
    for sampler in samplers(loader):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(index)  # torch's DistributedSampler, which shuffles by itself


def samplers(loader: Iterable[Any]) -> list[Any]:
    """The sampler of a DataLoader, its batch sampler, and the sampler inside that one."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inside = getattr(batch_sampler, "sampler", None)
    return [getattr(loader, "sampler", None), batch_sampler, inside]


def generators(loader: Iterable[Any]) -> list[torch.Generator]:
    """The generators from which a DataLoader or its samplers draw their order, each once."""
    found = (getattr(part, "generator", None) for part in (loader, *samplers(loader)))
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def kept_random_state(loader: Iterable[Any]) -> Iterator[None]:
    """Leave the random state of the caller and of ``loader`` afterwards as it was before."""
    states = [(generator, generator.get_state()) for generator in generators(loader)]
    epoch = loader.epoch if has_epoch(loader) else None
    epochs = [
        (sampler, sampler.epoch)
        for sampler in samplers(loader)
        if has_epoch(sampler) and hasattr(sampler, "set_epoch")
    ]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            for generator, state in states:
                generator.set_state(state)
            if epoch is not None and has_epoch(loader):
                loader.epoch = epoch
            for sampler, number in epochs:
                sampler.set_epoch(number)
