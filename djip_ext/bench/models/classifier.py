"""A network of another library on the surface of the benchmark."""

from typing import Any, cast

from torch import Tensor, nn

from djip_ext.errors import DJIPError, first_line
from djip_ext.utils.networks import logits_of

from .features import Features


class Classifier(nn.Module):
    """A network of another library that returns ``(logits, features)``, as the benchmark's do.

    ``features`` holds ``pooled_feat``, the input of the network's last linear layer; asking for
    maps is an error.  The state dict is the network's own, so checkpoints and lenses fit the bare
    network too.

    Shape: normalised images (B, 3, H, W) -> logits (B, C), features.
    """

    def __init__(self, network: nn.Module, name: str, num_classes: int) -> None:
        super().__init__()
        self.network = network
        self.name = name
        heads = [
            key
            for key, module in network.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == num_classes
        ]
        self.head = heads[-1] if heads else None

    def forward(self, x: Tensor) -> tuple[Tensor, Features]:
        logits, features = self._logits_and_pooled(x)
        return logits, cast(Features, features)

    def _logits_and_pooled(self, x: Tensor) -> "tuple[Tensor, _PooledOnly]":
        if self.head is None:
            return self._logits(x), _PooledOnly(self.name)
        head = self.network.get_submodule(self.head)
        seen: list[Tensor] = []  # stays empty where the weights are used without such a call
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
        try:
            logits = self._logits(x)
        finally:
            hook.remove()
        kept = {"pooled_feat": seen[-1]} if seen and seen[-1].dim() == 2 else {}
        return logits, _PooledOnly(self.name, kept)

    def _logits(self, x: Tensor) -> Tensor:
        try:
            return logits_of(self.network(x))
        except DJIPError:  # a ValueError that says what is wrong already
            raise
        except (AssertionError, ValueError) as error:  # how timm and transformers refuse a size
            size = "x".join(map(str, x.shape[2:]))
            reason = f"{self.name} does not take images of {size} ({first_line(error)})"
            raise DJIPError(f"{reason}; see INPUT_SIZE of BENCH and of the method") from error

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.network.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            state_dict[f"{prefix}network.{key[len(prefix) :]}"] = state_dict.pop(key)


class _PooledOnly(dict[str, Tensor]):
    def __init__(self, name: str, kept: dict[str, Tensor] | None = None) -> None:
        super().__init__(kept or {})
        self.name = name

    def __missing__(self, key: str) -> Any:
        has = " and ".join(["logits", *self])
        raise DJIPError(
            f"this method needs {key}, {self.name} gives {has}; take KD, DKD, DIST, WTTM, LSKD or "
            "a network of the benchmark"
        )
