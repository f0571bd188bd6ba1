"""What is looked at once, when a teacher behind a lens is called for the first time."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.inputs.closed_teacher import only_answers
from djip_ext.inputs.pieces import is_ours
from djip_ext.utils.distributed import rank
from djip_ext.utils.networks import logits_of
from djip_ext.utils.precision import in_dtype_of

FEW = 8  # images that are shown without the lens
EQUAL = 1e-5  # of the largest logit: below it two answers differ by rounding alone


def check_not_traced(args: object) -> None:
    """Raise DJIPError when torch.fx traces the call: it then stands for all arguments."""
    if isinstance(args, torch.fx.Proxy):
        raise DJIPError(
            "torch.fx (create_feature_extractor) cannot follow the lens; extract from the plain "
            "network, then wrap: DJIPTeacher(create_feature_extractor(network, nodes), lens, mean, "
            "std, any_teacher=True)"
        )


def check_image(image: Any) -> None:
    """Raise DJIPError unless ``image`` is a tensor of floats (B, 3, H, W)."""
    if not isinstance(image, Tensor):
        raise DJIPError(
            f"the images are a {type(image).__name__}, not a tensor; a teacher behind a lens takes "
            "normalised images (B, 3, H, W)"
        )
    if not image.is_floating_point() or image.dim() != 4 or image.shape[1] != 3:
        kind = str(image.dtype).removeprefix("torch.")
        raise DJIPError(
            f"the images are {kind} {tuple(image.shape)}; a teacher behind a lens takes normalised "
            "floats (B, 3, H, W)"
        )


def answer_without_lens(
    network: nn.Module, image: Tensor, args: Iterable[Any], kwargs: dict[str, Any], name: str | None
) -> Tensor | None:
    """The logits of ``network`` for the first :data:`FEW` images as they are.

    ``None`` where asking would be paid for, of a closed teacher, or would leave traces, in hooks of
    others or in statistics, or where there are no logits. The random state stays what it was.

    Args:
        args, kwargs: what else the network takes; tensors with an entry per image are cut too.
        name: the keyword of the image; ``None``: it comes first.
    """
    if only_answers(network):
        return None
    hooks = (
        hook
        for module in network.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    )
    if any(module.training for module in network.modules()) or not all(map(is_ours, hooks)):
        return None

    def cut(value: Any) -> Any:
        per_image = isinstance(value, Tensor) and value.dim() and len(value) == len(image)
        return value[:FEW] if per_image else value

    few = in_dtype_of(network, image[:FEW])
    others = {key: cut(value) for key, value in kwargs.items()}
    places = [few, *map(cut, args)] if name is None else []
    if name is not None:
        others[name] = few
    devices = [image.device] if image.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            return logits_of(network(*places, **others)).detach().float()
    except Exception:  # the real call will say what is wrong, if anything is
        return None


def say_if_unchanged(plain: Tensor, output: Any) -> None:
    """Say in one line on stderr that the lens changes nothing, if ``output`` is as ``plain``."""
    try:
        seen = logits_of(output).detach().float()[: len(plain)]
    except DJIPError:
        return
    if seen.shape != plain.shape or not len(plain):
        return
    largest = plain.abs().max().clamp_min(1e-12)
    if bool((seen - plain).abs().max() <= EQUAL * largest) and rank() == 0:
        print(
            "djip: warning: the lens changes nothing, the teacher answers alike without it; does "
            "it look at its images, or answer from memory? Then apply the lens where they are made",
            file=sys.stderr,
            flush=True,
        )
