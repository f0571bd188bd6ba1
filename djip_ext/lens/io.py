"""A lens on disk, its id, and which teacher it belongs to.

The layout of the file is that of :mod:`djip_ext.lens.file_format`.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from djip_ext.errors import DJIPError
from djip_ext.inputs.wrappers import plain_state, precision_of
from djip_ext.lens.file_format import (
    FORMAT,
    FORMER_SETTINGS,
    SETTINGS,
    digest,
    not_a_lens,
    parse_settings,
    read_lens_file,
    write_lens_file,
)
from djip_ext.lens.jpeg_lens import JPEGLens

__all__ = [
    "FORMAT",
    "SETTINGS",
    "check_belongs",
    "control_digest",
    "is_recognisable",
    "lens_digest",
    "lens_id",
    "lens_name",
    "load_lens",
    "make_lens",
    "read_lens",
    "save_lens",
    "settings_of",
    "softening",
    "weight_hash",
]


def settings_of(lens: JPEGLens) -> dict[str, Any]:
    """All of ``lens`` but its steps and metadata, as lens files and records name it."""
    return FORMER_SETTINGS | lens.settings()


def save_lens(lens: JPEGLens, path: str | os.PathLike[str]) -> Path:
    """Write ``lens`` and its ``metadata`` atomically.

    Raises:
        DJIPError: steps outside of their range, metadata that are no JSON, or a place that cannot
            be written.
    """
    return write_lens_file(path, lens.q, lens.settings(), lens.metadata)


def load_lens(path: str | os.PathLike[str]) -> JPEGLens:
    """Read a lens; its ``metadata`` says what it was fitted for.

    Raises:
        DJIPError: the file is missing, damaged, not a lens, or of a newer format.
    """
    content = read_lens_file(path)
    try:
        lens = JPEGLens(content.q, **content.settings)
    except (ValueError, TypeError) as error:
        raise not_a_lens(Path(path), error) from error
    lens.metadata = content.about
    return lens


def make_lens(q: Any, settings: dict[str, Any], about: dict[str, Any]) -> JPEGLens:
    """The lens with these steps (2, 8, 8), :func:`settings_of` and ``metadata``.

    Raises:
        DJIPError: steps or settings that no lens can have.
        KeyError: a setting is missing.
    """
    lens = JPEGLens(torch.as_tensor(q), **parse_settings(settings))
    lens.metadata = dict(about)
    return lens


def lens_id(lens: JPEGLens) -> str:
    """Eight hex digits that change whenever the tables or the settings do."""
    return lens_digest(lens).hex()[:8]


def softening(control: str) -> float | None:
    """What the plain teacher's logits are divided by under ``control``.

    1 for ``"identity"``, K for ``"temperature:K"``, None for anything else, a path for example.

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
        raise DJIPError(
            f"'{control}': temperature:K divides the teacher's logits by K, a positive number, "
            "for example temperature:2"
        )
    return by


def read_lens(name: str | os.PathLike[str]) -> JPEGLens | str:
    """The lens at a path; ``"identity"`` and ``"temperature:K"`` as they are."""
    return str(name) if softening(str(name)) is not None else load_lens(name)


def lens_name(lens: JPEGLens | str) -> str:
    """The name that runs with ``lens`` carry: its :func:`lens_id`, or the name of the control.

    Controls are called ``"identity"`` or ``"temperature-K"``.
    """
    if isinstance(lens, JPEGLens):
        return lens_id(lens)
    return lens if lens == "identity" else f"temperature-{softening(lens):g}"


def control_digest(control: str) -> bytes:
    """32 bytes for a control as :func:`lens_digest` has them for a lens; zeros for identity."""
    if control == "identity":
        return bytes(32)
    return hashlib.sha256(lens_name(control).encode()).digest()


def lens_digest(lens: JPEGLens) -> bytes:
    """SHA-256 over tables and settings."""
    return digest(lens.q, lens.settings())


def weight_hash(network: nn.Module | Mapping[str, Any]) -> str:
    """Sixteen hex digits over the names and values of a network's state.

    It is how a lens recognises its teacher.  Wrappers such as torch.compile's and DataParallel do
    not enter; rounding to half precision does.  A network whose state holds no tensor (frozen
    TorchScript, a runtime's session) cannot be told from others: the empty string.
    """
    sha = hashlib.sha256()
    empty = True
    for name, value in sorted(plain_state(network).items()):
        for tensor in _tensors(value):
            empty = False
            sha.update(name.encode())
            sha.update(_bytes(tensor))
    return "" if empty else sha.hexdigest()[:16]


def is_recognisable(network: nn.Module) -> bool:
    """Whether :func:`weight_hash` tells ``network`` from others, without the cost of a hash."""
    entries = plain_state(network).values()
    return any(True for value in entries for _ in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of an entry of a state: a quantised layer packs weight and bias into a tuple."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.dequantize() if tensor.is_quantized else tensor
    flat = plain.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def check_belongs(lens: JPEGLens, network: nn.Module, mean: Any, std: Any) -> None:
    """Check that ``lens`` was fitted for this network and normalisation, as far as it says.

    Raises:
        DJIPError: it was fitted for other weights or another normalisation.
    """
    about = lens.metadata
    for name, value in (("mean", mean), ("std", std)):
        fitted = about.get(name)
        if fitted is None:
            continue
        pairs = zip(fitted, value, strict=False)
        if len(fitted) != len(value) or any(abs(float(a) - float(b)) > 1e-4 for a, b in pairs):
            raise DJIPError(
                f"the lens was fitted with {name} {tuple(fitted)}, but the images are normalised "
                f"with {tuple(value)}; use the same"
            )
    known = about.get("teacher_hash")
    if not known:
        return
    found = weight_hash(network)
    if not found:
        raise DJIPError(
            f"the lens was fitted for {about.get('teacher', 'a teacher')} with weights {known}, "
            f"and this {type(network).__name__} shows no weights to compare; pass "
            "any_teacher=True (--djip-any-teacher) to use the lens all the same"
        )
    if known != found:
        raise DJIPError(
            f"the lens was fitted for {about.get('teacher', 'a teacher')} with weights {known}, "
            f"this teacher has {found}{_other_precision(network, known)}; fit a lens for it, or "
            "pass any_teacher=True (--djip-any-teacher) to use this one all the same"
        )


def _other_precision(network: nn.Module, known: str) -> str:
    """Why the hashes may differ, where precision is the reason.

    The same weights, rounded, hash to another value.
    """
    precision = precision_of(network)
    state = plain_state(network)
    for dtype in (torch.float16, torch.bfloat16):
        if weight_hash({name: _rounded(value, dtype) for name, value in state.items()}) == known:
            return f", which rounded to {str(dtype)[6:]} are those of the lens"
    return "" if precision == "float32" else f" in {precision}, where rounded weights are others"


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float else value
