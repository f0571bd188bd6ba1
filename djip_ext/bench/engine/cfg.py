"""The configuration schema: mdistiller's nodes and defaults, and a node of our own, ``BENCH``.

YAML files written for mdistiller load here unchanged.  Only ``LOG.WANDB`` differs: it is off, since
the benchmark must run offline; TensorBoard files and a CSV are always written.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from djip_ext.bench.distillers import distiller_defaults
from djip_ext.bench.engine.record import used_config
from djip_ext.bench.engine.utils import log_msg
from djip_ext.errors import DJIPError

CFG = CfgNode(
    {
        "EXPERIMENT": {"PROJECT": "distill", "NAME": "", "TAG": "default"},
        "DATASET": {"TYPE": "cifar100", "NUM_WORKERS": 2, "TEST": {"BATCH_SIZE": 64}},
        "DISTILLER": {"TYPE": "NONE", "TEACHER": "ResNet50", "STUDENT": "resnet32"},
        "SOLVER": {
            "TRAINER": "base",
            "BATCH_SIZE": 64,
            "EPOCHS": 240,
            "LR": 0.05,
            "LR_DECAY_STAGES": [150, 180, 210],
            "LR_DECAY_RATE": 0.1,
            "WEIGHT_DECAY": 0.0001,
            "MOMENTUM": 0.9,
            "TYPE": "SGD",
        },
        # Every epoch is logged and kept here: of these PREFIX alone is read; the others let the
        # host's files load.
        "LOG": {
            "TENSORBOARD_FREQ": 500,
            "SAVE_CHECKPOINT_FREQ": 40,
            "PREFIX": "./output",
            "WANDB": False,
        },
        "BENCH": {
            # of weights, order and augmentation
            "SEED": 0,
            # "auto" takes a GPU when there is one
            "DEVICE": "auto",
            # or "bfloat16": autocast of the networks; losses and lens stay in float32
            "PRECISION": "float32",
            # holds cifar-100-python, or train/CLASS/* and val/CLASS/*
            "DATA_ROOT": "./data",
            # side of a folder's images; 0: the teacher's own, else the data set's
            "INPUT_SIZE": 0,
            # their normalisation, in units of [0, 1] pixels; []: the teacher's own, else the data
            # set's
            "MEAN": [],
            "STD": [],
            # nothing is fetched unless the user says so
            "DOWNLOAD": False,
            # of the learning rate: mdistiller's steps, or "cosine"; with SOLVER.TYPE "AdamW" it
            # suits transformers
            "SCHEDULE": "steps",
            # epochs of a linear rise before it
            "WARMUP": 0,
            # torch.compile of student and teacher: a minute or so, which long runs on a GPU earn
            # back
            "COMPILE": False,
            # each epoch's training step as a CUDA graph: several times as fast where networks are
            # small (SGD alone; on a CPU it changes nothing)
            "CUDA_GRAPH": False,
            # of each class that the training set keeps: the few-shot setting
            "FRACTION": 1.0,
            # which images these are; apart from SEED, so that seeds share them
            "FRACTION_SEED": 0,
            # False: the training images in random order, neither cropped nor flipped
            "AUGMENT": True,
            # part of each class of the (few-shot) training set that takes the test set's place, so
            # that settings are chosen without the test images
            "HOLDOUT": 0.0,
            # K > 0: K fixed augmentations of each image, and the teacher is asked once for each
            # (logit methods)
            "VIEWS": 0,
            # what a teacher lets out: "", logits and features; "probabilities", "temperature:K",
            # "round:D", "top:K" or "reverse-sigmoid:BETA,GAMMA": as a black box (logit methods)
            "ANSWERS": "",
            # True: the teacher sees each view as JPEG codes it, at a quality chosen for that image
            # (engine/coded_teacher.py); needs VIEWS
            "CKD": False,
            # "TALD" or "BSS": one more loss on adversarial images, for which the teacher is asked
            # at every step, with VIEWS too
            "ADVERSARIAL": "",
            # .pth or .safetensors; "" is mdistiller's path for that teacher
            "TEACHER_CHECKPOINT": "",
            # where the student starts from; "": random weights
            "STUDENT_CHECKPOINT": "",
            # epochs between two evaluations; the last epoch is always evaluated
            "EVAL_EVERY": 1,
        },
        **distiller_defaults,
    }
)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = list(value) if isinstance(value, tuple) else value
    return leaves


# the smallest value of settings that would fail later, and without their name
LEAST = {
    "SOLVER.BATCH_SIZE": 1,
    "SOLVER.EPOCHS": 1,
    "DATASET.TEST.BATCH_SIZE": 1,
    "DATASET.NUM_WORKERS": 0,
    "BENCH.EVAL_EVERY": 1,
    "BENCH.VIEWS": 0,
    "BENCH.SEED": -9 * 10**12,
    "CRD.NCE.K": 1,
}

# the largest: a generator takes 64 bits, and every epoch's is seeded with 1,000,003 SEED + epoch
MOST = {"BENCH.SEED": 9 * 10**12}

# temperatures, which divide, and a power that stands for one
POSITIVE = (
    *(key for key in _flat(CFG) if key.endswith(".TEMPERATURE")),
    "DKD.T",
    "DIST.TAU",
    "WTTM.GAMMA",
)

NO_NUMBER_DEPENDS_ON = (
    # every loader yields the same batches however many workers read
    "DATASET.NUM_WORKERS",
    "BENCH.DATA_ROOT",
    "BENCH.DOWNLOAD",
    "BENCH.CUDA_GRAPH",
    *(f"LOG.{key}" for key in CFG.LOG),
)


def show_cfg(cfg: CfgNode) -> None:
    """Print the nodes that a run of ``cfg`` reads, as mdistiller does before training."""
    print(log_msg(f"CONFIG:\n{used_config(cfg)}", "INFO"))


def differing_settings(ours: str, theirs: str) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (ours, theirs) where two dumped configurations differ and numbers depend on it.

    A key that one of them lacks, being of another version of the schema, counts as that key's
    default.
    """
    default = _flat(CFG)
    first = default | _flat(yaml.safe_load(ours))
    second = default | _flat(yaml.safe_load(theirs))
    return {
        key: (first[key], second[key])
        for key in default
        if first[key] != second[key] and key not in NO_NUMBER_DEPENDS_ON
    }


def load_cfg(path: str | None, options: list[str] | None = None) -> CfgNode:
    """Take the defaults, then the YAML file at ``path``, then ``KEY VALUE`` pairs.

    Raises:
        DJIPError: no such file, not YAML, an unknown key, or a value of the wrong type or below
            its least, or out of another limit; the message names it.
    """
    cfg = CFG.clone()
    try:
        if path:
            with open(path) as file:
                cfg.merge_from_other_cfg(CfgNode(_with_points(yaml.safe_load(file) or {}, CFG)))
        words = list(options or [])
        defaults = _flat(CFG)
        pairs = zip(words[::2], words[1::2], strict=False)  # yacs refuses a key without a value
        words[1::2] = [_with_point(value, defaults.get(key)) for key, value in pairs]
        cfg.merge_from_list(words)
    except OSError as error:
        raise DJIPError(
            f"cannot read the configuration {path}: {error.strerror}; --cfg takes a YAML file, see "
            "configs/"
        ) from error
    except yaml.YAMLError as error:
        raise DJIPError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except (KeyError, AssertionError, ValueError, AttributeError) as error:
        where = Path(path).name if path else "options"
        reason = error.args[0] if error.args else error
        raise DJIPError(
            f"{where}: {reason}; the keys are listed in djip_ext/bench/engine/cfg.py"
        ) from error
    values = _flat(cfg)
    for key, least in LEAST.items():
        if values[key] < least:
            raise DJIPError(f"{key} is {values[key]}; it must be at least {least}")
    for key, most in MOST.items():
        if values[key] > most:
            raise DJIPError(f"{key} is {values[key]}; it must be at most {most}")
    for key in POSITIVE:
        if not values[key] > 0:  # nor NaN
            raise DJIPError(f"{key} is {values[key]}; it must be greater than 0")
    return cfg


def _with_point(value: Any, default: Any) -> Any:
    """``value``, as a real number where the schema has one: yacs refuses 6 for 6.0."""
    if isinstance(default, float) and re.fullmatch(r"[+-]?\d+", str(value)):
        return float(value)
    return value


def _with_points(tree: Any, default: Any) -> Any:
    if isinstance(tree, dict) and isinstance(default, dict):
        return {key: _with_points(value, default.get(key)) for key, value in tree.items()}
    return _with_point(tree, default)
