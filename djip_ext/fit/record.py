"""The record of a lens: one JSON file with all that a report says and draws of it.

A report then needs neither teacher nor images.  ``djip fit`` leaves the record beside the lens;
``djip reproduce`` keeps those of all lenses of a table below its ``lenses/``.  It holds ``id``,
``lens`` (settings and steps) and ``about`` (the lens' metadata); of a fit also ``history``,
``one_class``, and what every record of a run holds.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from djip_ext.errors import DJIPError
from djip_ext.lens.io import lens_id, load_lens, make_lens, settings_of
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.metrics.class_simplex import OneClass

# What a row of the history has at least.
ROUND = ("round", "cmi", "accuracy", "ce", "lam", "q_low", "q_high")


@dataclass(frozen=True)
class LensRecord:
    """A record, read.

    Attributes:
        lens: with its ``metadata``.
        history: the rows of its fit, empty when they are not known.
        one_class: the class whose CMI it raises most; ``None`` when that is not known.
    """

    lens: JPEGLens
    history: list[dict[str, float]]
    one_class: OneClass | None

    @property
    def about(self) -> dict[str, Any]:
        """What the lens was fitted for."""
        return self.lens.metadata

    @property
    def id(self) -> str:
        """The lens's id, :func:`djip_ext.lens.io.lens_id`."""
        return lens_id(self.lens)

    @property
    def goal(self) -> tuple[tuple[float, float], float] | None:
        """The band of CMI in nats and the least accuracy in percent that the fit aimed at.

        ``None`` when they are not known.
        """
        try:
            fit = self.about["fit"]
            if fit.get("goal") == "shield":  # it has no band
                return None
            before = self.about.get("fit_before") or self.about["before"]
            low, high = (before["cmi"] + gain for gain in fit["cmi_gain"])
            return (low, high), before["accuracy"] - fit["max_accuracy_drop"]
        except (KeyError, TypeError, ValueError):  # metadata are whatever its maker wrote
            return None


def made_for(about: dict[str, Any]) -> str:
    """Teacher and data that the metadata of a lens name."""
    return f"{about.get('teacher', 'an unknown teacher')} on {about.get('dataset', 'unknown data')}"


def describe(lens: JPEGLens) -> dict[str, Any]:
    """The part of a record that is known of every lens."""
    return {
        "id": lens_id(lens),
        "lens": settings_of(lens) | {"q": lens.q.detach().cpu().tolist()},
        "about": lens.metadata,
    }


def record_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of the lens file ``path``.

    It holds the lens itself, and the content of the JSON file beside it if that is of the same
    lens.

    Raises:
        DJIPError: as :func:`load_lens`.
    """
    lens = load_lens(path)
    try:
        beside = json.loads(Path(path).with_suffix(".json").read_text())
        if beside["about"] != lens.metadata:
            beside = {}  # of another lens
    except (OSError, ValueError, KeyError, TypeError):
        beside = {}
    of_lens = describe(lens)
    return of_lens | {key: value for key, value in beside.items() if key not in of_lens}


def parse_record(content: dict[str, Any], source: str | os.PathLike[str]) -> LensRecord:
    """``content`` of the JSON file ``source`` as a :class:`LensRecord`.

    Raises:
        DJIPError: it is not the record of a lens, or its steps are not those that its id stands
            for.
    """
    try:
        lens = make_lens(content["lens"]["q"], content["lens"], content["about"])
        history = [{key: float(row[key]) for key in ROUND} for row in content.get("history", [])]
        one_class = OneClass.from_json(content["one_class"]) if content.get("one_class") else None
        if content["id"] != lens_id(lens):
            raise ValueError(
                f"its steps are those of lens {lens_id(lens)}, its id is {content['id']}"
            )
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise DJIPError(
            f"{source} is not the record of a lens ({reason}); delete it, djip reproduce or djip "
            "fit makes it again"
        ) from error
    return LensRecord(lens, history, one_class)


def read_records(folder: str | os.PathLike[str]) -> list[LensRecord]:
    """Every record in a folder ``lenses`` at or below ``folder``.

    Records without an id, of early versions, are skipped.

    Raises:
        DJIPError: a damaged one.
    """
    where = Path(folder)
    paths = {*where.rglob("lenses/*.json")}
    if where.absolute().name == "lenses":  # rglob looks below it only
        paths |= {*where.glob("*.json")}
    records = []
    for path in sorted(paths):
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DJIPError(
                f"{path} cannot be read ({error}); delete it, djip reproduce or djip fit makes it "
                "again"
            ) from error
        if isinstance(content, dict) and "id" in content:
            records.append(parse_record(content, path))
    return records
