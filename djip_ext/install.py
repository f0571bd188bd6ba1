"""Plugging a lens into a benchmark: every distiller of its registry gets the amplified teacher, unchanged otherwise.

mdistiller, its forks and the embedded benchmark share one seam, ``<package>.distillers.distiller_dict``, called as
``distiller_dict[TYPE](student, teacher, cfg[, num_data])``.  Its values are replaced in place, since others hold
references to the dict itself.
"""

import functools
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .additions import add_missing, module_name
from .errors import DJIPError
from .lens import JPEGLens
from .lens_file import lens_id, read_lens
from .pixels import NORMALISATIONS
from .teacher import DJIPTeacher


@dataclass
class _Installation:
    originals: dict[str, Any]  # the registry as it was
    remove_additions: Callable[[], None]
    teachers: int = 0  # how many have been put behind the lens


_INSTALLED: dict[str, _Installation] = {}  # by package


def install(lens: str | os.PathLike[str] | JPEGLens, package: str = "mdistiller", any_teacher: bool = False) -> str:
    """Put ``lens`` in front of the teacher of every distiller that ``package`` will build from now on.

    Also registers the distillers of this project that the package lacks, with their configuration nodes.

    Args:
        lens: a path, a :class:`JPEGLens`, or ``"identity"``, the fair baseline: the same wrapper, no change of the images; or
            ``"temperature:K"``, which divides the plain teacher's logits by K.
        package: the benchmark, imported if need be; it must have ``<package>.distillers.distiller_dict``.  "." is one whose
            ``distillers`` is no part of a package.
        any_teacher: accept a lens that was fitted for other weights or another data set.

    Returns:
        one line that says what is active.  Installing again replaces the lens.

    Raises:
        DJIPError: the package or its registry is missing, or the lens cannot be read.
    """
    if isinstance(lens, (str, os.PathLike)):
        lens = read_lens(lens)
    registry = find_registry(package)
    uninstall(package)
    installation = _INSTALLED[package] = _Installation(dict(registry), add_missing(package, registry))
    for name, build in list(registry.items()):
        if name != "NONE":  # the one entry without a teacher
            registry[name] = _with_lens(build, lens, any_teacher, installation)
    return describe(lens, package, len(registry) - ("NONE" in registry))


def uninstall(package: str = "mdistiller") -> None:
    """Restore the registry of ``package`` exactly; does nothing when no lens is installed."""
    installation = _INSTALLED.pop(package, None)
    if installation is not None:
        installation.remove_additions()
        registry = find_registry(package)
        registry.clear()
        registry.update(installation.originals)


def teachers_behind_lens(package: str) -> int:
    """How many teachers have been put behind the lens since it was installed in ``package``."""
    return _INSTALLED[package].teachers if package in _INSTALLED else 0


def count_teachers(package: str, number: int) -> None:
    """Note that ``number`` teachers were put behind the lens, in processes of their own."""
    if package in _INSTALLED:
        _INSTALLED[package].teachers += number


def find_registry(package: str) -> dict[str, Any]:
    """``<package>.distillers.distiller_dict``; raises DJIPError that names what was looked for."""
    name = module_name(package, "distillers")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise DJIPError(f"cannot import {name} ({error}); run from the benchmark's checkout or name its package") from error
    registry = getattr(module, "distiller_dict", None)
    if not isinstance(registry, dict) or not registry:
        raise DJIPError(f"{name} ({module.__file__}) has no distiller_dict; djip_ext plugs in there and nowhere else")
    return registry


def describe(lens: JPEGLens | str, package: str, distillers: int) -> str:
    """The line that says a lens is active: its id, CMI and the teacher's accuracy without and with it."""
    if isinstance(lens, str):
        what = "identity lens in front of" if lens == "identity" else f"no lens, but {lens} behind"
        return f"djip: {what} the teacher of {distillers} distillers of {package}"
    line = f"djip: lens {lens_id(lens)} in front of the teacher of {distillers} distillers of {package}"
    before, after = lens.metadata.get("before"), lens.metadata.get("after")
    if before and after:
        line += f"; CMI {before['cmi']:.3f} -> {after['cmi']:.3f} nats, teacher {before['accuracy']:.2f} -> {after['accuracy']:.2f} % (fitted on)"
    return line


def put_behind(teacher: nn.Module, lens: JPEGLens | str, cfg: Any, any_teacher: bool = False) -> DJIPTeacher:
    """``teacher`` behind ``lens`` with the normalisation of the benchmark's data set: ``cfg.BENCH.MEAN`` and ``STD`` where there are any,
    else that which ``djip fit --host`` found in the host, else that of ``cfg.DATASET.TYPE``.

    Raises:
        DJIPError: the lens was fitted for another data set, normalisation or teacher, the normalisation is unknown, or the
            teacher is no network.
    """
    if not isinstance(teacher, nn.Module):
        raise DJIPError(f"the teacher is a {type(teacher).__name__}; a lens goes in front of one network")
    dataset = getattr(getattr(cfg, "DATASET", None), "TYPE", None)
    about = {} if isinstance(lens, str) else lens.metadata
    if dataset and about.get("dataset", dataset) != dataset and not any_teacher:
        raise DJIPError(f"the lens was fitted on {about['dataset']}, this run is on {dataset}; fit one on {dataset}, or insist with --djip-any-teacher")
    bench = getattr(cfg, "BENCH", None)  # the embedded benchmark's node, whose loader says what it normalised with
    if bench is not None and bench.MEAN and bench.STD:
        mean, std = bench.MEAN, bench.STD
    elif about.get("host") and about.get("dataset") == dataset:  # fitted with a host's own data: it read their scale there
        mean, std = about["mean"], about["std"]
    elif dataset in NORMALISATIONS:
        mean, std = NORMALISATIONS[dataset]
    elif "mean" in about:
        mean, std = about["mean"], about["std"]
    elif isinstance(lens, str):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # never used: the images pass untouched
    else:
        raise DJIPError(f"DATASET.TYPE is '{dataset}', whose normalisation is unknown, and the lens does not say; fit it with fit_lens or djip fit")
    return DJIPTeacher(teacher, lens, mean, std, any_teacher)  # type: ignore[arg-type]


def _with_lens(build: Any, lens: JPEGLens | str, any_teacher: bool, installation: _Installation) -> Any:
    """``build`` with its second argument, the teacher, behind the lens; one that takes ``(student, cfg)`` alone has no teacher."""

    @functools.wraps(build, updated=())
    def build_with_lens(student: nn.Module, teacher: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if not args and "cfg" not in kwargs:
            return build(student, teacher, **kwargs)
        amplified = put_behind(teacher, lens, args[0] if args else kwargs["cfg"], any_teacher)
        installation.teachers += 1
        return build(student, amplified, *args, **kwargs)

    return build_with_lens
