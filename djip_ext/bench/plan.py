"""What a table takes: nothing but ``djip train`` and ``djip fit`` commands, in the order in which they depend on each other."""

import functools
import hashlib
import itertools
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from ..errors import DJIPError
from ..lens_file import lens_name, read_lens, softening, weight_hash
from .axes import combinations, suffix, words_of
from .cfg import differing_settings, load_cfg
from .dataset import FOLDERS
from .models import cifar_model_dict
from .run import behind_lens, read_weights, run_folder, run_record
from .table import Table


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
        lens: what is in front of the teacher: "" (a teacher's training), "identity", "temperature:K" or a file.
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
        root = ["--data-root", self.data_root] if self.data_root else []
        return ["fit" if self.kind == "lens" else "train", "--cfg", self.config, *self.flags, "--resume", *root, *self.options]

    def __str__(self) -> str:
        return f"djip {shlex.join(self.words)}"

    def settings(self) -> CfgNode:
        """What the command line says; the lens still adds to a student's folder."""
        options = [*self.options, *(["BENCH.DATA_ROOT", self.data_root] if self.data_root else [])]
        return load_cfg(self.config, options + ([] if self.seed is None else ["BENCH.SEED", self.seed]))

    def cfg(self) -> CfgNode:
        """The configuration that the command will run with; a student's needs its lens to exist, since its folder is named after it."""
        cfg = self.settings()
        if self.lens:
            cfg.EXPERIMENT.PROJECT = behind_lens(cfg.EXPERIMENT.PROJECT, lens_name(read_lens(self.lens)))
        return cfg

    def result(self) -> dict[str, Any] | None:
        """What the finished step left behind, None while it is not finished.

        Raises:
            DJIPError: its folder holds a finished run with other settings, or it was made with another teacher than is there now.
        """
        if self.kind == "lens":
            record = Path(self.makes).with_suffix(".json")
            if not Path(self.makes).exists() or not record.exists() or Path(self.makes).with_suffix(".fit.pth").exists():
                return None
            found = json.loads(record.read_text())
            check_teacher(self.settings(), found["about"].get("teacher_hash"), self.makes)
            return found
        if self.lacks_its_lens():
            return None
        return finished_run(self.cfg())

    @property
    def lens_file(self) -> str:
        """The lens in front of the teacher; "" when there is none."""
        return "" if not self.lens or softening(self.lens) is not None else self.lens

    def lacks_its_lens(self) -> bool:
        """Whether the lens is still to be fitted."""
        return bool(self.lens_file) and not Path(self.lens_file).exists()

    def epochs_done(self) -> int:
        """Rows of an unfinished run's log; 0 for a lens and for a run that has not begun."""
        if self.kind == "lens" or self.lacks_its_lens():
            return 0
        log = run_folder(self.cfg()) / "log.csv"
        return max(0, len(log.read_text().splitlines()) - 1) if log.exists() else 0


def finished_run(cfg: CfgNode) -> dict[str, Any] | None:
    """The result in the run folder of ``cfg``, None when there is none; raises DJIPError when it is of other settings."""
    path = run_folder(cfg) / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    differing = differing_settings(run_record(cfg)["config"], result["config"])
    differing.pop("BENCH.DEVICE", None)
    if differing:
        values = ", ".join(f"{key} {theirs} (now {ours})" for key, (ours, theirs) in differing.items())
        raise DJIPError(f"{path.parent} holds a run with other settings: {values}; give the table another --out or delete that folder")
    check_teacher(cfg, result.get("teacher_hash"), path.parent)
    return result


def check_teacher(cfg: CfgNode, known: str | None, where: str | Path) -> None:
    """Raise DJIPError when the teacher that ``cfg`` names has other weights by now than ``known``, those that made ``where``."""
    path = cfg.BENCH.TEACHER_CHECKPOINT or _published(cfg.DISTILLER.TEACHER, cfg.DATASET.TYPE)
    if known and path and Path(path).is_file() and (found := _hash_of(str(path), os.stat(path).st_mtime_ns)) != known:
        raise DJIPError(f"{where} was made with another teacher ({known}) than {path} is now ({found}); delete it or give the table another --out")


@functools.cache
def _hash_of(path: str, mtime_ns: int) -> str:
    state = read_weights(path)
    for key in [key for key in state if key.endswith(".running_var")]:  # old checkpoints lack what torch then sets to 0
        state.setdefault(key.replace("running_var", "num_batches_tracked"), torch.tensor(0))
    return weight_hash(state)


def make_plan(table: Table, out: str, data_root: str = "") -> list[Step]:
    """Every step of ``table``, each after those it needs; the results go below the folder ``out``.

    Seeds are the outermost loop, so that a table that was stopped has all its rows with fewer seeds.

    Raises:
        DJIPError: a configuration, checkpoint or lens is missing or does not fit; the message names it.
    """
    configs = {(p, d): table.config(p, d) for p in table.pairs for d in table.distillers}
    cfgs = {key: load_cfg(path, [*_schedule(table, path), *table.settings("all", "student", key[1])]) for key, path in configs.items()}
    for path, values in itertools.product(configs.values(), combinations(table.vary)):
        load_cfg(path, words_of(values))  # says now what is wrong with an axis
    for (_, distiller), cfg in cfgs.items():
        if cfg.DISTILLER.TYPE != distiller:
            kind = cfg.DISTILLER.TYPE
            raise DJIPError(f"{table.configs}: the configuration for {distiller} has DISTILLER.TYPE {kind}; name its file after the method")
    teachers: dict[str, tuple[Step | None, str]] = {}
    lenses: dict[tuple[str, str], tuple[Step | None, str]] = {}
    for key, cfg in cfgs.items():
        name = cfg.DISTILLER.TEACHER
        if name not in teachers:
            teachers[name] = _teacher(table, name, cfg.DATASET.TYPE, out, data_root)
            for arm in table.arms:
                lenses[name, arm] = _lens(table, arm, name, teachers[name], configs[key], out, data_root)
    steps = [step for step, _ in [*teachers.values(), *lenses.values()] if step is not None]
    for seed in range(table.seeds):
        for ((pair, distiller), cfg), values, arm in itertools.product(cfgs.items(), combinations(table.vary), table.arms):
            teacher, checkpoint = teachers[cfg.DISTILLER.TEACHER]
            fit, lens = lenses[cfg.DISTILLER.TEACHER, arm]
            options = ["LOG.PREFIX", out, "EXPERIMENT.PROJECT", arm, "EXPERIMENT.NAME", f"{distiller.lower()}_{pair}{suffix(values)}"]
            options += ["BENCH.TEACHER_CHECKPOINT", checkpoint] if checkpoint else []
            options += [*_schedule(table, configs[pair, distiller]), *table.settings("all", "student", distiller)]
            options += words_of(values)
            steps.append(Step(
                "student", f"{distiller} {pair}{suffix(values)}, {arm}, seed {seed}", configs[pair, distiller],
                ("--djip-lens", lens, "--seed", str(seed)), tuple(options), data_root, seed, lens,
                needs=tuple(step for step in (teacher, fit) if step is not None),
            ))
    return steps


def _schedule(table: Table, config: str) -> list[str]:
    """``epochs`` of the table as options: the stages of the learning rate in proportion."""
    if table.epochs is None:
        return []
    solver = load_cfg(config).SOLVER
    stages = [max(1, round(stage * table.epochs / solver.EPOCHS)) for stage in solver.LR_DECAY_STAGES]
    return ["SOLVER.EPOCHS", str(table.epochs), "SOLVER.LR_DECAY_STAGES", repr(stages).replace(" ", "")]


def _teacher(table: Table, name: str, dataset: str, out: str, data_root: str) -> tuple[Step | None, str]:
    """The step that trains the teacher, or None, and its checkpoint."""
    source = table.teachers.get(name, "")
    if not source.endswith((".yaml", ".yml")):
        path = source or _published(name, dataset)
        if path is not None and not Path(path).is_file():
            raise DJIPError(f"there is no checkpoint {path} of the teacher {name}; give one, or a configuration to train it, at teachers:")
        return None, source
    options = ["LOG.PREFIX", out, "EXPERIMENT.PROJECT", "teachers", "EXPERIMENT.NAME", file_name(name), *table.settings("all", "teacher")]
    step = Step("teacher", f"teacher {name}", source, ("--seed", "0"), tuple(options), data_root, 0)
    cfg = step.cfg()
    kind, student = cfg.DISTILLER.TYPE, cfg.DISTILLER.STUDENT
    if (kind, student) != ("NONE", name):
        raise DJIPError(f"{source} trains {student} with {kind}; the teacher {name} takes DISTILLER.TYPE NONE and STUDENT {name}")
    return step, str(run_folder(cfg) / "student_last.pth")


def _published(name: str, dataset: str) -> str | None:
    """Where mdistiller keeps the teacher ``name``, "" for one it does not have; None: its own library has the weights, or says so."""
    return cifar_model_dict[name][1] or "" if name in cifar_model_dict and dataset not in FOLDERS else None


def file_name(network: str) -> str:
    """``timm:vit_tiny`` and ``hf:google/vit`` as part of a path."""
    return network.replace(":", "-").replace("/", "-")


def _lens(
    table: Table, arm: str, teacher: str, trained: tuple[Step | None, str], config: str, out: str, data_root: str
) -> tuple[Step | None, str]:
    """The step that fits the arm's lens, or None, and the lens: "identity", "temperature:K" or a file."""
    source = table.arms[arm]
    if softening(source) is not None:
        return None, source
    if source.endswith(".safetensors") and not source.startswith("fit"):
        path = source.replace("{teacher}", file_name(teacher))
        if not Path(path).exists():
            raise DJIPError(f"arm {arm}: there is no lens {path}; fit it with djip fit, or let the table do so: {arm}: fit")
        return None, path
    control = f"--rounds 0 --images 500 --alpha 5 --seed 0 --start {source}"  # as damage to compare with: nothing is fitted
    flags = shlex.split(source)[1:] if source.startswith("fit") else control.split()
    step, checkpoint = trained
    options = [*(["BENCH.TEACHER_CHECKPOINT", checkpoint] if checkpoint else []), *table.settings("all", "lens")]
    # Another fit is another file: a table that was edited never takes the old lens for the new one.
    name = hashlib.sha256(json.dumps([flags, options]).encode()).hexdigest()[:6]
    path = str(Path(out, "lenses", f"{file_name(teacher)}-{arm}-{name}.safetensors"))
    needs = () if step is None else (step,)
    return Step("lens", f"lens {arm} of {teacher}", config, ("--out", path, *flags), tuple(options), data_root, None, "", path, needs), path
