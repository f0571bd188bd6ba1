"""The plan of a table: its ``djip train`` and ``djip fit`` commands, each after those it needs."""

import functools
import hashlib
import itertools
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from djip_ext.bench.dataset.image_sets import FOLDERS
from djip_ext.bench.engine.cfg import differing_settings, load_cfg
from djip_ext.bench.engine.run import behind_lens, read_weights, run_folder, used_config
from djip_ext.bench.models import cifar_model_dict
from djip_ext.bench.models.closed import is_closed
from djip_ext.bench.teacherless import needs_teacher
from djip_ext.errors import DJIPError
from djip_ext.experiments.arms import Arm, fit_flags, is_fit
from djip_ext.experiments.axes import combinations, suffix, words_of
from djip_ext.experiments.runs import TEACHERS, UNREADABLE, not_a_record, one_line
from djip_ext.experiments.table import BAR, Table
from djip_ext.inputs.checkpoints import variants
from djip_ext.lens.io import lens_name, read_lens, softening, weight_hash

IMAGES = (
    "DATASET.TYPE",
    "BENCH.DATA_ROOT",
    "BENCH.FRACTION",
    "BENCH.FRACTION_SEED",
    "BENCH.INPUT_SIZE",
    "BENCH.MEAN",
    "BENCH.STD",
)
"""The keys that say which images a run reads; ``BENCH.HOLDOUT`` then splits them."""

OF_A_FIT = (*IMAGES, "BENCH.HOLDOUT", "BENCH.PRECISION")
"""The keys on which a fit depends, beside its flags and its teacher."""


@dataclass(frozen=True)
class Step:
    """One command: ``djip WORDS``.

    Attributes:
        kind: "teacher", "lens" or "student".
        name: for people.
        config: of ``--cfg``.
        flags: the words before the KEY VALUE pairs, ``--cfg`` and ``--data-root`` apart.
        options: the KEY VALUE pairs, without the seed.
        data_root: of ``--data-root``; "" leaves the configuration's.
        seed: of ``--seed``; None for a lens.
        lens: what is in front of the teacher: "" (a teacher's training), "identity",
            "temperature:K" or a file.
        makes: the lens file; "" for a run, whose folder follows from its configuration.
        needs: the steps whose results it uses.
    """

    kind: str
    name: str
    config: str
    flags: tuple[str, ...]
    options: tuple[str, ...]
    data_root: str = ""
    seed: int | None = None
    lens: str = ""
    makes: str = ""
    needs: tuple["Step", ...] = ()

    @property
    def words(self) -> list[str]:
        """Of the command line, after ``djip``."""
        root = ["--data-root", self.data_root] if self.data_root else []
        return [
            "fit" if self.kind == "lens" else "train",
            "--cfg",
            self.config,
            *self.flags,
            "--resume",
            *root,
            *self.options,
        ]

    def __str__(self) -> str:
        return f"djip {shlex.join(self.words)}"

    def settings(self) -> CfgNode:
        """The configuration of the command line; the lens still adds to a student's folder."""
        flags = ["BENCH.DATA_ROOT", self.data_root] if self.data_root else []
        if self.seed is not None:
            flags += ["BENCH.SEED", str(self.seed)]
        return load_cfg(self.config, [*flags, *self.options])  # pairs are stronger than flags

    def cfg(self) -> CfgNode:
        """The configuration that the command will run with.

        A student's folder is named after its lens, which must therefore exist.
        """
        cfg = self.settings()
        if self.lens:
            cfg.EXPERIMENT.PROJECT = behind_lens(
                cfg.EXPERIMENT.PROJECT, lens_name(read_lens(self.lens))
            )
        return cfg

    def result(self) -> dict[str, Any] | None:
        """The record of the finished step, None while it is not finished.

        Raises:
            DJIPError: its folder holds a finished run with other settings, it was made with
                another teacher than is there now, or its record is damaged.
        """
        if self.kind == "lens":
            return self._finished_fit()
        if self.lacks_its_lens():
            return None
        return finished_run(self.cfg())

    def _finished_fit(self) -> dict[str, Any] | None:
        lens = Path(self.makes)
        record = lens.with_suffix(".json")
        under_way = lens.with_suffix(".fit.pth").exists()
        if under_way or not lens.exists() or not record.exists():
            return None
        cfg = self.settings()
        try:
            found: dict[str, Any] = json.loads(record.read_text())
            known = found["about"].get("teacher_hash")
            # older records have no configuration
            differing = other_settings(cfg, found["config"]) if "config" in found else {}
        except UNREADABLE as error:
            raise DJIPError(
                f"{record} is not the record of a lens ({one_line(error)}); "
                "delete it, and the lens is fitted again"
            ) from error
        ours = {key: differing[key] for key in OF_A_FIT if key in differing}
        _refuse_other_settings(f"{self.makes} was fitted", ours, "that file")
        check_teacher(cfg, known, self.makes)
        return found

    @property
    def lens_file(self) -> str:
        """The lens in front of the teacher; "" when there is none."""
        return "" if not self.lens or softening(self.lens) is not None else self.lens

    def lacks_its_lens(self) -> bool:
        """Whether the lens is still to be fitted."""
        return bool(self.lens_file) and not Path(self.lens_file).exists()

    def epochs_done(self) -> int:
        """Rows of an unfinished run's log; 0 for a lens and for a run that would begin anew."""
        if self.kind == "lens" or self.lacks_its_lens():
            return 0
        folder = run_folder(self.cfg())
        log = folder / "log.csv"
        if not (log.exists() and (folder / "latest.pth").exists()):
            return 0
        return max(0, len(log.read_text().splitlines()) - 1)


def finished_run(cfg: CfgNode) -> dict[str, Any] | None:
    """The result in the run folder of ``cfg``, None when there is none.

    Raises:
        DJIPError: it is of other settings, or was made with another teacher, or from other
            weights, than are there now, or it is damaged.
    """
    path = run_folder(cfg) / "result.json"
    if not path.exists():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        differing = other_settings(cfg, result["config"])
    except UNREADABLE as error:
        raise not_a_record(path, error) from error
    _refuse_other_settings(f"{path.parent} holds a run", differing, "that folder")
    check_teacher(cfg, result.get("teacher_hash"), path.parent)
    start = cfg.BENCH.STUDENT_CHECKPOINT
    _check_weights(start, result.get("start_hash"), f"{path.parent} started from another network")
    return result


def other_settings(cfg: CfgNode, config: str) -> dict[str, tuple[Any, Any]]:
    """As :func:`differing_settings`, of ``cfg`` and the dumped ``config``, wherever they run."""
    differing = differing_settings(used_config(cfg), config)
    differing.pop("BENCH.DEVICE", None)
    return differing


def _refuse_other_settings(what: str, differing: dict[str, tuple[Any, Any]], delete: str) -> None:
    """Raise DJIPError when ``what`` was done with ``differing`` settings."""
    if differing:
        values = ", ".join(
            f"{key} {theirs} (now {ours})" for key, (ours, theirs) in differing.items()
        )
        raise DJIPError(
            f"{what} with other settings: {values}; give the table another --out or delete {delete}"
        )


def check_teacher(cfg: CfgNode, known: str | None, where: str | Path) -> None:
    """Raise DJIPError when the teacher of ``cfg`` has other weights by now than made ``where``.

    Args:
        known: the hash of the weights that made it; None or "" of an older version, which passes.
    """
    path = cfg.BENCH.TEACHER_CHECKPOINT or _published(cfg.DISTILLER.TEACHER, cfg.DATASET.TYPE)
    _check_weights(path, known, f"{where} was made with another teacher")


def check_images(step: Step, now: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise DJIPError when ``step`` is a finished run of other images than it would read ``now``.

    Where those lie is no setting.  What an older version did not record counts as equal.

    Args:
        now: "train" and "test" -> the fingerprint of those images.
    """
    if step.kind == "lens":  # its fit reads a part of them
        return
    known = (step.result() or {}).get("data") or {}
    names = {"train": "training", "test": "test"}
    for part, fingerprint in now.items():
        theirs = known.get(part, fingerprint)
        if theirs != fingerprint:
            raise DJIPError(
                f"{run_folder(step.cfg())} holds a run of other images: {theirs['images']} "
                f"{names[part]} images ({theirs['sha256']}), now {fingerprint['images']} "
                f"({fingerprint['sha256']}); give the table another --out or delete that folder"
            )


def _check_weights(path: str | None, known: str | None, what: str) -> None:
    """Raise DJIPError, ``what`` of it, when the network ``known`` is not the one in ``path``."""
    if not known or not path or not Path(path).is_file():
        return
    found = _hashes_of(str(path), os.stat(path).st_mtime_ns)
    if known not in found:
        raise DJIPError(
            f"{what} ({known}) than {path} is now ({found[0]}); "
            "delete it or give the table another --out"
        )


@functools.cache
def _hashes_of(path: str, mtime_ns: int) -> tuple[str, ...]:
    """The hash of the weights in a checkpoint, then those of networks that a trainer may hold."""
    state = read_weights(path)
    for key in list(state):
        if key.endswith(".running_var"):  # old checkpoints lack what torch then sets to 0
            state.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return tuple(weight_hash(variant) for variant in variants(state))


LABELS = "labels"  # arm of the students from labels alone

Made = tuple[Step | None, str]
"""The step that makes a teacher or a lens, None when it is there already; and the teacher's
checkpoint, or what is in front of the teacher."""


def make_plan(table: Table, out: str, data_root: str = "") -> list[Step]:
    """Every step of ``table``, each after those it needs; the results go below the folder ``out``.

    Seeds are the outermost loop, so that a table that was stopped has all its rows with fewer
    seeds.

    Raises:
        DJIPError: a configuration, checkpoint or lens is missing or does not fit; the message names
            it.
    """
    cfgs = _student_cfgs(table)
    teachers: dict[tuple[str, str, str], Made] = {}  # network, configuration, start
    lenses: dict[tuple[str, str], Made] = {}
    for (pair, distiller), cfg in cfgs.items():
        name = cfg.DISTILLER.TEACHER
        tables_own = name, Arm.teacher, Arm.start
        if tables_own in teachers:
            continue
        own = _teacher(table, name, cfg.DATASET.TYPE, out, data_root)
        teachers[tables_own] = own
        config = table.config(pair, distiller)
        for arm_name, arm in table.arms.items():
            key = name, arm.teacher, arm.start
            if key not in teachers:
                teachers[key] = _teacher_of_arm(table, arm, name, own, cfg, out, data_root)
            lenses[name, arm_name] = _lens(
                table, arm_name, name, teachers[key], config, out, data_root
            )
    made = [*teachers.values(), *lenses.values()]
    steps = list(dict.fromkeys(step for step, _ in made if step is not None))
    for seed in range(table.seeds):
        for (pair, distiller), cfg in cfgs.items():
            for values, arm_name in itertools.product(combinations(table.vary), table.arms):
                arm = table.arms[arm_name]
                teacher = teachers[cfg.DISTILLER.TEACHER, arm.teacher, arm.start]
                lens = lenses[cfg.DISTILLER.TEACHER, arm_name]
                run = f"{pair}{suffix(values)}"
                options = [
                    *("LOG.PREFIX", out),
                    *("EXPERIMENT.PROJECT", arm_name),
                    *("EXPERIMENT.NAME", f"{distiller.lower()}_{run}"),
                    *_checkpoint(teacher),
                    *_schedule(table, table.config(pair, distiller)),
                    *table.settings("all", "student", distiller, more=arm.options),
                    *words_of(values),
                ]
                steps.append(
                    Step(
                        "student",
                        f"{distiller} {run}, {arm_name}, seed {seed}",
                        table.config(pair, distiller),
                        ("--djip-lens", lens[1], "--seed", str(seed)),
                        tuple(options),
                        data_root,
                        seed,
                        lens[1],
                        needs=tuple(step for step, _ in (teacher, lens) if step is not None),
                    )
                )
        steps += _bar(table, seed, out, data_root)
    return steps


def _bar(table: Table, seed: int, out: str, data_root: str) -> list[Step]:
    """The students from labels alone that the attacks of an audit are compared with."""
    steps = []
    for pair, values in itertools.product(
        table.pairs if table.bar else (), combinations(table.bar)
    ):
        config = table.config(pair, BAR)
        run = f"{pair}{suffix(values)}"
        options = [
            *("LOG.PREFIX", out),
            *("EXPERIMENT.PROJECT", LABELS),
            *("EXPERIMENT.NAME", f"{BAR.lower()}_{run}"),
            *_schedule(table, config),
            *table.settings("all", "student", BAR),
            *words_of(values),
        ]
        name = f"{BAR} {run}, {LABELS}, seed {seed}"
        steps.append(
            Step("student", name, config, ("--seed", str(seed)), tuple(options), data_root, seed)
        )
    return steps


def _student_cfgs(table: Table) -> dict[tuple[str, str], CfgNode]:
    """(pair, distiller) -> configuration of its students.

    Raises:
        DJIPError: one is missing, is of another distiller, or does not take an option of the table.
    """
    cfgs = {}
    for pair, distiller in itertools.product(table.pairs, table.distillers):
        path = table.config(pair, distiller)
        options = [*_schedule(table, path), *table.settings("all", "student", distiller)]
        cfgs[pair, distiller] = load_cfg(path, options)
    for pair, distiller in cfgs:
        for values in combinations(table.vary):
            load_cfg(table.config(pair, distiller), words_of(values))  # refuses a wrong axis
        for arm in table.arms.values():
            load_cfg(table.config(pair, distiller), words_of(arm.options))
    for (_, distiller), cfg in cfgs.items():
        if distiller != cfg.DISTILLER.TYPE:
            raise DJIPError(
                f"{table.configs}: the configuration for {distiller} has DISTILLER.TYPE "
                f"{cfg.DISTILLER.TYPE}; name its file after the method"
            )
    return cfgs


def _checkpoint(teacher: Made) -> list[str]:
    """The option that names the teacher's checkpoint; none where mdistiller keeps it."""
    _, path = teacher
    return ["BENCH.TEACHER_CHECKPOINT", path] if path else []


def _schedule(table: Table, config: str) -> list[str]:
    """``epochs`` of the table as options, with the stages of the learning rate in proportion."""
    if table.epochs is None:
        return []
    solver = load_cfg(config).SOLVER
    stages = [
        max(1, round(stage * table.epochs / solver.EPOCHS)) for stage in solver.LR_DECAY_STAGES
    ]
    return words_of({"SOLVER.EPOCHS": table.epochs, "SOLVER.LR_DECAY_STAGES": stages})


def _teacher(table: Table, name: str, dataset: str, out: str, data_root: str) -> Made:
    """The step that trains the teacher, or None, and its checkpoint."""
    source = table.teachers.get(name, "")
    if not source.endswith((".yaml", ".yml")):
        path = source or _published(name, dataset)
        if path is not None and not Path(path).is_file():
            raise DJIPError(
                f"there is no checkpoint {path} of the teacher {name}; "
                "give one, or a configuration to train it, at teachers:"
            )
        return None, source
    options = [
        *("LOG.PREFIX", out),
        *("EXPERIMENT.PROJECT", TEACHERS),
        *("EXPERIMENT.NAME", file_name(name)),
        *table.settings("all", "teacher"),
    ]
    step = Step("teacher", f"teacher {name}", source, ("--seed", "0"), tuple(options), data_root, 0)
    cfg = step.cfg()
    kind, student = cfg.DISTILLER.TYPE, cfg.DISTILLER.STUDENT
    if (kind, student) != ("NONE", name):
        raise DJIPError(
            f"{source} trains {student} with {kind}; "
            f"the teacher {name} takes DISTILLER.TYPE NONE and STUDENT {name}"
        )
    return step, str(run_folder(cfg) / "student_last.pth")


def _teacher_of_arm(
    table: Table, arm: Arm, name: str, own: Made, student: CfgNode, out: str, data_root: str
) -> Made:
    """The step that trains the teacher of ``arm``, from the table's ``own`` or from scratch.

    Raises:
        DJIPError: the configuration trains another network, or there is nothing to start from.
    """
    if not arm.teacher:
        return own
    stem = _short_name(arm.teacher, table) + ("-scratch" if arm.start == "scratch" else "")
    path = own[1] or _published(name, student.DATASET.TYPE) or ""
    options = [
        *("LOG.PREFIX", out),
        *("EXPERIMENT.PROJECT", TEACHERS),
        *("EXPERIMENT.NAME", f"{file_name(name)}-{stem}"),
        *table.settings("all", "teacher"),
    ]
    kind = load_cfg(arm.teacher).DISTILLER.TYPE
    starts = ["BENCH.STUDENT_CHECKPOINT"] if arm.start == "teacher" else []
    reads = [*starts, *(["BENCH.TEACHER_CHECKPOINT"] if needs_teacher(kind) else [])]
    if reads and not path:
        raise DJIPError(
            f"{arm.teacher} goes on from the teacher {name}, of which no checkpoint is known; give "
            "one at teachers:"
        )
    options += [word for key in reads for word in (key, path)]
    step = Step(
        "teacher",
        f"teacher {name}, {stem}",
        arm.teacher,
        ("--seed", "0"),
        tuple(options),
        data_root,
        0,
        needs=(own[0],) if reads and own[0] is not None else (),
    )
    names = step.settings().DISTILLER
    if name != names.STUDENT or (needs_teacher(kind) and name != names.TEACHER):
        raise DJIPError(
            f"{arm.teacher} trains {names.STUDENT}; an arm of the teacher {name} takes "
            f"DISTILLER.STUDENT {name}, and as DISTILLER.TEACHER, where it has one, the same"
        )
    return step, str(run_folder(step.cfg()) / "student_last.pth")


def _short_name(config: str, table: Table) -> str:
    """The stem of an arm's configuration; its folder before it where two share the stem."""
    path = Path(config)
    others = {Path(arm.teacher) for arm in table.arms.values() if arm.teacher} - {path}
    shared = any(other.stem == path.stem for other in others)
    return f"{path.parent.name}-{path.stem}" if shared else path.stem


def _published(name: str, dataset: str) -> str | None:
    """Where mdistiller keeps the teacher ``name``, "" for one it does not have.

    None for networks whose own library has the weights, or says that it lacks them.
    """
    if name not in cifar_model_dict or dataset in FOLDERS:
        return None
    return cifar_model_dict[name][1] or ""


def file_name(network: str) -> str:
    """Write the name of a network, ``hf:google/vit`` say, as part of a path."""
    return network.replace(":", "-").replace("/", "-")


def _fit_words(source: str, dataset: str) -> list[str]:
    """The flags of ``djip fit`` for an arm: its own, or those that only measure its tables."""
    if is_fit(source):
        return shlex.split(source)[1:]
    # Of the many classes of a folder 500 images may be one each, of which no CMI can be measured.
    few = [] if dataset in FOLDERS else ["--images", "500"]
    return ["--rounds", "0", *few, "--alpha", "5", "--seed", "0", "--start", source]


def _lens(
    table: Table,
    arm: str,
    teacher: str,
    trained: Made,
    config: str,
    out: str,
    data_root: str,
) -> Made:
    """The step that fits the arm's lens, or None, and the lens.

    The lens is "identity", "temperature:K" or a file.
    """
    source = table.arms[arm].before
    if softening(source) is not None:
        return None, source
    if source == "own":
        return trained[0], str(Path(trained[1]).with_name("lens.safetensors"))
    if source.endswith(".safetensors") and not is_fit(source):
        path = source.replace("{teacher}", file_name(teacher))
        if not Path(path).exists():
            raise DJIPError(
                f"arm {arm}: there is no lens {path}; "
                f"fit it with djip fit, or let the table do so: {arm}: fit"
            )
        return None, path
    options = [*_checkpoint(trained), *table.settings("all", "lens")]
    flags = _fit_words(source, load_cfg(config, options).DATASET.TYPE)
    read = fit_flags(flags)
    descends = not read.black_box and read.rounds > 0
    if is_closed(teacher) and descends:
        raise DJIPError(
            f"arm {arm}: {teacher} is closed and has no gradient; fit its lens with "
            "'fit --black-box --queries N'"
        )
    # Another fit is another file: a table that was edited never takes the old lens for the new one.
    name = hashlib.sha256(json.dumps([flags, options]).encode()).hexdigest()[:6]
    path = str(Path(out, "lenses", f"{file_name(teacher)}-{arm}-{name}.safetensors"))
    step = Step(
        "lens",
        f"lens {arm} of {teacher}",
        config,
        ("--out", path, *flags),
        tuple(options),
        data_root,
        makes=path,
        needs=() if trained[0] is None else (trained[0],),
    )
    return step, path
