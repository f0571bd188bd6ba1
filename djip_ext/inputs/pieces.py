"""Noticing an image that enters a part of a network on its own, past the network's forward.

A network that is run piece by piece, as ``nn.Sequential(net.conv1, net.bn1)`` or ``net.vit(x)``,
is reached by no wrapper around the whole. Hooks on the parts that images enter notice it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.inputs.wrappers import unwrap

PREPARED = "_djip_prepared"  # an attribute of tensors that may enter a part on their own
_DEPTH = 2  # of modules below the network that are watched; deeper ones only where they take images


class Watch:
    """Whether the network itself is running; its hooks and those of its parts share one.

    A list and not a number, since its changes are atomic: the replicas of a DataParallel network
    share it between threads.
    """

    def __init__(self) -> None:
        self.running: list[None] = []

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let parts run on images here, as if the network itself ran."""
        self.running.append(None)
        try:
            yield
        finally:
            if self.running:
                self.running.pop()


class _Copied:
    """What a hook becomes in a copy of the network, which need not stand behind a lens."""

    def __call__(self, module: nn.Module, *what: Any) -> None:
        return None


class _Hook:
    """Not copied or pickled with the network: whoever wraps the copy watches it anew."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _Copied, ()


class _Enter(_Hook):
    """Called before the network runs."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling():
            self.watch.running.append(None)


class _Leave(_Hook):
    """Called after the network ran, also when it raised."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling() and self.watch.running:
            self.watch.running.pop()


class _Gate(_Hook):
    """Called before a part runs: refuses an image that comes from outside."""

    def __init__(self, watch: Watch, name: str) -> None:
        self.watch = watch
        self.name = name

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling() or self.watch.running:
            return
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] == 3:
                if is_prepared(value):
                    continue
                raise DJIPError(
                    f"an image enters the teacher's {self.name} on its own, past the lens; call "
                    "the teacher itself, or run its parts on teacher.apply_lens(images)"
                )


def watch(network: nn.Module) -> Watch:
    """Raise DJIPError whenever an image (B, 3, H, W) enters a part of ``network`` from outside.

    The network as a whole may be called by anybody; so may its parts, on anything that is no image
    or that :func:`prepared` has marked. Watching it again watches the parts that are new. What
    torch.compile and torch.export trace is not watched, nor is TorchScript.
    """
    network = unwrap(network)
    if isinstance(network, torch.jit.ScriptModule):
        return Watch()
    for module in network.modules():
        _drop_copied(module)
    entered = [hook for hook in network._forward_pre_hooks.values() if isinstance(hook, _Enter)]
    shared = entered[0].watch if entered else Watch()
    for name, part in _parts(network):
        if not any(isinstance(hook, _Gate) for hook in part._forward_pre_hooks.values()):
            part.register_forward_pre_hook(_Gate(shared, name), with_kwargs=True)
    if not entered:
        network.register_forward_pre_hook(_Enter(shared), prepend=True)
        network.register_forward_hook(_Leave(shared), always_call=True)
    return shared


def prepared(image: Tensor) -> Tensor:
    """Mark an image as one that may enter a part of a watched network; returns it."""
    setattr(image, PREPARED, True)
    return image


def is_prepared(image: Any) -> bool:
    """Whether :func:`prepared` marked it."""
    return getattr(image, PREPARED, False) is True


def is_ours(hook: Any) -> bool:
    """Whether a hook is one of those that :func:`watch` sets."""
    return isinstance(hook, (_Hook, _Copied))


def _drop_copied(module: nn.Module) -> None:
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Copied)]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)


def _parts(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, part in network.named_modules():
        shallow = name.count(".") < _DEPTH
        if name and (shallow or _takes_three_channels(part)):
            yield name, part


def _takes_three_channels(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    groups = getattr(module, "groups", 1)
    return weight is not None and weight.dim() == 4 and weight.shape[1] * groups == 3
