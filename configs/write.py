"""The configuration files of the published tables, composed from what differs: a pair, a method.

``python configs/write.py`` writes them beside this file, flat and in mdistiller's layout and
naming, for its train.py and for ``djip train`` alike; ``--check`` only says whether they are
current.  Edit this file, not those.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parent
HEADER = "# Written by configs/write.py from a pair and a method; edit that file, not this one.\n"

# What differs between methods: the node of each, as published (mdistiller's for its own methods).
# DKD, WTTM and ITRD: by pair, below.
METHODS: dict[str, dict[str, Any]] = {
    "KD": {"TEMPERATURE": 4, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
    "DKD": {"CE_WEIGHT": 1.0, "ALPHA": 1.0, "BETA": 8.0, "T": 4.0, "WARMUP": 20},
    "DIST": {"TAU": 4.0, "LOSS": {"CE_WEIGHT": 1.0, "INTER_WEIGHT": 2.0, "INTRA_WEIGHT": 2.0}},
    "WTTM": {"GAMMA": 0.1, "LOSS": {"CE_WEIGHT": 1.0, "KD_WEIGHT": 3.0}},
    "LSKD": {"BASE": "KD", "TEMPERATURE": 2.0, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 9.0}},
    "RKD": {
        "DISTANCE_WEIGHT": 25,
        "ANGLE_WEIGHT": 50,
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
    },
    "CC": {"DIM": 128, "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.02}},
    "CRD": {
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.8},
        "NCE": {"K": 16384, "MOMENTUM": 0.5, "TEMPERATURE": 0.07},
    },
    "ITRD": {"ALPHA": 1.01, "LOSS": {"CE_WEIGHT": 1.0, "CORR_WEIGHT": 2.0, "MUTUAL_WEIGHT": 1.0}},
    "AT": {"P": 2, "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1000.0}},
    "SP": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 3000.0}},
    "FITNET": {"HINT_LAYER": 2, "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 100.0}},
    "FT": {"RATE": 0.5, "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 200.0}},
}

# Knockoff attacks, and the bar that they have to pass (LS).
KNOCKOFF = {"TEMPERATURE": 4.0, "REDUCTION": "batchmean"}
ATTACKS: dict[str, dict[str, Any]] = {
    "LS": {"EPSILON": 0.1},
    "HTC": KNOCKOFF | {"TEMPERATURE": 50.0, "LOSS": {"CE_WEIGHT": 1.0, "KD_WEIGHT": 1.0}},
    "ERKD": KNOCKOFF | {"LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
    "AVG": KNOCKOFF | {"LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
    "MKD": KNOCKOFF | {"LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
}

# Networks that are trained to be undistillable; NASTY and STINGY from a plain one of their kind.
DEFENCES: dict[str, dict[str, Any]] = {
    "CMIM": {"LAMBDA": 5.0, "POWERS": [0.5, 0.25, 0.125], "AGGREGATE": "mean"},
    "NASTY": {"TEMPERATURE": 20.0, "WEIGHT": 0.004},
    "STINGY": {"TOP": 10, "TEMPERATURE": 4.0, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
}
VICTIM = "wrn_16_2"  # that of results/: small enough for a CPU

# Networks: mdistiller's short name in tags, pooled features (what CRD must be told).
CIFAR_NETWORKS: dict[str, tuple[str, int]] = {
    "resnet8": ("resnet8", 64),
    "resnet20": ("res20", 64),
    "resnet32": ("res32", 64),
    "resnet56": ("res56", 64),
    "resnet110": ("res110", 64),
    "resnet8x4": ("res8x4", 256),
    "resnet32x4": ("res32x4", 256),
    "wrn_16_2": ("wrn_16_2", 128),
    "wrn_40_1": ("wrn_40_1", 64),
    "wrn_40_2": ("wrn_40_2", 128),
    "vgg8": ("vgg8", 512),
    "vgg13": ("vgg13", 512),
    "ResNet50": ("res50", 2048),
    "MobileNetV2": ("mv2", 1280),
    "ShuffleV1": ("shuv1", 960),
    "ShuffleV2": ("shuv2", 1024),
}
SLOW = {"MobileNetV2", "ShuffleV1", "ShuffleV2"}  # learn at 0.01


class Tuned(NamedTuple):
    """Weights that were published pair by pair (docs/distillers.md has the sources)."""

    dkd_beta: float = 8.0
    wttm_gamma: float = 0.1
    wttm_weight: float = 3.0
    itrd_alpha: float = 1.01
    itrd_mutual: float = 1.0


UNTUNED = Tuned()  # for pairs without published weights


# Pairs: mdistiller's file name -> teacher, student, their weights. Two betas are not published,
# those of res110_res20 and res50_vgg8: they are those of the teacher's other pair.
CIFAR_PAIRS: dict[str, tuple[str, str, Tuned]] = {
    "wrn40_2_wrn_16_2": ("wrn_40_2", "wrn_16_2", Tuned(6.0, 0.1, 4.0)),
    "wrn40_2_wrn_40_1": ("wrn_40_2", "wrn_40_1", Tuned(6.0, 0.1, 3.0)),
    "res56_res20": ("resnet56", "resnet20", Tuned(2.0, 0.3, 1.5)),
    "res110_res20": ("resnet110", "resnet20", Tuned(2.0, 0.2, 2.0)),
    "res110_res32": ("resnet110", "resnet32", Tuned(2.0, 0.1, 1.5)),
    "res32x4_res8x4": ("resnet32x4", "resnet8x4", Tuned(8.0, 0.1, 3.0)),
    "vgg13_vgg8": ("vgg13", "vgg8", Tuned(6.0, 0.1, 2.25)),
    "vgg13_mv2": ("vgg13", "MobileNetV2", Tuned(6.0, 0.2, 3.0, 1.5)),
    "res50_mv2": ("ResNet50", "MobileNetV2", Tuned(8.0, 0.2, 5.0, 1.5, 0.0)),
    "res50_vgg8": ("ResNet50", "vgg8", Tuned(8.0, 0.1, 2.0, 1.5, 0.0)),
    "res32x4_shuv1": ("resnet32x4", "ShuffleV1", Tuned(8.0, 0.2, 1.4, 1.5)),
    "res32x4_shuv2": ("resnet32x4", "ShuffleV2", Tuned(8.0, 0.4, 16.0, 1.5)),
    "wrn40_2_shuv1": ("wrn_40_2", "ShuffleV1", Tuned(8.0, 0.3, 3.0, 1.5, 0.0)),
}
FEWSHOT = (
    ("wrn_16_2", "resnet8"),
    ("vgg8", "resnet8"),
)  # the pairs of results/: small enough for a CPU
LONG = {"vgg8"}  # teachers whose few-shot students learn for 120 epochs along a cosine

# Networks whose files of MCMI and of JPEG-DL are written: the small one of results/, and a
# published one. MCMI's lambda is the authors' for resnet56; they take .1 to .25 for others.
MCMI = ("wrn_16_2", "resnet56")
JPEG_DL = ("wrn_16_2", "resnet56")

# ImageNet: mdistiller's folder -> teacher, student, their names in tags, pooled features of student
# and teacher, weights. The transformers are timm's and give logits and pooled features only; their
# recipe is DeiT's, for the embedded benchmark alone.
IMAGENET_PAIRS = {
    "r34_r18": (("ResNet34", "ResNet18"), ("res34", "res18"), (512, 512), Tuned(0.5, 0.8, 1.6)),
    "r50_mv1": (
        ("ResNet50", "MobileNetV1"),
        ("res50", "mobilenetv1"),
        (1024, 2048),
        Tuned(2.0, 0.7, 3.5),
    ),
    "vits_deitt": (
        ("timm:vit_small_patch16_224", "timm:deit_tiny_patch16_224"),
        ("vit_s", "deit_t"),
        (192, 384),
        Tuned(2.0),
    ),
}
NOT_FOR_TRANSFORMERS = {"AT", "WTTM"}  # needs maps; its weights are not published for this pair
IMAGENET_METHODS: dict[str, dict[str, Any]] = {
    "KD": {"TEMPERATURE": 1, "LOSS": {"CE_WEIGHT": 0.5, "KD_WEIGHT": 0.5}},
    "AT": METHODS["AT"],
    "DKD": {"CE_WEIGHT": 1.0, "T": 1.0, "WARMUP": 1},
    "CRD": METHODS["CRD"],
    "DIST": METHODS["DIST"] | {"TAU": 1.0},
    "WTTM": METHODS["WTTM"],
}


def compose() -> dict[str, str]:
    """Path below this folder -> content, for every file."""
    files = {}
    for pair, (teacher, student, tuned) in CIFAR_PAIRS.items():
        for method in METHODS:
            files[f"cifar100/{method.lower()}/{pair}.yaml"] = cifar(method, teacher, student, tuned)
    for network, (short, _) in CIFAR_NETWORKS.items():
        files[f"cifar100/vanilla/{short}.yaml"] = cifar("NONE", network, network)
    for network in MCMI:
        files[f"cifar100/mcmi/{CIFAR_NETWORKS[network][0]}.yaml"] = mcmi(network)
    for network in JPEG_DL:
        files[f"cifar100/jpegdl/{CIFAR_NETWORKS[network][0]}.yaml"] = jpeg_dl(network)
    files["cifar100/jpegdl/wrn_16_2_short.yaml"] = jpeg_dl("wrn_16_2", short=True)
    files["cifar100/mcmi/wrn_16_2_gain.yaml"] = mcmi("wrn_16_2", gain=True)
    for method in DEFENCES:
        files[f"cifar100/{method.lower()}/{VICTIM}.yaml"] = cifar(method, VICTIM, VICTIM)
    for method in ATTACKS:
        files[f"cifar100/fewshot/{method.lower()}_{'_'.join(FEWSHOT[0])}.yaml"] = cifar(
            method, *FEWSHOT[0], fewshot=True
        )
    for method in METHODS:
        for pair in FEWSHOT:
            files[f"cifar100/fewshot/{method.lower()}_{'_'.join(pair)}.yaml"] = cifar(
                method, *pair, fewshot=True
            )
    # a student as large as its teacher: it can know its images by heart (regime_overfit.yaml)
    files["cifar100/fewshot/kd_vgg8_vgg8.yaml"] = cifar("KD", "vgg8", "vgg8", fewshot=True)
    for pair, (networks, shorts, dims, tuned) in IMAGENET_PAIRS.items():
        for method in IMAGENET_METHODS:
            if pair == "vits_deitt" and method in NOT_FOR_TRANSFORMERS:
                continue
            files[f"imagenet/{pair}/{method.lower()}.yaml"] = imagenet(
                method, networks, shorts, dims, tuned
            )
    return files


def cifar(
    method: str, teacher: str, student: str, tuned: Tuned = UNTUNED, fewshot: bool = False
) -> str:
    """The recipe of the CRD benchmark and DKD: 240 epochs.

    Few-shot: 50, at a rate of .05, with the same decay, or as LONG says.
    """
    (short_t, dim_t), (short_s, dim_s) = CIFAR_NETWORKS[teacher], CIFAR_NETWORKS[student]
    tag = ["vanilla", short_s] if method == "NONE" else [method.lower(), short_t, short_s]
    if method in DEFENCES:
        tag = [method.lower(), short_s]
    solver = {
        "BATCH_SIZE": 64,
        "EPOCHS": 50 if fewshot else 240,
        "LR": 0.01 if student in SLOW else 0.05,
        "LR_DECAY_STAGES": [30, 40, 46] if fewshot else [150, 180, 210],
        "LR_DECAY_RATE": 0.1,
        "WEIGHT_DECAY": 0.0005,
        "MOMENTUM": 0.9,
        "TYPE": "SGD",
    }
    cfg: dict[str, Any] = {
        "EXPERIMENT": {
            "NAME": "",
            "TAG": ",".join(tag),
            "PROJECT": "cifar100_fewshot" if fewshot else "cifar100_baselines",
        },
        "DISTILLER": {"TYPE": method, "TEACHER": teacher, "STUDENT": student},
        "SOLVER": solver,
    }
    if fewshot and teacher in LONG:
        solver["EPOCHS"] = 120
        del solver["LR_DECAY_STAGES"], solver["LR_DECAY_RATE"]
        cfg["BENCH"] = {"SCHEDULE": "cosine"}
    nodes = METHODS | ATTACKS | DEFENCES
    return HEADER + text(cfg | node(method, nodes, cfg, (dim_s, dim_t), tuned))


def mcmi(network: str, gain: bool = False) -> str:
    """The authors' recipe: 20 epochs along a cosine from .05, lambda .15.

    Gain: lambda is steered to 0.3 nats, as results/README.md needs it: 6 epochs from .01.
    """
    solver = {
        "BATCH_SIZE": 64,
        "EPOCHS": 6 if gain else 20,
        "LR": 0.01 if gain else 0.05,
        "WEIGHT_DECAY": 0.0005,
        "MOMENTUM": 0.9,
        "TYPE": "SGD",
    }
    steered = {"LAMBDA": 2.0, "CENTRES": "refreshed", "GAIN": 0.3}
    tag = ["mcmi", CIFAR_NETWORKS[network][0]] + (["gain"] if gain else [])
    cfg: dict[str, Any] = {
        "EXPERIMENT": {"NAME": "", "TAG": ",".join(tag), "PROJECT": "cifar100_baselines"},
        "DISTILLER": {"TYPE": "MCMI", "TEACHER": network, "STUDENT": network},
        "SOLVER": solver,
        "MCMI": steered if gain else {"LAMBDA": 0.15, "CENTRES": "fixed", "GAIN": 0.0},
        "BENCH": {"SCHEDULE": "cosine"},
    }
    return HEADER + text(cfg)


def jpeg_dl(network: str, short: bool = False) -> str:
    """The recipe of the network alone, and JPEG-DL's for its tables.

    Short: 6 epochs along a cosine from .01, to go on from a trained network.
    """
    name = CIFAR_NETWORKS[network][0]
    cfg: dict[str, Any] = yaml.safe_load(cifar("NONE", network, network))
    cfg["EXPERIMENT"]["TAG"] = ",".join(["jpegdl", name] + (["short"] if short else []))
    cfg["DISTILLER"]["TYPE"] = "JPEGDL"
    if short:
        cfg["SOLVER"] |= {"EPOCHS": 6, "LR": 0.01}
        del cfg["SOLVER"]["LR_DECAY_STAGES"], cfg["SOLVER"]["LR_DECAY_RATE"]
    cfg["JPEGDL"] = {"LR": 0.003, "ALPHA": 5.0}
    return HEADER + text(cfg | ({"BENCH": {"SCHEDULE": "cosine"}} if short else {}))


def imagenet(
    method: str,
    networks: tuple[str, str],
    shorts: tuple[str, str],
    dims: tuple[int, int],
    tuned: Tuned,
) -> str:
    """mdistiller's recipe: 100 epochs, 512 images a batch at a rate of .2 (CRD: half of both).

    Transformers take DeiT's optimiser and schedule (arXiv 2012.12877), 300 epochs of AdamW, without
    its mixup, cutmix and RandAugment.
    """
    half = 2 if method == "CRD" else 1
    solver = {
        "BATCH_SIZE": 512 // half,
        "EPOCHS": 100,
        "LR": 0.2 / half,
        "LR_DECAY_STAGES": [30, 60, 90],
        "LR_DECAY_RATE": 0.1,
        "WEIGHT_DECAY": 0.0001,
        "MOMENTUM": 0.9,
        "TYPE": "SGD",
    }
    cfg: dict[str, Any] = {
        "EXPERIMENT": {
            "NAME": "",
            "TAG": ",".join([method.lower(), *shorts]),
            "PROJECT": "imagenet_baselines",
        },
        "DATASET": {"TYPE": "imagenet", "NUM_WORKERS": 32, "TEST": {"BATCH_SIZE": 128}},
        "DISTILLER": {"TYPE": method, "TEACHER": networks[0], "STUDENT": networks[1]},
        "SOLVER": solver,
        "LOG": {"TENSORBOARD_FREQ": 50, "SAVE_CHECKPOINT_FREQ": 10},
    }
    if networks[1].startswith("timm:"):
        solver |= {"EPOCHS": 300, "LR": 0.0005 / half, "WEIGHT_DECAY": 0.05, "TYPE": "AdamW"}
        del solver["LR_DECAY_STAGES"], solver["LR_DECAY_RATE"], solver["MOMENTUM"]
        cfg["BENCH"] = {"SCHEDULE": "cosine", "WARMUP": 5}
    return HEADER + text(cfg | node(method, IMAGENET_METHODS, cfg, dims, tuned))


def node(
    method: str,
    methods: dict[str, dict[str, Any]],
    cfg: dict[str, Any],
    dims: tuple[int, int],
    tuned: Tuned,
) -> dict[str, Any]:
    """The method's own node, with what depends on the pair; CRD also needs its trainer."""
    if method == "NONE":
        return {}
    own = dict(methods[method])
    if method == "DKD":
        own["BETA"] = tuned.dkd_beta
    if method == "WTTM":
        own = {"GAMMA": tuned.wttm_gamma, "LOSS": own["LOSS"] | {"KD_WEIGHT": tuned.wttm_weight}}
    if method == "ITRD":
        own = {
            "ALPHA": tuned.itrd_alpha,
            "LOSS": own["LOSS"] | {"MUTUAL_WEIGHT": tuned.itrd_mutual},
        }
    if method == "CRD":
        own["FEAT"] = {"STUDENT_DIM": dims[0], "TEACHER_DIM": dims[1]}
        cfg["SOLVER"]["TRAINER"] = "crd"
    return {method: own}


def text(tree: dict[str, Any], indent: str = "") -> str:
    """Nested mappings as block YAML, everything else as JSON, which YAML reads alike."""
    lines = [
        f"{indent}{key}:\n{text(value, indent + '  ')}"
        if isinstance(value, dict)
        else f"{indent}{key}: {json.dumps(value)}\n"
        for key, value in tree.items()
    ]
    return "".join(lines)


def stale(folder: Path = FOLDER) -> list[str]:
    """Files that differ from what this file says, are missing, or are no longer written by it."""
    files = compose()
    differing = [
        name
        for name, content in files.items()
        if not (folder / name).exists() or (folder / name).read_text() != content
    ]
    left_over = [path for path in folder.rglob("*.yaml") if path.read_text().startswith(HEADER)]
    return differing + [
        name for path in left_over if (name := path.relative_to(folder).as_posix()) not in files
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the configuration files of the published tables."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when a file is not current"
    )
    if parser.parse_args().check:
        differing = stale()
        sys.exit(
            f"not current, run python configs/write.py: {', '.join(differing)}" if differing else 0
        )
    for name in stale():
        if (content := compose().get(name)) is None:
            (FOLDER / name).unlink()
            continue
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_text(content)


if __name__ == "__main__":
    main()
