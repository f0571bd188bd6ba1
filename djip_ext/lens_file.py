"""A lens on disk: one safetensors file of about a kilobyte, tables plus everything needed to trust them.

The tensor ``q`` (2, 8, 8) holds the steps; the metadata entry ``djip`` holds a JSON object with ``format`` (the version of
this layout), ``lens`` (the codec's settings) and ``about`` (normalisation, teacher, data, CMI and accuracy, the fit).
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .errors import DJIPError
from .files import atomic_write
from .lens import JPEGLens

FORMAT = 1
SETTINGS = ("alpha", "kappa", "max_index", "window", "hard", "clamp")


def settings_of(lens: JPEGLens) -> dict[str, Any]:
    """All of ``lens`` but its steps and metadata, by :data:`SETTINGS`."""
    return {name: getattr(lens, name) for name in SETTINGS}


def save_lens(lens: JPEGLens, path: str | os.PathLike[str]) -> Path:
    """Write ``lens`` and its ``metadata`` atomically; raises DJIPError when the place cannot be written."""
    header = {"format": FORMAT, "lens": settings_of(lens), "about": lens.metadata}
    tensors = {"q": lens.q.detach().cpu().float().contiguous()}
    content = save(tensors, metadata={"djip": json.dumps(header)})  # bytes: a full disk then is a plain OSError
    return atomic_write(path, lambda p: p.write_bytes(content))


def load_lens(path: str | os.PathLike[str]) -> JPEGLens:
    """Read a lens; its ``metadata`` says what it was fitted for.

    Raises:
        DJIPError: the file is missing, damaged, not a lens, or of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise DJIPError(f"there is no lens {path}; fit one with `djip fit` or check the path")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("djip")
            q = file.get_tensor("q") if "q" in file.keys() else None
    except (SafetensorError, OSError) as error:
        raise DJIPError(f"{path} is damaged or not a safetensors file ({error}); fit the lens again") from error
    if text is None or q is None:
        raise DJIPError(f"{path} is a safetensors file but not a lens; lenses are written by `djip fit` or lens.save(path)")
    try:
        header = json.loads(text)
        version = int(header["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise DJIPError(f"{path} has a damaged header ({error!r}); fit the lens again") from error
    if version > FORMAT:
        raise DJIPError(f"{path} has lens format {version}, this djip_ext reads up to {FORMAT}; upgrade djip_ext")
    try:
        lens = JPEGLens(q, **{name: header["lens"][name] for name in SETTINGS})
        lens.metadata = dict(header["about"])
    except (ValueError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, DJIPError) else repr(error)
        raise DJIPError(f"{path} does not describe a lens: {reason}; fit the lens again") from error
    return lens


def lens_id(lens: JPEGLens) -> str:
    """Eight hex digits that change whenever the tables or the settings do."""
    return lens_digest(lens).hex()[:8]


def softening(control: str) -> float | None:
    """What the plain teacher's logits are divided by: 1 for ``"identity"``, K for ``"temperature:K"``, None for anything else, a path say.

    Raises:
        DJIPError: a K that is not a positive number.
    """
    kind, _, value = control.partition(":")
    if control == "identity":
        return 1.0
    if kind != "temperature" or "/" in value or value.endswith(".safetensors"):
        return None
    try:
        by = float(value)
    except ValueError:
        by = math.nan
    if not 0 < by < math.inf:
        raise DJIPError(f"'{control}': temperature:K divides the teacher's logits by K, a positive number, for example temperature:2")
    return by


def read_lens(name: str | os.PathLike[str]) -> JPEGLens | str:
    """The lens at a path; ``"identity"`` and ``"temperature:K"`` as they are."""
    return str(name) if softening(str(name)) is not None else load_lens(name)


def lens_name(lens: JPEGLens | str) -> str:
    """What runs with ``lens`` are called after it: its :func:`lens_id`, ``"identity"`` or ``"temperature-K"``."""
    if isinstance(lens, JPEGLens):
        return lens_id(lens)
    return lens if lens == "identity" else f"temperature-{softening(lens):g}"


def control_digest(control: str) -> bytes:
    """What :func:`lens_digest` is to a lens: zeros for ``"identity"``."""
    return bytes(32) if control == "identity" else hashlib.sha256(lens_name(control).encode()).digest()


def lens_digest(lens: JPEGLens) -> bytes:
    """SHA-256 over tables and settings."""
    settings = json.dumps(settings_of(lens), sort_keys=True)
    return hashlib.sha256(lens.q.detach().cpu().float().numpy().tobytes() + settings.encode()).digest()


def weight_hash(network: nn.Module | Mapping[str, Any]) -> str:
    """Sixteen hex digits over the names and values of a network's state: how a lens knows its teacher."""
    digest = hashlib.sha256()
    for name, value in sorted((network.state_dict() if isinstance(network, nn.Module) else network).items()):
        if not isinstance(value, torch.Tensor):
            continue
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_belongs(lens: JPEGLens, network: nn.Module, mean: Any, std: Any) -> None:
    """Raise DJIPError when ``lens`` was fitted for other weights or another normalisation; silent when it cannot know."""
    about = lens.metadata
    for name, value in (("mean", mean), ("std", std)):
        fitted = about.get(name)
        if fitted is not None and max(abs(float(a) - float(b)) for a, b in zip(fitted, value)) > 1e-4:
            raise DJIPError(f"the lens was fitted with {name} {tuple(fitted)}, but the images are normalised with {tuple(value)}; use the same")
    known = about.get("teacher_hash")
    if known and known != (found := weight_hash(network)):
        raise DJIPError(
            f"the lens was fitted for {about.get('teacher', 'a teacher')} with weights {known}, this teacher has {found}; "
            "fit a lens for it, or insist with any_teacher=True (--djip-any-teacher)"
        )
