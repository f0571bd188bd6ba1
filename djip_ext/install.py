"""Plugging a lens into a benchmark: every distiller of its registry gets the amplified teacher, unchanged otherwise.

mdistiller, its forks and the embedded benchmark share one seam, ``<package>.distillers.distiller_dict``, called as
``distiller_dict[TYPE](student, teacher, cfg[, num_data])``.  Its values are replaced in place, since others hold
references to the dict itself.
"""

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from .errors import DJIPError
from .lens import JPEGLens
from .lens_file import lens_id, load_lens
from .teacher import DJIPTeacher

# What the loaders of the benchmarks normalise with, by ``DATASET.TYPE``.
NORMALISATIONS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "synthetic": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}
_ORIGINALS: dict[str, dict[str, Any]] = {}  # package -> its registry as it was


def install(lens: str | os.PathLike[str] | JPEGLens, package: str = "mdistiller", any_teacher: bool = False) -> str:
    """Put ``lens`` in front of the teacher of every distiller that ``package`` will build from now on.

    Args:
        lens: a path, a :class:`JPEGLens`, or ``"identity"``, the fair baseline: the same wrapper, no change of the images.
        package: the benchmark, imported if need be; it must have ``<package>.distillers.distiller_dict``.
        any_teacher: accept a lens that was fitted for other weights.

    Returns:
        one line that says what is active.  Installing again replaces the lens.

    Raises:
        DJIPError: the package or its registry is missing, or the lens cannot be read.
    """
    if isinstance(lens, (str, os.PathLike)) and str(lens) != "identity":
        lens = load_lens(lens)
    registry = find_registry(package)
    uninstall(package)
    _ORIGINALS[package] = dict(registry)
    for name, build in list(registry.items()):
        if name != "NONE":  # the one entry without a teacher
            registry[name] = _with_lens(build, lens, any_teacher)
    return describe(lens, package, len(registry) - ("NONE" in registry))


def uninstall(package: str = "mdistiller") -> None:
    """Restore the registry of ``package`` exactly; does nothing when no lens is installed."""
    originals = _ORIGINALS.pop(package, None)
    if originals is not None:
        registry = find_registry(package)
        registry.clear()
        registry.update(originals)


def find_registry(package: str) -> dict[str, Any]:
    """``<package>.distillers.distiller_dict``; raises DJIPError that names what was looked for."""
    try:
        module = importlib.import_module(f"{package}.distillers")
    except ImportError as error:
        raise DJIPError(f"cannot import {package}.distillers ({error}); run from the benchmark's checkout or name its package") from error
    registry = getattr(module, "distiller_dict", None)
    if not isinstance(registry, dict) or not registry:
        raise DJIPError(f"{package}.distillers ({module.__file__}) has no distiller_dict; djip_ext plugs in there and nowhere else")
    return registry


def describe(lens: JPEGLens | str, package: str, distillers: int) -> str:
    """The line that says a lens is active: its id, CMI and the teacher's accuracy without and with it."""
    if lens == "identity":
        return f"djip: identity lens in front of the teacher of {distillers} distillers of {package}"
    line = f"djip: lens {lens_id(lens)} in front of the teacher of {distillers} distillers of {package}"
    before, after = lens.metadata.get("before"), lens.metadata.get("after")
    if before and after:
        line += f"; CMI {before['cmi']:.3f} -> {after['cmi']:.3f} nats, teacher {before['accuracy']:.2f} -> {after['accuracy']:.2f} % (fitted on)"
    return line


def _with_lens(build: Any, lens: JPEGLens | str, any_teacher: bool) -> Any:
    """``build`` with its second argument, the teacher, behind the lens."""

    @functools.wraps(build, updated=())
    def build_with_lens(student: nn.Module, teacher: nn.Module, cfg: Any, *args: Any, **kwargs: Any) -> nn.Module:
        mean, std = _normalisation(lens, cfg)
        return build(student, DJIPTeacher(teacher, lens, mean, std, any_teacher), cfg, *args, **kwargs)

    return build_with_lens


def _normalisation(lens: JPEGLens | str, cfg: Any) -> tuple[Sequence[float], Sequence[float]]:
    """The normalisation of the benchmark's images: by data set, which the lens must agree with, else the lens's own."""
    kind = getattr(getattr(cfg, "DATASET", None), "TYPE", None)
    if kind in NORMALISATIONS:
        return NORMALISATIONS[kind]
    if lens == "identity":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # never used: the images pass untouched
    if "mean" in lens.metadata:
        return lens.metadata["mean"], lens.metadata["std"]
    raise DJIPError(f"DATASET.TYPE is '{kind}', whose normalisation is unknown, and the lens does not say; fit it with fit_lens or djip fit")
