"""Reading the weights that people have: any usual layout, and one line for the rest.

Nothing here unpickles code: files of ``torch.save`` are read with ``weights_only``.
"""

import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from djip_ext.errors import DJIPError, first_line
from djip_ext.inputs.wrappers import plain_state

State = dict[str, Tensor]

# Where a checkpoint keeps the weights of its network, the usual names first.
_ENTRIES = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "params",
    "weights",
    "student",
    "teacher",
)
_AVERAGE = re.compile(r"(^|[_.])(ema|swa|averaged?|shadow)([_.]|$)")
_COUNTED = ("total_ops", "total_params")  # buffers that the counters of operations leave behind
_CURE = "fetch or train it again"


def split_entry(path: str | Path) -> tuple[Path, str]:
    """``FILE#ENTRY`` -> the file, and which of its states is meant; ``FILE`` -> the file, ""."""
    file, mark, entry = str(path).rpartition("#")
    if not mark or Path(path).is_file():
        return Path(path), ""
    return Path(file), entry


def read_state(path: str | Path) -> State:
    """The state of the network in a checkpoint, without the prefixes of wrappers.

    A state may stand alone or under one of the usual names. Where an average of the weights (EMA)
    lies beside it, one line on stderr names it; ``FILE#ENTRY`` chooses an entry.

    Raises:
        DJIPError: the file is missing, damaged, or holds no state or several.
    """
    file, entry, states = _open(path)
    return _trimmed(states[_choose(file, list(states), entry)])


def state_for(network: nn.Module, path: str | Path) -> State:
    """As :func:`read_state`, under the names that ``network`` has.

    A trainer's module around the network puts a word such as ``model.`` before its names; the one
    under which all of them are found is taken off, and what lies beside it is left out.

    Raises:
        DJIPError: also when the checkpoint is of another network; the message names what differs.
    """
    file, entry, states = _open(path)
    names_a_state = entry in states or (entry == "ema" and any(map(_AVERAGE.search, states)))
    state = _trimmed(states[_choose(file, list(states), entry if names_a_state else "")])
    shapes = {
        name: value.shape
        for name, value in network.state_dict().items()
        if isinstance(value, Tensor)
    }
    needed = {name for name in shapes if not name.endswith("num_batches_tracked")}
    fitting = [
        prefix
        for prefix in _prefixes(state)
        if needed and all(prefix + name in state for name in needed)
    ]
    asked = "" if names_a_state else entry  # FILE#student may name a prefix within the state
    if asked:
        names = [prefix.rstrip(".") for prefix in fitting]
        prefix = fitting[names.index(_choose(file, names, asked))]
    elif "" in fitting:
        prefix = ""
    elif fitting:
        names = [prefix.rstrip(".") for prefix in fitting]
        prefix = fitting[names.index(_choose(file, names, ""))]
    else:
        prefix = _nearest_prefix(state, needed)
    found = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    _check(file, network, shapes, needed, found)
    return found


def variants(state: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The state as it is, then what lies under each first word of its names, without that word."""
    yield dict(state)
    for word in sorted({name.split(".")[0] for name in state if "." in name}):
        start = len(word) + 1
        yield {name[start:]: v for name, v in state.items() if name.startswith(f"{word}.")}


def _open(path: str | Path) -> tuple[Path, str, dict[str, State]]:
    """The file, the entry that is asked for, and every state in the file by its name."""
    file, entry = split_entry(path)
    if not file.is_file():
        raise DJIPError(
            f"there is no checkpoint {file}; train one with DISTILLER.TYPE NONE or name one with "
            "BENCH.TEACHER_CHECKPOINT"
        )
    states = dict(_states_in(_read(file)))
    if not states:
        raise DJIPError(
            f"{file} holds no weights of a network; name a file of a state dict or of "
            "{'state_dict': ...}"
        )
    return file, entry, states


def _trimmed(state: State) -> State:
    return {key: v for key, v in plain_state(state).items() if not key.endswith(_COUNTED)}


def _read(file: Path) -> Any:
    """What the file holds; its kind is told by its first bytes, not by its name."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(512)
        if file.suffix == ".safetensors" or head[8:10] == b'{"':
            return load_file(file)
        _check_kind(file, head)
        with _known_types():
            return torch.load(file, map_location="cpu", weights_only=True)
    except DJIPError:
        raise
    except Exception as error:  # torch.load and safetensors raise a dozen types for damaged files
        raise DJIPError(_why_unreadable(file, error)) from error


def _check_kind(file: Path, head: bytes) -> None:
    """Raise DJIPError for a file that is recognised as something other than a checkpoint."""
    start = head.lstrip().lower()
    if not head:
        raise DJIPError(f"{file} is empty; {_CURE}")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DJIPError(
            f"{file} is a web page, not a checkpoint: its download failed; fetch it again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DJIPError(f"{file} is a pointer of Git LFS, not the file itself; run git lfs pull")
    if head.startswith(b"\x89HDF"):
        raise DJIPError(f"{file} is an HDF5 file (Keras?); export the weights from PyTorch")
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise DJIPError(f"{file} is compressed; unpack it and name the checkpoint inside")
    if head.startswith(b"{"):
        raise DJIPError(
            f"{file} is a JSON file, an index of shards perhaps; name the file of weights"
        )
    if head[257:262] == b"ustar":
        raise DJIPError(f"{file} is a tar archive; unpack it and name the checkpoint inside")
    if head.startswith(b"PK"):
        try:
            names = zipfile.ZipFile(file).namelist()
        except zipfile.BadZipFile as error:
            raise DJIPError(f"{file} is cut off or damaged; {_CURE}") from error
        inside = {name.rpartition("/")[2] for name in names}
        if "constants.pkl" in inside:
            raise DJIPError(
                f"{file} is a TorchScript archive; "
                "torch.jit.load it and torch.save its state_dict()"
            )
        if "data.pkl" not in inside:
            holds = names[0] if names else "nothing"
            raise DJIPError(
                f"{file} is a zip file that holds {holds}, not a checkpoint; unpack it and name "
                "the checkpoint inside"
            )


def _why_unreadable(file: Path, error: Exception) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours its advice
    match = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class) ([\w.]+)", text)
    if match is None:
        return f"{file} is not a readable checkpoint ({_first(text, error)}); {_CURE}"
    found = match[1] or match[2]
    load = f"torch.load({str(file)!r}, weights_only=False)"
    if _is_a_module(file, found):
        return (
            f"{file} is a whole pickled module ({found}), and reading that would run its code; if "
            f'you trust it, convert it once: torch.save({load}.state_dict(), "weights.pth")'
        )
    return (
        f"{file} holds a pickled {found} beside its weights, and reading that would run its code; "
        f'if you trust it, convert it once: torch.save({load}["state_dict"], "weights.pth")'
    )


def _first(text: str, error: Exception) -> str:
    return text.strip().split("\n")[0][:200] or first_line(error)


def _is_a_module(file: Path, found: str) -> bool:
    """Whether the class ``found`` is that of the file's outermost object."""
    try:
        if not zipfile.is_zipfile(file):  # torch's older format
            return not found.startswith(("argparse", "numpy", "pathlib"))
        with zipfile.ZipFile(file) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            head = archive.read(name)[2:500]
    except (OSError, StopIteration, zipfile.BadZipFile):
        return False
    first = b".".join(head[1:].split(b"\n")[:2])
    return head[:1] == b"c" and first == found.encode()


def _known_types() -> AbstractContextManager[Any]:
    """Let torch read what trainers put beside the weights and cannot run code: options, numbers."""
    import argparse
    import pathlib

    import numpy as np

    number, array = np.float64(0), np.zeros(1)
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_, np.uint8)
    allowed = [
        argparse.Namespace,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        number.__reduce__()[0],
        array.__reduce__()[0],
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]
    context = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if context is None else context(allowed)


def _is_state(content: Any) -> bool:
    """Whether it maps names to tensors (and perhaps the extra state of a module)."""
    if not isinstance(content, Mapping) or not content:
        return False
    tensors = sum(isinstance(value, Tensor) for value in content.values())
    nested = any(isinstance(value, Mapping) for value in content.values())
    return tensors > 0 and not nested and all(isinstance(key, str) for key in content)


def _states_in(content: Any, name: str = "") -> Iterator[tuple[str, State]]:
    """Every state in a checkpoint, with the path of keys to it: ``state_dict``, ``model.ema``."""
    if _is_state(content):
        yield name, {key: v for key, v in content.items() if isinstance(v, Tensor)}
    elif isinstance(content, nn.Module):
        yield name, dict(content.state_dict())
    elif isinstance(content, Mapping) and name.count(".") < 2 and "param_groups" not in content:
        for key, value in content.items():
            if isinstance(key, str):
                yield from _states_in(value, f"{name}.{key}" if name else key)


def _choose(file: Path, names: list[str], entry: str) -> str:
    """The entry that was asked for, else the only one, the most usual one, the one not averaged."""
    if entry:
        asked = [name for name in names if name == entry]
        asked = asked or [name for name in names if _AVERAGE.search(name)] * (entry == "ema")
        if not asked:
            raise DJIPError(f"{file} has no {entry}; it holds {', '.join(names)}")
        return asked[0]
    plain = [name for name in names if not _AVERAGE.search(name)]
    averages = [name for name in names if name not in plain]
    usual = [name for known in _ENTRIES for name in plain if name.split(".")[0] == known]
    if len(plain) > 1 and len(set(usual[:2]) & {"student", "teacher"}) == 2:
        usual = []
    chosen = plain if len(plain) == 1 else usual
    if not plain:
        chosen = averages if len(averages) == 1 else []
    if not chosen:
        raise DJIPError(
            f"{file} holds several networks ({', '.join(names)}); name one as {file}#{names[0]}"
        )
    if plain and averages:
        print(
            f"djip: {file} holds an average of the weights (EMA) beside them; taken: {chosen[0]}; "
            f"name {file}#{averages[0]} for the average",
            file=sys.stderr,
            flush=True,
        )
    return chosen[0]


def _prefixes(state: Mapping[str, Any]) -> list[str]:
    """Every way in which names of the state begin, up to a dot; "" first, then the shorter ones."""
    found = {""}
    for name in state:
        parts = name.split(".")[:-1]
        found.update(".".join(parts[:count]) + "." for count in range(1, min(3, len(parts)) + 1))
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _nearest_prefix(state: State, needed: set[str]) -> str:
    """The prefix under which most of the needed names are found: what is missing is then named."""
    return max(_prefixes(state), key=lambda prefix: sum(prefix + name in state for name in needed))


def _check(
    file: Path, network: nn.Module, shapes: dict[str, Any], needed: set[str], found: State
) -> None:
    """Raise DJIPError unless all that the network needs is there, in its shape, and no more."""
    missing = [name for name in shapes if name in needed and name not in found]
    strange = [name for name in found if name not in shapes]
    unequal = [
        f"size mismatch, {name} is {_size(value)}, the network's {_size_of(shapes[name])}"
        for name, value in found.items()
        if name in shapes and value.shape != shapes[name]
    ]
    reasons = unequal[:1]
    if strange:
        reasons.insert(0, f"it holds {_some(strange)}, which the network has not")
    if missing:
        reasons.insert(0, f"it lacks {_some(missing)}")
    if reasons:
        name = getattr(network, "name", type(network).__name__)
        raise DJIPError(
            f"{file} does not fit {name}: {'; '.join(reasons)}; name the architecture and the data "
            "set it was trained for"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return names[0] + more


def _size(value: Tensor) -> str:
    return _size_of(value.shape)


def _size_of(shape: Any) -> str:
    return "x".join(map(str, shape)) or "a number"
