"""Image classifiers of other libraries by name.

For example ``torchvision:resnet34``, ``timm:vit_small_patch16_224``, ``hf:FOLDER_OR_HUB_ID``.

Each is built, and its published weights are loaded, by its own library; what it expects of its
images is read from its own configuration.  timm and transformers are optional and imported when
asked for.  Nothing is fetched unless ``download`` is set.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from djip_ext.bench.models.closed import closed_build, closed_spec
from djip_ext.bench.models.input_spec import InputSpec, triple
from djip_ext.errors import DJIPError, first_line

from .classifier import Classifier


def is_family(name: str) -> bool:
    """Whether ``name`` names a network of another library."""
    return ":" in name


def input_spec(name: str, download: bool = False) -> InputSpec:
    """What the network ``name`` expects of its images, from its own configuration.

    Raises:
        DJIPError: an unknown name, a library that is not installed, a configuration that is missing
            or that needs what a lens cannot give (pixels in another range).
    """
    family, network = _find(name)
    return family.spec(network, download)


def build(
    name: str, num_classes: int, pretrained: bool = False, download: bool = False
) -> Classifier:
    """The network ``name`` on the benchmark's surface.

    Args:
        num_classes: of the data.
        pretrained: with its published weights, from the library's own cache or folder; else with
            random ones.
        download: let the library fetch what it lacks.

    Raises:
        DJIPError: as :func:`input_spec`, and for weights that are not there or are for another
            number of classes.
    """
    family, network = _find(name)
    return Classifier(family.build(network, num_classes, pretrained, download), name, num_classes)


class Family(NamedTuple):
    """How one library describes and builds its networks."""

    spec: Callable[[str, bool], InputSpec]
    build: Callable[[str, int, bool, bool], nn.Module]


def _find(name: str) -> tuple[Family, str]:
    family, _, network = name.partition(":")
    if family not in FAMILIES or not network:
        raise DJIPError(f"'{name}' is not FAMILY:NETWORK; the families are {', '.join(FAMILIES)}")
    return FAMILIES[family], network


def _library(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DJIPError(f"{name} is not installed; pip install 'djip_ext[{extra}]'") from error


def _check_classes(name: str, found: int, num_classes: int) -> None:
    if found != num_classes:
        raise DJIPError(
            f"the published weights of {name} know {found} classes, the data have {num_classes}; "
            "name weights for these data"
        )


def _no_weights(name: str, error: BaseException | str) -> DJIPError:
    reason = error if isinstance(error, str) else first_line(error)
    return DJIPError(
        f"no weights for {name} here ({reason}); name a file with BENCH.TEACHER_CHECKPOINT or add "
        "BENCH.DOWNLOAD True"
    )


# --- torchvision: NETWORK or NETWORK@WEIGHTS, for example resnet50@IMAGENET1K_V1 ---


def torchvision_weights(network: str) -> tuple[str, Any]:
    """The name in ``network[@WEIGHTS]`` and the member of torchvision's enum, else its default."""
    from torchvision import models

    network, _, version = network.partition("@")
    network = network.lower()  # as torchvision does
    see = "see torchvision.models.list_models(module=torchvision.models)"
    if network not in models.list_models(module=models):  # the rest are no classifiers in float32
        raise DJIPError(f"torchvision has no classifier '{network}'; {see}")
    try:
        return network, models.get_model_weights(network)[version or "DEFAULT"]
    except KeyError as error:
        raise DJIPError(f"torchvision has no weights '{version}' of {network}; {see}") from error


def torchvision_state(network: str, download: bool) -> dict[str, Tensor]:
    """torchvision's published weights, from the cache of torch's hub.

    With ``download`` they may be fetched there; the checksum is verified.
    """
    import torch

    _, weights = torchvision_weights(network)
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if not download and not cached.exists():
        raise _no_weights(f"torchvision:{network}", f"{weights} is not in {cached.parent}")
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=True, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise _no_weights(f"torchvision:{network}", error) from error
    return state


def _torchvision_spec(network: str, download: bool) -> InputSpec:
    _, weights = torchvision_weights(network)
    preset = weights.transforms()
    height, width = 2 * preset.crop_size if len(preset.crop_size) == 1 else preset.crop_size
    return InputSpec(
        triple(preset.mean),
        triple(preset.std),
        (height, width),
        preset.resize_size[0],
        preset.interpolation.value,
        f"torchvision's {weights}",
    )


def _torchvision_options(name: str, weights: Any) -> dict[str, Any]:
    """What torchvision's own builder sets for its weights, and what a file of weights needs too."""
    if name in ("googlenet", "inception_v3"):
        # they scale their images themselves; the second is the default, said to avoid a warning
        return {"transform_input": True, "init_weights": True}
    if name.startswith("vit_"):
        return {"image_size": weights.meta["min_size"][0]}
    return {}


def _torchvision_build(
    network: str, num_classes: int, pretrained: bool, download: bool
) -> nn.Module:
    from torchvision import models

    name, weights = torchvision_weights(network)
    if pretrained:
        _check_classes(f"torchvision:{network}", len(weights.meta["categories"]), num_classes)
    options = _torchvision_options(name, weights)
    model: nn.Module = models.get_model(name, num_classes=num_classes, **options)
    if pretrained:
        model.load_state_dict(torchvision_state(network, download))
    return model


# --- timm: any name of timm.list_models(pretrained=True), with or without its tag ---


def _timm_config(network: str) -> Any:
    """timm's description of the published weights that ``network[.TAG]`` names."""
    timm = _library("timm", "timm")
    try:
        config = timm.get_pretrained_cfg(network) if timm.is_model(network) else None
    except RuntimeError as error:  # an unknown tag
        name = network.partition(".")[0]
        raise DJIPError(
            f"timm has no '{network}' ({first_line(error)}); see timm.list_pretrained('{name}.*')"
        ) from error
    if config is None:
        raise DJIPError(f"timm has no network '{network}'; see timm.list_models('*{network[:6]}*')")
    return config


def _timm_spec(network: str, download: bool) -> InputSpec:
    timm = _library("timm", "timm")
    config = _timm_config(network)
    data = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
    _, height, width = data["input_size"]
    whole = data["crop_mode"] == "squash"
    resize = (height, width) if whole else math.floor(min(height, width) / data["crop_pct"])
    interpolation = "bilinear" if data["interpolation"] == "random" else data["interpolation"]
    return InputSpec(
        triple(data["mean"]),
        triple(data["std"]),
        (height, width),
        resize,
        interpolation,
        f"timm's pretrained_cfg, tag {config.tag or 'none'}",
    )


def _timm_build(network: str, num_classes: int, pretrained: bool, download: bool) -> nn.Module:
    timm = _library("timm", "timm")
    config = _timm_config(network)
    model: nn.Module
    if not pretrained:
        model = timm.create_model(network, num_classes=num_classes)
        return model
    _check_classes(f"timm:{network}", config.num_classes, num_classes)
    if not download:
        raise _no_weights(f"timm:{network}", "timm fetches them")
    try:
        model = timm.create_model(network, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise _no_weights(f"timm:{network}", error) from error
    return model


# --- Hugging Face: a folder with config.json and preprocessor_config.json, or a hub id ---

RESAMPLE = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}  # PIL's numbers


def _hf_processor(network: str, download: bool) -> dict[str, Any]:
    transformers = _library("transformers", "hf")
    try:
        processor: dict[str, Any] = transformers.AutoImageProcessor.from_pretrained(
            network, local_files_only=not download
        ).to_dict()
    except (OSError, ValueError, ImportError) as error:
        raise DJIPError(
            f"hf:{network} does not say how its images are prepared ({first_line(error)}); set "
            "BENCH.MEAN, BENCH.STD and BENCH.INPUT_SIZE yourself, or add BENCH.DOWNLOAD True for a "
            "hub id"
        ) from error
    return processor


def _check_pixels(network: str, processor: dict[str, Any]) -> None:
    """Refuse what the benchmark cannot prepare."""
    if processor.get("do_flip_channel_order"):
        raise DJIPError(
            f"hf:{network} takes blue before red (do_flip_channel_order), the benchmark gives red, "
            "green, blue; take another network"
        )
    factor = processor.get("rescale_factor", 1 / 255)
    if (
        not processor.get("do_rescale", True)
        or abs(factor * 255 - 1) > 1e-3
        or processor.get("rescale_offset")
    ):
        raise DJIPError(
            f"hf:{network} takes pixels in a range other than [0, 1]; set BENCH.MEAN, BENCH.STD "
            "and BENCH.INPUT_SIZE yourself"
        )


def _hf_spec(network: str, download: bool) -> InputSpec:
    processor = _hf_processor(network, download)
    _check_pixels(network, processor)
    mean: Sequence[float] = (0, 0, 0)
    std: Sequence[float] = (1, 1, 1)
    if processor.get("do_normalize"):  # to_dict leaves out a class's own None, which means no
        mean = processor["image_mean"]
        std = processor["image_std"]
    size, resize = _hf_size(network, processor)
    resample = processor.get("resample")
    interpolation = RESAMPLE[2 if resample is None else int(resample)]
    return InputSpec(
        triple(mean),
        triple(std),
        size,
        resize,
        interpolation,
        "its image processor",
    )


def _hf_size(
    network: str, processor: dict[str, Any]
) -> tuple[tuple[int, int], int | tuple[int, int]]:
    """Final (H, W), and the shorter side or the (H, W) before it."""

    def sides(name: str) -> dict[str, Any]:
        return {key: value for key, value in dict(processor.get(name) or {}).items() if value}

    size = sides("size")
    crop = sides("crop_size")
    if processor.get("do_center_crop") and crop:
        final = (crop["height"], crop["width"])
        return final, size.get("shortest_edge") or (size["height"], size["width"])
    if "height" in size:
        return (size["height"], size["width"]), (size["height"], size["width"])
    if "shortest_edge" in size:
        side = size["shortest_edge"]
        # ConvNeXt's rule: below 384 a central crop of crop_pct, from there on the whole image
        if processor.get("crop_pct") and side < 384:
            return (side, side), int(side / processor["crop_pct"])
        return (side, side), (side, side)
    raise DJIPError(
        f"hf:{network} has no fixed input size ({size}); set BENCH.MEAN, BENCH.STD and "
        "BENCH.INPUT_SIZE yourself"
    )


def _hf_build(network: str, num_classes: int, pretrained: bool, download: bool) -> nn.Module:
    transformers = _library("transformers", "hf")
    auto = transformers.AutoModelForImageClassification
    model: nn.Module
    try:
        config = transformers.AutoConfig.from_pretrained(network, local_files_only=not download)
        if not pretrained:
            config.num_labels = num_classes
            model = auto.from_config(config)
            return model.float()
        _check_classes(f"hf:{network}", config.num_labels, num_classes)
        model, report = auto.from_pretrained(
            network, local_files_only=not download, output_loading_info=True
        )
    except DJIPError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise _no_weights(f"hf:{network}", error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise DJIPError(
            f"the weights in hf:{network} lack {missing[0]} and {len(missing) - 1} more; is this a "
            "trained classifier?"
        )
    return model.float()


FAMILIES = {
    "closed": Family(closed_spec, closed_build),
    "torchvision": Family(_torchvision_spec, _torchvision_build),
    "timm": Family(_timm_spec, _timm_build),
    "hf": Family(_hf_spec, _hf_build),
}
"""``prefix -> Family``."""
