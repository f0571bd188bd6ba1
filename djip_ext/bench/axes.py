"""Axes over options: a table's ``vary``, as it stands in folder names, in the rows of a report and in columns.

Students that differ by an option lie in folders of their own, ``kd_vgg8_resnet8,KD.TEMPERATURE=2``.  Among results a row is called
after its distiller and those values, ``KD,KD.TEMPERATURE=2``; without axes it is the distiller's name alone.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml


def combinations(vary: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """One dict of KEY -> VALUE a combination, the last axis varying fastest; one empty dict without axes."""
    return [dict(zip(vary, values)) for values in itertools.product(*vary.values())]


def word(value: Any) -> str:
    """``value`` as a word of a command line."""
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def words_of(values: Mapping[str, Any]) -> list[str]:
    """KEY VALUE words."""
    return [text for key, value in values.items() for text in (key, word(value))]


def suffix(values: Mapping[str, Any]) -> str:
    """``,KEY=VALUE`` for each axis."""
    return "".join(f",{key}={word(value)}" for key, value in values.items())


def of_name(name: str) -> str:
    """The :func:`suffix` in a run's ``EXPERIMENT.NAME``."""
    return "".join(f",{part}" for part in name.split(",") if "=" in part)


def split(row: str) -> tuple[str, dict[str, Any]]:
    """The distiller and the values in the name of a row; numbers as numbers."""
    distiller, *parts = row.split(",")
    pairs = (part.partition("=") for part in parts)
    return distiller, {key: yaml.safe_load(value) for key, _, value in pairs}


def axes_of(rows: Iterable[str]) -> list[str]:
    """Every axis of those rows, in the order in which they are met."""
    return list(dict.fromkeys(key for row in rows for key in split(row)[1]))


def order(rows: Iterable[str]) -> list[str]:
    """Rows of one distiller with their values in order, numbers by size."""

    def place(row: str) -> list[tuple[bool, float, str]]:
        return [(isinstance(v, str), 0.0 if isinstance(v, str) else float(v), str(v)) for v in split(row)[1].values()]

    return sorted(rows, key=place)
