"""A table of results as a file: its pairs, distillers, arms, teachers, seeds and settings.

docs/tables.md describes the file.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from djip_ext.bench.distillers import distiller_dict
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.errors import DJIPError
from djip_ext.experiments.arms import Arm, read_arm_of_a_table
from djip_ext.experiments.axes import combinations, suffix, word, words_of

# What a section of ``options`` may be named after, beside a distiller
COMMANDS = ("all", "teacher", "lens", "student")
# The keys of the file
KINDS = {
    "configs": str,
    "pairs": list,
    "distillers": list,
    "arms": dict,
    "teachers": dict,
    "seeds": int,
    "epochs": int,
    "options": dict,
    "vary": dict,
    "bar": dict,
}
REQUIRED = ("configs", "pairs", "distillers", "arms")
BAR = "LS"  # distiller of the students from labels alone


@dataclass(frozen=True)
class Table:
    """A table of results that is to be made.

    Attributes:
        name: the file's stem.
        configs: path of a student's configuration, with ``{distiller}`` (in small letters) and
            ``{pair}`` in it.
        pairs: what stands for ``{pair}``; the configuration itself names teacher and student.
        distillers: keys of ``distiller_dict``.
        arms: name -> :class:`~djip_ext.experiments.arms.Arm`; the first is the baseline.
        teachers: network -> a checkpoint, or the configuration to train it with; a network that is
            not named has its checkpoint where mdistiller keeps it.
        seeds: how many, from 0.
        epochs: of the students, when not the configurations'; the stages of the learning rate move
            in proportion.
        options: section -> KEY VALUE pairs for every command ("all"), those of one kind ("teacher",
            "lens", "student"), or the students of one distiller (its name).  Later ones in this
            order win.
        vary: KEY -> values: every combination makes students of its own, with these options before
            all others.
        bar: KEY -> values of ``DISTILLER.TYPE LS``: students from labels alone, which the attacks
            of an audit have to beat (:mod:`djip_ext.experiments.audit`).
    """

    name: str
    configs: str
    pairs: tuple[str, ...]
    distillers: tuple[str, ...]
    arms: dict[str, Arm]
    teachers: dict[str, str] = field(default_factory=dict)
    seeds: int = 3
    epochs: int | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    bar: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def students(self) -> int:
        """How many students the table plans, those from labels alone among them."""
        labels = len(combinations(self.bar)) if self.bar else 0
        return self.distilled + len(self.pairs) * labels * self.seeds

    @property
    def distilled(self) -> int:
        """How many students with a teacher the table plans."""
        of_a_pair = len(self.distillers) * len(combinations(self.vary)) * len(self.arms)
        return len(self.pairs) * of_a_pair * self.seeds

    @property
    def rows(self) -> set[str]:
        """The rows of its students with a teacher among results: distiller and values of axes."""
        axes = combinations(self.vary)
        return {f"{distiller}{suffix(values)}" for distiller in self.distillers for values in axes}

    @property
    def bar_rows(self) -> set[str]:
        """The rows of its students from labels alone among results; none without a ``bar``."""
        return {f"{BAR}{suffix(values)}" for values in combinations(self.bar) if values}

    def config(self, pair: str, distiller: str) -> str:
        """The path of that student's configuration."""
        return self.configs.format(pair=pair, distiller=distiller.lower())

    def settings(self, *sections: str, more: Mapping[str, Any] | None = None) -> list[str]:
        """The KEY VALUE words of those sections and ``more``, a later one winning."""
        merged: dict[str, Any] = {}
        for section in sections:
            merged |= self.options.get(section) or {}
        return words_of(merged | dict(more or {}))


def load_table(path: str | Path) -> Table:
    """Read and check a table.

    Raises:
        DJIPError: no such file, not YAML, an unknown or missing key, an unknown distiller, or a
            value of the wrong kind.
    """
    path = Path(path)
    content = _read(path)
    _check_keys(path, content)
    lists = {key: tuple(map(str, content[key])) for key in ("pairs", "distillers")}
    arms = _read_arms(path, content["arms"], content.get("vary"))
    table = Table(path.stem, **(content | lists | {"arms": arms}))
    _check_configs(path, table)
    _check_teachers(path, table)
    _check_options(path, table)
    for key, values in table.vary.items():
        _check_axis(path, key, values)
    for key, values in table.bar.items():
        if not str(key).startswith("LS."):
            raise DJIPError(f"{path}: bar cannot take {key}; it varies keys of LS, LS.EPSILON say")
        _check_axis(path, key, values)
    _check_counts(path, table)
    return table


def load_arms(path: str | Path, axes: Mapping[str, Any] | None = None) -> dict[str, Arm]:
    """The arms of a file that holds them alone, or of a whole table.

    Args:
        axes: KEY -> values that the caller varies; no arm may set one.

    Raises:
        DJIPError: no such file, not YAML, or as :func:`load_table` for an arm.
    """
    path = Path(path)
    content = _read(path)
    arms = content.get("arms", content)
    if not isinstance(arms, dict) or not arms:
        raise DJIPError(f"{path} holds no arms; docs/tables.md says how to write them")
    return _read_arms(path, arms, axes)


def runs_of(what: str, runs: str | None) -> tuple[Table | None, Path]:
    """The table that ``what`` names, if it is a table's file, and the folder of its runs.

    Args:
        what: a table's YAML file, whose runs lie in output/NAME, or a folder of runs.
        runs: another folder of the runs.
    """
    table = load_table(what) if Path(what).suffix in (".yaml", ".yml") else None
    return table, Path(runs or (f"output/{table.name}" if table else what))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise DJIPError(
            f"cannot read the table {path}: {error.strerror}; docs/tables.md says how to write one"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DJIPError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DJIPError(f"{path} is not a table; it takes the keys {', '.join(KINDS)}")
    return content


def _check_keys(path: Path, content: dict[str, Any]) -> None:
    if unknown := [key for key in content if key not in KINDS]:
        raise DJIPError(f"{path}: unknown key {unknown[0]}; a table takes {', '.join(KINDS)}")
    for key, kind in KINDS.items():
        if key in REQUIRED and not content.get(key):
            raise DJIPError(f"{path}: {key} is missing; docs/tables.md says what goes there")
        value = content.get(key)
        if key in content and (not isinstance(value, kind) or isinstance(value, bool)):
            raise DJIPError(f"{path}: {key} is {value!r}; it takes a {kind.__name__}")


def _check_configs(path: Path, table: Table) -> None:
    try:
        table.config("pair", "distiller")
    except (KeyError, IndexError, ValueError) as error:
        raise DJIPError(
            f"{path}: configs is {table.configs!r}; "
            "of names in braces it takes {distiller} and {pair}"
        ) from error
    for distiller in table.distillers:
        if distiller not in distiller_dict or not needs_teacher(distiller):
            known = ", ".join(filter(needs_teacher, distiller_dict))
            raise DJIPError(f"{path}: there is no distiller '{distiller}'; choose from {known}")


def _check_teachers(path: Path, table: Table) -> None:
    for network, source in table.teachers.items():
        if not isinstance(source, str):
            raise DJIPError(
                f"{path}: teachers of {network} is {source!r}; it takes a checkpoint, or a "
                "configuration (.yaml) that trains one"
            )


def _read_arms(path: Path, arms: dict[Any, Any], axes: Any) -> dict[str, Arm]:
    """The arms of the file.

    Raises:
        DJIPError: one is wrong, or sets an option that is an axis of the table.
    """
    try:
        read = {name: read_arm_of_a_table(name, content) for name, content in arms.items()}
    except DJIPError as error:
        raise DJIPError(f"{path}: {error}") from error
    for name, arm in read.items():
        for key in arm.options:
            if key in (axes or {}):
                raise DJIPError(
                    f"{path}: arm {name} sets {key}, which the table varies; leave it to one of "
                    "the two"
                )
            _check_own_option(path, f"arm {name}", key)
    return read


def _check_own_option(path: Path, what: str, key: str) -> None:
    """Raise DJIPError for an option of ``what`` that says which run it is, not how it trains."""
    if key == "BENCH.SEED" or str(key).startswith(("EXPERIMENT.", "LOG.", "DISTILLER.")):
        raise DJIPError(
            f"{path}: {what} cannot set {key}; pairs, distillers and seeds name the runs"
        )


def _check_options(path: Path, table: Table) -> None:
    for section, options in table.options.items():
        if section not in (*COMMANDS, *table.distillers):
            raise DJIPError(
                f"{path}: options has no section {section}; "
                f"choose from {', '.join(COMMANDS)} and the table's distillers"
            )
        if not isinstance(options, dict):
            raise DJIPError(
                f"{path}: options of {section} is {options!r}; it takes KEY: VALUE pairs"
            )
        for key in options:
            if key == "BENCH.TEACHER_CHECKPOINT":  # of all arms, those with an own teacher too
                raise DJIPError(
                    f"{path}: options of {section} cannot set {key}; teachers names the checkpoints"
                )
            # Networks that are the same for every command are known to the plan as well.
            if section != "all" or not str(key).startswith("DISTILLER."):
                _check_own_option(path, f"options of {section}", key)


def _check_axis(path: Path, key: Any, values: Any) -> None:
    if not isinstance(key, str):
        raise DJIPError(
            f"{path}: vary cannot take {key!r}; it takes KEY: [VALUES], KD.TEMPERATURE: [1, 4] say"
        )
    if key == "BENCH.SEED" or key.startswith(("EXPERIMENT.", "DISTILLER.", "LOG.")):
        raise DJIPError(
            f"{path}: vary cannot take {key}; pairs, distillers and seeds are axes already"
        )
    is_list = isinstance(values, list) and values
    if not is_list or not all(isinstance(value, (str, int, float)) for value in values):
        raise DJIPError(f"{path}: vary of {key} is {values!r}; it takes a list of values")
    if len(set(values)) < len(values):
        raise DJIPError(f"{path}: vary of {key} names one value twice")
    if not all(re.fullmatch(r"[\w.+-]+", word(value)) for value in values):
        raise DJIPError(
            f"{path}: vary of {key} is {values!r}; the values name folders: "
            "letters, digits, dot, plus and minus"
        )


def _check_counts(path: Path, table: Table) -> None:
    for key, value in (("seeds", table.seeds), ("epochs", table.epochs)):
        if value is not None and value < 1:
            raise DJIPError(f"{path}: {key} is {value}; it must be at least 1")
    for key, entries in (("pairs", table.pairs), ("distillers", table.distillers)):
        if len(set(entries)) < len(entries):
            raise DJIPError(f"{path}: {key} names one twice")
