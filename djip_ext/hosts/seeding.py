"""The seed of a run: for the generators now, and for a script that seeds them again."""

import functools
import importlib
import operator
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from djip_ext.errors import DJIPError

NUMBERS = 2**32  # numpy's seeds lie below this
SEEDING = (
    ("random", "seed"),
    ("numpy.random", "seed"),
    ("torch", "manual_seed"),
    ("torch.random", "manual_seed"),
    ("torch.cuda", "manual_seed"),
    ("torch.cuda", "manual_seed_all"),
)


def seed(number: int) -> None:
    """Seed every generator that a host draws from.

    Raises:
        DJIPError: the number is out of range.
    """
    import numpy as np

    if not 0 <= number < NUMBERS:
        raise DJIPError(f"--seed is {number}; it must lie in [0, 2^32)")
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@dataclass
class _Seeds:
    """The run's seed ``number``, and the first one that the script chose itself."""

    number: int
    first: int | None = None
    kept: bool = False  # whether a seed that is no number was left to the script

    def instead_of(self, chosen: int) -> int:
        """What a generator is seeded with where the script chose ``chosen``."""
        worker = torch.utils.data.get_worker_info()
        if worker is not None and (self.first is None or (chosen - worker.seed) % NUMBERS == 0):
            return chosen  # a worker's own number, made of the seed that it was given
        if self.first is None:
            self.first = chosen
            if chosen != self.number:
                print(
                    f"djip: the script seeds itself with {chosen}; "
                    f"it gets {self.number} in its place, as --seed asks",
                    file=sys.stderr,
                    flush=True,
                )
        return (chosen - self.first + self.number) % NUMBERS

    def keep(self, name: str, chosen: Any) -> None:
        """Say, the first time, that generator ``name`` keeps ``chosen``, which is no integer."""
        if not self.kept and torch.utils.data.get_worker_info() is None:
            self.kept = True
            print(
                f"djip: the script calls {name} with {chosen!r}, which is no integer; "
                "this seed stays the script's own, whatever --seed asks",
                file=sys.stderr,
                flush=True,
            )


def pass_seed_on(number: int) -> None:
    """Let a script that seeds itself seed with ``number`` instead, and say so once.

    Without this, ``setup_seed(args.seed)`` in the script would undo the seed of the run, and runs
    of different seeds would be one.  A script that goes on to other numbers, such as the seed plus
    the epoch, gets ``number`` plus the same difference.  torch's own calls, those for the workers
    of a loader say, are left alone.
    """
    seeds = _Seeds(number)
    for module_name, name in SEEDING:
        module = importlib.import_module(module_name)
        passing_on = _passing_on(getattr(module, name), seeds, f"{module_name}.{name}")
        setattr(module, name, passing_on)


def _passing_on(function: Callable[..., Any], seeds: _Seeds, name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def seed_instead(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] in ("torch", "numpy", "djip_ext"):
            return function(*args, **kwargs)
        chosen = args[0] if args else next(iter(kwargs.values()), None)
        if chosen is None:  # a number that nobody knows
            return function(seeds.number)
        try:
            number = operator.index(chosen)
        except TypeError:  # a text, a float or an array
            seeds.keep(name, chosen)
            return function(*args, **kwargs)
        return function(seeds.instead_of(number), *args[1:])

    return seed_instead
