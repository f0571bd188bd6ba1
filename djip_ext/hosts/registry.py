"""Plugging a lens into a benchmark: every distiller of its registry gets the amplified teacher.

mdistiller, its forks and the embedded benchmark share ``<package>.distillers.distiller_dict``,
called as ``distiller_dict[TYPE](student, teacher, cfg[, num_data])``.  Its values are replaced in
place, since others hold references to the dict itself.
"""

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from djip_ext.errors import DJIPError
from djip_ext.hosts.extra_distillers import add_missing, module_name
from djip_ext.lens.io import check_belongs, lens_id, read_lens, weight_hash
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import NORMALISATIONS
from djip_ext.teacher import DJIPTeacher
from djip_ext.utils.distributed import rank

CONFIGURATIONS = ("cfg", "config", "conf", "args", "opt", "options", "hparams")
SECOND_TEACHER = re.compile(r"teachers|teacher_?\d+")  # a keyword of another network


@dataclass
class _Installation:
    originals: dict[str, Any]  # the registry as it was
    remove_additions: Callable[[], None]
    teachers: int = 0  # how many have been put behind the lens
    elsewhere: list[Callable[[], int]] = field(default_factory=list)  # in processes of their own


_INSTALLED: dict[str, _Installation] = {}  # by package


def install(
    lens: str | os.PathLike[str] | JPEGLens,
    package: str = "mdistiller",
    any_teacher: bool = False,
    refuse_without_teacher: bool = False,
) -> str:
    """Put ``lens`` in front of the teacher of every distiller that ``package`` builds from now on.

    Also registers the distillers of this project that the package lacks, with their configuration
    nodes.  Installing again replaces the lens.

    Args:
        lens: a path, a :class:`JPEGLens`, or ``"identity"``, the fair baseline: the same wrapper,
            no change of the images; or ``"temperature:K"``, which divides the plain teacher's
            logits by K.
        package: the benchmark, imported if need be; it must have
            ``<package>.distillers.distiller_dict``.  "." is one whose ``distillers`` is no part of
            a package.
        any_teacher: accept a lens that was fitted for other weights or another data set.
        refuse_without_teacher: make building an entry that takes no teacher an error, so that a
            run that asks for a lens does not train without one.

    Returns:
        One line that says what is active.

    Raises:
        DJIPError: the package or its registry is missing, or the lens cannot be read.
    """
    if isinstance(lens, (str, os.PathLike)):
        lens = read_lens(lens)
    elif not isinstance(lens, JPEGLens):
        raise DJIPError(
            f"lens is {lens!r}; give a JPEGLens, its file, 'identity' or 'temperature:K'"
        )
    registry = find_registry(package)
    uninstall(package)
    originals = dict(registry)
    installation = _Installation(originals, add_missing(package, registry))
    _INSTALLED[package] = installation
    with_teacher = 0
    for name, build in list(registry.items()):
        if takes_teacher(name, build):
            registry[name] = _with_lens(build, lens, any_teacher, installation)
            with_teacher += 1
        elif refuse_without_teacher:
            registry[name] = _refused(name, build)
    return describe(lens, package, with_teacher)


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
    installation = _INSTALLED.get(package)
    if installation is None:
        return 0
    return installation.teachers + sum(count() for count in installation.elsewhere)


def count_teachers(package: str, count: Callable[[], int]) -> None:
    """Count the teachers too that processes of their own put behind the lens: ``count()``."""
    if package in _INSTALLED:
        _INSTALLED[package].elsewhere.append(count)


def find_registry(package: str) -> dict[str, Any]:
    """``<package>.distillers.distiller_dict``; raises DJIPError that names what was looked for."""
    name = module_name(package, "distillers")
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise DJIPError(
            f"cannot import {name} ({error}); run from the benchmark's checkout or name its package"
        ) from error
    registry = getattr(module, "distiller_dict", None)
    if not isinstance(registry, dict) or not registry:
        raise DJIPError(
            f"{name} ({module.__file__}) has no distiller_dict; "
            "djip_ext plugs in there and nowhere else"
        )
    return registry


def takes_teacher(name: str, build: Any) -> bool:
    """Whether the registry's entry ``name`` is built on a teacher, by the signature of ``build``.

    It is when an argument is called after the teacher, or when there is one between the student
    and the configuration.  A signature that does not say is taken for one with a teacher, unless
    the entry is mdistiller's ``NONE``.
    """
    try:
        parameters = list(inspect.signature(build).parameters.values())
    except (TypeError, ValueError):
        return name != "NONE"
    names = [parameter.name.lower() for parameter in parameters]
    if any("teacher" in argument for argument in names):
        return True
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return name != "NONE"
    return len(names) >= 2 and names[1] not in CONFIGURATIONS


def describe(lens: JPEGLens | str, package: str, distillers: int) -> str:
    """The line that says a lens is active: its id, CMI and accuracy without and with it."""
    if isinstance(lens, str):
        what = "identity lens in front of" if lens == "identity" else f"no lens, but {lens} behind"
        return f"djip: {what} the teacher of {distillers} distillers of {package}"
    line = (
        f"djip: lens {lens_id(lens)} in front of the teacher of {distillers} distillers "
        f"of {package}"
    )
    before = lens.metadata.get("before")
    after = lens.metadata.get("after")
    if before and after:
        line += (
            f"; CMI {before['cmi']:.3f} -> {after['cmi']:.3f} nats, "
            f"teacher {before['accuracy']:.2f} -> {after['accuracy']:.2f} % (training images)"
        )
    return line


def put_behind(
    teacher: Any, lens: JPEGLens | str, cfg: Any, any_teacher: bool = False
) -> DJIPTeacher:
    """``teacher`` behind ``lens``, with the normalisation of the benchmark's data set.

    A teacher that the host has wrapped already, into an ensemble or a task, is accepted when the
    network that the lens was fitted for is inside.  Both this and a lens that does not say whom it
    was fitted for are told in one line on stderr.

    Raises:
        DJIPError: the lens was fitted for another data set, normalisation or teacher, the
            normalisation is unknown, or the teacher is no network.
    """
    if not isinstance(teacher, nn.Module):
        raise DJIPError(
            f"the teacher is a {type(teacher).__name__}; a lens goes in front of one network"
        )
    dataset = getattr(getattr(cfg, "DATASET", None), "TYPE", None)
    about = {} if isinstance(lens, str) else lens.metadata
    if dataset and about.get("dataset", dataset) != dataset and not any_teacher:
        raise DJIPError(
            f"the lens was fitted on {about['dataset']}, this run is on {dataset}; "
            f"fit one on {dataset}, or accept it with --djip-any-teacher"
        )
    mean, std = _normalisation(lens, cfg, dataset)
    if isinstance(lens, JPEGLens) and not any_teacher:
        any_teacher = _accepted(lens, teacher, mean, std)
    return DJIPTeacher(teacher, lens, mean, std, any_teacher)


def _normalisation(
    lens: JPEGLens | str, cfg: Any, dataset: str | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images of ``cfg``.

    They are ``cfg.BENCH.MEAN`` and ``STD`` where there are any, else those that
    ``djip fit --host`` found in the host, else those of the data set.

    Raises:
        DJIPError: none of these is known.
    """
    about = {} if isinstance(lens, str) else lens.metadata
    # The embedded benchmark's node: its loader says what it normalised with.
    bench = getattr(cfg, "BENCH", None)
    if bench is not None and bench.MEAN and bench.STD:
        return bench.MEAN, bench.STD
    # Fitted with a host's own data: it read their scale there.
    if about.get("host") and about.get("dataset") == dataset:
        return about["mean"], about["std"]
    if dataset in NORMALISATIONS:
        mean, std = NORMALISATIONS[dataset]
        return mean, std
    if "mean" in about and (not dataset or about.get("dataset", dataset) == dataset):
        return about["mean"], about["std"]
    if isinstance(lens, str):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # never used: the images pass untouched
    raise DJIPError(
        f"DATASET.TYPE is '{dataset}', whose normalisation is unknown, and the lens does not say; "
        "fit one on it with fit_lens or djip fit, set cfg.BENCH.MEAN and cfg.BENCH.STD, or wrap "
        "the teacher by DJIPTeacher(teacher, lens, mean, std)"
    )


def _accepted(lens: JPEGLens, teacher: nn.Module, mean: Any, std: Any) -> bool:
    """Whether ``lens`` may go in front of ``teacher`` although it does not know its weights.

    So it is when it knows no weights at all, or when it knows those of a network inside.
    """
    known = lens.metadata.get("teacher_hash")
    if not known:
        _tell(
            f"lens {lens_id(lens)} was made by hand or by another program: "
            "it is not checked against this teacher"
        )
        return False
    if weight_hash(teacher) == known:
        return False
    inner = next((part for part in _networks_inside(teacher) if weight_hash(part) == known), None)
    if inner is None:
        return False  # the wrapper refuses it and says why
    check_belongs(lens, inner, mean, std)
    _tell(
        f"the lens was fitted for a {type(inner).__name__}, which the host has put into a "
        f"{type(teacher).__name__}; the lens goes in front of the {type(teacher).__name__}"
    )
    return True


def _networks_inside(teacher: nn.Module) -> list[nn.Module]:
    """The modules below ``teacher`` that have weights, outer ones first."""
    inside = [module for module in teacher.modules() if module is not teacher]
    return [module for module in inside if next(module.parameters(), None) is not None]


def _tell(line: str) -> None:
    """Print ``line`` on stderr, in the first process of a run."""
    if os.environ.get("RANK", "0") == "0" and rank() == 0:
        print(f"djip: {line}", file=sys.stderr, flush=True)


def _with_lens(
    build: Any, lens: JPEGLens | str, any_teacher: bool, installation: _Installation
) -> Any:
    """``build`` with its second argument, the teacher, behind the lens."""

    @functools.wraps(build, updated=())
    def build_with_lens(*args: Any, **kwargs: Any) -> Any:
        teacher = args[1] if len(args) > 1 else kwargs.get("teacher")
        cfg = args[2] if len(args) > 2 else kwargs.get("cfg")
        if cfg is None:  # called as (student) or (student, cfg)
            _check_no_plain_teacher(args, kwargs)
            return build(*args, **kwargs)
        _check_one_teacher(args, kwargs)
        amplified = put_behind(teacher, lens, cfg, any_teacher)
        installation.teachers += 1
        if len(args) > 1:
            return build(args[0], amplified, *args[2:], **kwargs)
        return build(*args, **{**kwargs, "teacher": amplified})

    return build_with_lens


def _check_one_teacher(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise DJIPError for a second teacher, which would be left without the lens."""
    others = dict(zip(["the third place"], args[2:3], strict=False))
    others |= {name: part for name, part in kwargs.items() if SECOND_TEACHER.fullmatch(name)}
    for place, part in others.items():
        if isinstance(part, nn.Module) and next(part.parameters(), None) is not None:
            raise DJIPError(
                f"this distiller takes several teachers (a {type(part).__name__} in {place}), and "
                "a lens goes in front of one; build it without the lens of --djip-lens, each "
                "teacher wrapped by DJIPTeacher(teacher, lens, mean, std)"
            )


def _check_no_plain_teacher(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise DJIPError for a call with a second network that the lens would not be put before."""
    networks = [part for part in (*args, *kwargs.values()) if isinstance(part, nn.Module)]
    if len(networks) > 1 and not any(isinstance(part, DJIPTeacher) for part in networks):
        raise DJIPError(
            "this benchmark builds its distillers without a cfg in the third place; "
            "wrap the teacher by DJIPTeacher(teacher, lens, mean, std)"
        )


def _refused(name: str, build: Any) -> Any:
    """In the place of ``build``, which takes no teacher: an error."""

    @functools.wraps(build, updated=())
    def refuse(*args: Any, **kwargs: Any) -> nn.Module:
        raise DJIPError(
            f"DISTILLER.TYPE {name} takes no teacher, so that a lens would change nothing; "
            "name a distiller with one, or leave out --djip-lens"
        )

    return refuse
