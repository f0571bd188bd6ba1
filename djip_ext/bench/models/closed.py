"""Closed teachers by name, ``closed:FILE.py:NAME``: what NAME is in the Python file FILE.py."""

import importlib.util
from pathlib import Path
from typing import Any

from djip_ext.bench.models.input_spec import IMAGENET, InputSpec
from djip_ext.errors import DJIPError, first_line
from djip_ext.inputs.closed_teacher import ClosedTeacher


def is_closed(network: str) -> bool:
    """Whether ``network``, a ``DISTILLER.TEACHER``, is a closed teacher."""
    return network.startswith("closed:")


def closed_spec(network: str, download: bool) -> InputSpec:
    """ImageNet's usual scale, unless ``BENCH.INPUT_SIZE``, ``MEAN`` and ``STD`` say another."""
    return IMAGENET


def closed_build(network: str, num_classes: int, pretrained: bool, download: bool) -> ClosedTeacher:
    """The :class:`~djip_ext.ClosedTeacher` that ``network``, FILE.py:NAME, names.

    The file is run.

    Raises:
        DJIPError: no such file or name, an error in the file, another number of classes, weights
            asked for (a closed teacher has none).
    """
    file, _, name = network.rpartition(":")
    if not file or not Path(file).is_file():
        raise DJIPError(
            f"'closed:{network}' names no file; write closed:FILE.py:NAME with a ClosedTeacher NAME"
        )
    if not pretrained:
        raise DJIPError(
            f"closed:{network} has no weights to make or to load; leave BENCH.TEACHER_CHECKPOINT "
            "empty, and take another network as student"
        )
    teacher = _run(Path(file), name)
    if not isinstance(teacher, ClosedTeacher):
        raise DJIPError(
            f"{name} in {file} is {type(teacher).__name__}; make it a djip_ext.ClosedTeacher"
        )
    if teacher.num_classes != num_classes:
        raise DJIPError(
            f"{name} in {file} answers {teacher.num_classes} classes, the data have {num_classes}"
        )
    return teacher


def _run(file: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise DJIPError(f"{file} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, name)
    except DJIPError:
        raise
    except Exception as error:  # the user's file may raise anything
        raise DJIPError(f"{file} failed: {type(error).__name__}: {first_line(error)}") from error
