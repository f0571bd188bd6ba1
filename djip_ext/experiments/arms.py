"""An arm of a table of results: which teacher, what stands before it, and what its students add."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from djip_ext.errors import DJIPError
from djip_ext.fit.settings import FitSettings
from djip_ext.lens.initial_tables import standard_jpeg

BEFORE = re.compile(
    r"identity|own|temperature:[\d.]+|fit(\s.*)?|jpeg:\d+|random:[\d.]+|\S+\.safetensors"
)
NAME = re.compile(r"[\w.+-]+")
RESERVED = ("teachers", "lenses", "logs", "report", "labels")  # folders of their own
STARTS = ("teacher", "scratch")
KEYS = ("before", "teacher", "start", "options")


@dataclass(frozen=True)
class Arm:
    """One arm; arms compose.

    Attributes:
        before: what stands before the teacher: ``identity``, a lens file (``{teacher}`` in it
            stands for the network), ``fit FLAGS`` of ``djip fit``, ``jpeg:QUALITY``,
            ``random:MEDIAN``, or ``temperature:K``, the plain teacher's logits divided by K;
            ``own``: the lens that the arm's teacher was trained with (JPEGDL).
        teacher: a configuration that trains the arm's own teacher (MCMI, CMIM, ...); "" takes the
            table's.
        start: what that training starts from: "teacher", the table's own, or "scratch".
        options: KEY -> VALUE of the arm's students, stronger than those of the table.
    """

    before: str = "identity"
    teacher: str = ""
    start: str = "teacher"
    options: dict[str, Any] = field(default_factory=dict)


def is_fit(before: str) -> bool:
    """Whether ``before`` is ``fit FLAGS``; a file may be called ``fits/my.safetensors``."""
    return before.split(maxsplit=1)[:1] == ["fit"]


def fit_flags(words: Sequence[str]) -> argparse.Namespace:
    """What price and kind of a fit depend on among ``words``, read as ``djip fit`` does.

    ``rounds``, ``images``, ``batch_size``, ``queries`` and ``black_box``; None where not given.
    """
    parser = argparse.ArgumentParser(prog="djip fit", add_help=False)
    parser.add_argument("--rounds", type=int, default=FitSettings.rounds)
    for flag in ("--images", "--batch-size", "--queries"):
        parser.add_argument(flag, type=int)
    parser.add_argument("--black-box", action="store_true")
    return parser.parse_known_args(words)[0]


def read_arm_of_a_table(name: str, content: Any) -> Arm:
    """An arm as a table names it: a string, what stands before the teacher, or a mapping.

    Raises:
        DJIPError: a name that is no folder's, an unknown key or value.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED:
        raise DJIPError(
            f"an arm cannot be called {name!r}; it names a folder: letters, digits, dot, dash and "
            f"plus, none of {', '.join(RESERVED)}"
        )
    if isinstance(content, str):
        content = {"before": content}
    if not isinstance(content, dict) or not content or set(content) - set(KEYS):
        raise DJIPError(
            f"arm {name} is {content!r}; give what stands before the teacher, or a mapping with "
            f"{', '.join(KEYS)}"
        )
    arm = Arm(**content)
    if not isinstance(arm.before, str) or not BEFORE.fullmatch(arm.before):
        raise DJIPError(
            f"arm {name} is {arm.before!r}; give identity, temperature:K, a .safetensors file, "
            "fit FLAGS, jpeg:QUALITY or random:MEDIAN"
        )
    _check_number(name, arm.before)
    if not isinstance(arm.teacher, str) or not (
        arm.teacher == "" or arm.teacher.endswith((".yaml", ".yml"))
    ):
        raise DJIPError(
            f"arm {name}: teacher is {arm.teacher!r}; it takes a configuration (.yaml) that trains "
            "one"
        )
    if arm.start not in STARTS or ("start" in content and not arm.teacher):
        raise DJIPError(
            f"arm {name}: start is {arm.start!r}; beside a teacher it is one of {', '.join(STARTS)}"
        )
    if arm.before == "own" and not arm.teacher:
        raise DJIPError(
            f"arm {name} is own: the lens that its teacher was trained with; give it a teacher"
        )
    if not isinstance(arm.options, dict):
        raise DJIPError(f"arm {name}: options is {arm.options!r}; it takes KEY: VALUE pairs")
    return arm


def _check_number(name: str, before: str) -> None:
    """Raise DJIPError when ``before`` is ``jpeg:`` or ``random:`` and a number that cannot be."""
    kind, _, value = before.partition(":")
    try:
        if kind == "jpeg":
            standard_jpeg(int(value))
        elif kind == "random" and not float(value) > 0:
            raise ValueError
    except DJIPError as error:
        raise DJIPError(f"arm {name} is '{before}'; {error}") from error
    except ValueError as error:
        raise DJIPError(f"arm {name} is '{before}'; MEDIAN is a positive number") from error
