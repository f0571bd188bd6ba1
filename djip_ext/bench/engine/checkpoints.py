"""Reading trained weights into the benchmark's networks, as float32 and strictly."""

from pathlib import Path

from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.inputs.checkpoints import read_state, state_for


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state of a network in a checkpoint, see :func:`read_state`, its numbers as float32.

    Raises:
        DJIPError: the file is missing or damaged, or holds several networks.
    """
    return _as_float32(read_state(path))


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint, see :func:`state_for`, into ``model``, strictly.

    Raises:
        DJIPError: the file is missing, damaged, of another architecture or number of classes.
    """
    try:
        model.load_state_dict(_as_float32(state_for(model, path)))
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        name = getattr(model, "name", type(model).__name__)
        raise DJIPError(
            f"{path} does not fit {name}: {detail}; name the architecture it was trained for"
        ) from error
    return model


def _as_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: v.float() if v.is_floating_point() else v for key, v in state.items()}
