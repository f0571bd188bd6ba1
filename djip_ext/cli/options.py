"""The arguments that several commands share, and what becomes of them."""

import argparse
import dataclasses
import types
import typing
from typing import Any

from yacs.config import CfgNode

from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.fit.settings import FitSettings


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg``, ``--data-root`` and the trailing ``KEY VALUE`` pairs."""
    parser.add_argument(
        "--cfg",
        metavar="FILE",
        help="YAML file of the benchmark, see configs/ (default: the schema's defaults)",
    )
    parser.add_argument(
        "--data-root",
        metavar="DIR",
        help="folder that holds cifar-100-python, or train/CLASS/* and val/CLASS/* "
        "(default: BENCH.DATA_ROOT)",
    )
    parser.add_argument(
        "options",
        nargs="*",
        metavar="KEY VALUE",
        help="settings that override the file, e.g. SOLVER.EPOCHS 60",
    )


def at_least_one(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {number}; give 1 or more")
    return number


def add_scheduler_arguments(parser: argparse.ArgumentParser) -> None:
    """``--workers``, ``--cluster`` and ``--job``: where the commands of a plan run."""
    parser.add_argument(
        "--workers",
        type=at_least_one,
        metavar="N",
        help="commands at a time (default: 1; on a cluster all that can run)",
    )
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="hand the commands to submitit; local tries that without a cluster",
    )
    parser.add_argument(
        "--job",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit, e.g. timeout_min=240 slurm_partition=gpu",
    )


def benchmark_cfg(args: argparse.Namespace) -> CfgNode:
    """The configuration that those arguments describe; raises DJIPError when they are wrong."""
    flags = []
    if args.data_root:
        flags += ["BENCH.DATA_ROOT", args.data_root]
    if getattr(args, "seed", None) is not None:
        flags += ["BENCH.SEED", args.seed]
    return load_cfg(args.cfg, [*flags, *args.options])


def add_fit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each field of :class:`FitSettings`, so that the parser checks its value.

    Name, type, choices, default and help text are the field's.  A flag that is not given stays
    ``None``: :func:`fit_settings` then leaves the field alone.
    """
    for field, annotation in _fields():
        default = "BENCH.PRECISION" if field.name == "precision" else _shown(field.default)
        parser.add_argument(
            _flag(field.name),
            **_parsing(field.name, annotation),
            help=f"{field.metadata['help']} (default: {default})".replace("%", "%%"),
        )


def fit_settings(args: argparse.Namespace, precision: str) -> FitSettings:
    """The settings that the flags of :func:`add_fit_arguments` describe.

    Args:
        args: the parsed flags.
        precision: what ``--precision`` defaults to.

    Raises:
        DJIPError: as :class:`FitSettings` does.
    """
    given = {field.name: getattr(args, field.name) for field, _ in _fields()}
    given = {name: value for name, value in given.items() if value is not None}
    if "cmi_gain" in given:
        given["cmi_gain"] = tuple(given["cmi_gain"])
    return FitSettings(**{"precision": precision, **given})


def _fields() -> list[tuple["dataclasses.Field[Any]", Any]]:
    """The fields of the settings, each with its type."""
    annotations = typing.get_type_hints(FitSettings)
    return [(field, annotations[field.name]) for field in dataclasses.fields(FitSettings)]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parsing(name: str, annotation: Any) -> dict[str, Any]:
    """What argparse needs to read a value of the type ``annotation``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return {"choices": typing.get_args(annotation)}
    if origin is tuple:
        kinds = typing.get_args(annotation)
        return {"type": kinds[0], "nargs": len(kinds), "metavar": ("LOW", "HIGH")}
    if origin is types.UnionType or origin is typing.Union:  # Optional
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return {"type": annotation, "metavar": "N" if annotation is int else name.upper()}


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return str(default)
