"""Seeing a network through what was put around it: torch.compile, DataParallel, FSDP, averages.

None of these changes what the network computes, but each puts a word before the names of its state.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Words that only wrappers use; they may stand anywhere, since a part can be wrapped alone.
_WORDS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_ANYWHERE = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(_WORDS)})\.")

# Classes that hold the network as ``module``, by name so that none needs to be imported.
_HOLDERS = {
    "AveragedModel",
    "DataParallel",
    "DeepSpeedEngine",
    "DistributedDataParallel",
    "FullyShardedDataParallel",
    "ModelEmaV2",
    "ModelEmaV3",
    "_FabricModule",
}
_COUNTER = "n_averaged"  # of AveragedModel, beside the network's own state


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside all wrappers; itself when it has none."""
    while True:
        inner = _inside(network)
        if inner is None:
            return network
        network = inner


def plain_state(network: nn.Module | Mapping[str, Any]) -> dict[str, Any]:
    """The state of a network, or a saved state, under the names that the plain network has.

    A network's wrappers are known by their classes, at any depth. Of a saved state, ``module.``
    goes when every name begins with it.
    """
    if not isinstance(network, nn.Module):
        return _plain_names(network)
    holders = [f"{name}." if name else "" for name, m in network.named_modules() if _is_holder(m)]
    counters = {holder + _COUNTER for holder in holders}
    insides = [holder + "module." for holder in reversed(holders)]  # the innermost first
    state = {}
    for key, value in network.state_dict().items():
        name = key
        for inside in insides:
            if key.startswith(inside):
                start = len(inside) - len("module.")
                name = name[:start] + name[len(inside) :]
        if key not in counters:
            state[name] = value
    return _without_words(state)


def _plain_names(state: Mapping[str, Any]) -> dict[str, Any]:
    plain = _without_words(state)
    while True:
        names = [name for name in plain if name != _COUNTER]
        if not names or not all(name.startswith("module.") for name in names):
            return plain
        plain = {name[len("module.") :]: plain[name] for name in names}


def _without_words(state: Mapping[str, Any]) -> dict[str, Any]:
    return {_ANYWHERE.sub("", name): value for name, value in state.items()}


def _is_holder(module: nn.Module) -> bool:
    named = any(kind.__name__ in _HOLDERS for kind in type(module).__mro__)
    return named and isinstance(getattr(module, "module", None), nn.Module)


def _inside(network: nn.Module) -> nn.Module | None:
    for word in _WORDS:
        # TorchScript's dictionary of modules has no get()
        if word in network._modules and isinstance(inner := network._modules[word], nn.Module):
            return inner
    inner = getattr(network, "module", None) if _is_holder(network) else None
    return inner if isinstance(inner, nn.Module) else None


def precision_of(network: nn.Module) -> str:
    """The dtype of a network's first floating-point weight, as torch prints it: ``float16``."""
    for value in network.state_dict().values():
        if isinstance(value, Tensor) and value.is_floating_point():
            return str(value.dtype).removeprefix("torch.")
    return "float32"
