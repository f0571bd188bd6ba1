"""Reading trained weights: files of a network's state, and their strict loading."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from djip_ext.errors import DJIPError, first_line


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state of a network, its numbers as float32.

    The file is a ``.safetensors`` or a ``torch.save``d ``{"model": state_dict}``.  Pickles are read
    with ``weights_only``: a checkpoint cannot run code.

    Raises:
        DJIPError: the file is missing or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise DJIPError(
            f"there is no checkpoint {path}; train one with DISTILLER.TYPE NONE or name one with "
            "BENCH.TEACHER_CHECKPOINT"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("model", state.get("state_dict", state))
        return {
            key: value.float() if value.is_floating_point() else value
            for key, value in state.items()
        }
    except Exception as error:  # torch.load raises a dozen types for damaged files
        raise DJIPError(
            f"{path} is not a readable checkpoint ({first_line(error)}); fetch or train it again"
        ) from error


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a checkpoint (:func:`read_weights`) into ``model``, strictly.

    Raises:
        DJIPError: the file is missing, damaged, of another architecture or for another number of
            classes.
    """
    try:
        model.load_state_dict(read_weights(path))
    except RuntimeError as error:
        name = getattr(model, "name", type(model).__name__)
        detail = str(error).splitlines()[-1].strip()
        raise DJIPError(
            f"{path} does not fit {name}: {detail}; name the architecture and the data set it was "
            "trained for"
        ) from error
    return model
