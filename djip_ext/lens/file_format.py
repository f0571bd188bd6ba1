"""The layout of a lens file: one safetensors file of about a kilobyte, of tensors and dictionaries.

The tensor ``q`` (2, 8, 8) holds the steps; the metadata entry ``djip`` holds a JSON object with
``format`` (the version of this layout), ``lens`` (the codec's settings), ``about`` (normalisation,
teacher, data, CMI and accuracy, the fit) and ``digest`` (SHA-256 over the steps and all of the
header but itself; files written before it existed have none).
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from djip_ext.errors import DJIPError
from djip_ext.utils.files import atomic_write

FORMAT = 1
SETTINGS = ("alpha", "kappa", "max_index", "window", "hard")
STEPS = (1e-5, 255.0)  # the range of a step, JPEG-DL's

# Settings that a lens no longer has.  Files and digests go on naming them with the one value that
# they had, so that a lens keeps its id and older versions can read it.
FORMER_SETTINGS = {"clamp": False}


@dataclass(frozen=True)
class LensFile:
    """What a lens file holds.

    Attributes:
        q: the steps, (2, 8, 8).
        settings: of the codec, by :data:`SETTINGS`.
        about: what the lens was fitted for.
    """

    q: Tensor
    settings: dict[str, Any]
    about: dict[str, Any]


def write_lens_file(
    path: str | os.PathLike[str], q: Tensor, settings: dict[str, Any], about: dict[str, Any]
) -> Path:
    """Write steps, settings and metadata atomically.

    Raises:
        DJIPError: the place cannot be written, a step lies beyond :data:`STEPS`, or ``about`` holds
            what JSON cannot.
    """
    q = _plain(q)
    _check_steps(q)
    header: dict[str, Any] = {"format": FORMAT, "lens": FORMER_SETTINGS | settings, "about": about}
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise DJIPError(
            f"the metadata of the lens are no JSON ({error}); keep strings, numbers, lists and "
            "dictionaries in them"
        ) from error
    header["digest"] = _file_digest(q, text)
    # Bytes first: a full disk then is a plain OSError.
    content = save({"q": q}, metadata={"djip": json.dumps(header)})

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    return atomic_write(path, write)


def read_lens_file(path: str | os.PathLike[str]) -> LensFile:
    """Read what :func:`write_lens_file` wrote.

    Raises:
        DJIPError: the file is missing, damaged, not a lens, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise DJIPError(f"there is no lens {path}; fit one with `djip fit` or check the path")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("djip")
            q = file.get_tensor("q") if "q" in list(file.keys()) else None
    except (SafetensorError, OSError) as error:
        raise DJIPError(
            f"{path} is damaged or not a safetensors file ({error}); fit the lens again"
        ) from error
    if text is None or q is None:
        raise DJIPError(
            f"{path} is a safetensors file but not a lens; lenses are written by `djip fit` or "
            "lens.save(path)"
        )
    try:
        header = json.loads(text)
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise DJIPError(f"{path} has a damaged header ({error!r}); fit the lens again") from error
    if version > FORMAT:
        raise DJIPError(
            f"{path} has lens format {version}, this djip_ext reads up to {FORMAT}; "
            "upgrade djip_ext"
        )
    known = header.pop("digest", None)
    if known is not None and known != _file_digest(q, json.dumps(header)):
        raise DJIPError(
            f"{path} is damaged: its tables or its header are not those that were written; copy it "
            "again or fit the lens again"
        )
    try:
        return LensFile(q, parse_settings(header["lens"]), dict(header["about"]))
    except (ValueError, KeyError, TypeError) as error:
        raise not_a_lens(path, error) from error


def parse_settings(content: dict[str, Any]) -> dict[str, Any]:
    """The settings by :data:`SETTINGS` in ``content``, which older versions may have written.

    Raises:
        DJIPError: a setting that no longer exists has another value than the one it keeps.
        KeyError: a setting is missing.
    """
    for name, kept in FORMER_SETTINGS.items():
        if name in content and content[name] != kept:
            raise DJIPError(
                f"{name} is {content[name]}, which a lens no longer has; use djip_ext 0.1.0"
            )
    return {name: content[name] for name in SETTINGS}


def not_a_lens(path: Path, error: Exception) -> DJIPError:
    """The error for a file whose header does not describe a lens, because of ``error``."""
    reason = str(error) if isinstance(error, DJIPError) else repr(error)
    return DJIPError(f"{path} does not describe a lens: {reason}; fit the lens again")


def digest(q: Tensor, settings: dict[str, Any]) -> bytes:
    """SHA-256 over steps and settings."""
    text = json.dumps(FORMER_SETTINGS | settings, sort_keys=True)
    return hashlib.sha256(_plain(q).numpy().tobytes() + text.encode()).digest()


def _check_steps(q: Tensor) -> None:
    """Raise DJIPError for steps that a lens read from the file would not have."""
    low, high = STEPS
    if torch.equal(q, q.clamp(low, high)):  # NaN equals nothing
        return
    raise DJIPError(
        f"the steps of the lens lie in {q.min().item():.8g} .. {q.max().item():.8g}, but a lens "
        f"file holds [{low:g}, {high:g}]; after each change, under torch.no_grad(), call "
        f"lens.q.clamp_({low:g}, {high:g})"
    )


def _file_digest(q: Tensor, header: str) -> str:
    """SHA-256 over the steps and the header of a lens file, the header without its digest."""
    content = str(q.dtype).encode() + q.contiguous().numpy().tobytes() + header.encode()
    return hashlib.sha256(content).hexdigest()


def _plain(q: Tensor) -> Tensor:
    return q.detach().to("cpu", torch.float32).contiguous()
