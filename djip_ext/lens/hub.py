"""Lenses on the Hugging Face Hub, by huggingface_hub's ``ModelHubMixin``, and in local folders.

A repository or folder holds ``lens.safetensors``, ``config.json`` (the codec's settings) and a
model card, ``README.md``.  Imported by :meth:`JPEGLens.save_pretrained` and its companions only,
since huggingface_hub is optional.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from djip_ext.errors import DJIPError, first_line
from djip_ext.lens.io import lens_id, load_lens, save_lens
from djip_ext.lens.jpeg_lens import JPEGLens

try:
    from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, hf_hub_download
except ImportError as error:
    raise DJIPError("huggingface_hub is not installed; pip install 'djip_ext[hub]'") from error

FILE = "lens.safetensors"
MARK = "<!-- Written by djip_ext; delete this line to keep your own changes. -->"


class HubLens(ModelHubMixin, library_name="djip_ext"):
    """A lens with the mixin's methods.

    Args:
        lens: what is saved; it is not changed.
        distiller, temperature: what it was meant for, as the card and the lens's metadata say.
    """

    def __init__(
        self, lens: JPEGLens, distiller: str = "", temperature: float | None = None
    ) -> None:
        self.lens = copy.deepcopy(lens)
        if distiller or temperature is not None:
            self.lens.metadata["meant_for"] = {"distiller": distiller, "temperature": temperature}

    def _save_pretrained(self, save_directory: Path) -> None:
        save_lens(self.lens, save_directory / FILE)
        card = save_directory / "README.md"
        if card.exists() and MARK in card.read_text():
            card.unlink()  # of an earlier lens; the mixin would keep it

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **how: Any) -> HubLens:
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        where: dict[str, Any] = {name: how.get(name) for name in names}
        path = hf_hub_download(model_id, FILE, **where)
        return cls(load_lens(path))

    def generate_model_card(self, *arguments: Any, **more: Any) -> ModelCard:
        return ModelCard(model_card(self.lens))


def save_pretrained(lens: JPEGLens, folder: str | os.PathLike[str], **meant_for: Any) -> None:
    """Write ``lens``, its configuration and its card into ``folder``."""
    try:
        HubLens(lens, **meant_for).save_pretrained(Path(folder), config=_config(lens))
    except OSError as error:
        raise DJIPError(
            f"cannot write {folder}: {error.strerror or error}; choose another place"
        ) from error


def from_pretrained(name: str | os.PathLike[str], **where: Any) -> JPEGLens:
    """The lens in the folder or repository ``name``."""
    if os.path.isdir(name):
        return load_lens(Path(name) / FILE)
    try:
        found: JPEGLens = HubLens.from_pretrained(str(name), **where).lens
    except DJIPError:
        raise
    except Exception as error:  # a dozen types: no network, no repository, no right to read
        raise DJIPError(
            f"there is no lens {name} here, and none came from the Hub ({first_line(error)}); "
            "check the name and the network"
        ) from error
    return found


def push_to_hub(lens: JPEGLens, repository: str, how: dict[str, Any], **meant_for: Any) -> str:
    """Upload ``lens``; returns the address of the commit."""
    hub_lens = HubLens(lens, **meant_for)
    try:
        address = hub_lens.push_to_hub(repository, config=_config(lens), **how)
    except Exception as error:  # no network, no token, no right to write, a misspelt name
        raise DJIPError(
            f"the lens was not uploaded to {repository} ({first_line(error)}); check the name, the "
            "network and the token (hf auth login)"
        ) from error
    return str(address)


def _config(lens: JPEGLens) -> dict[str, Any]:
    return {"lens_id": lens_id(lens), **lens.settings()}


def model_card(lens: JPEGLens) -> str:
    """The model card of ``lens`` in Markdown."""
    about = lens.metadata
    data = ModelCardData(
        library_name="djip_ext", tags=["knowledge-distillation", "jpeg", "image-classification"]
    )
    unknown = "not recorded"
    meant = about.get("meant_for") or {}
    temperature = meant.get("temperature")
    facts = {
        "Teacher": about.get("teacher", unknown),
        "Weights of the teacher (SHA-256, 16 digits)": about.get("teacher_hash", unknown),
        "Data": about.get("dataset", unknown),
        "Images of the fit": about.get("images", unknown),
        "Normalisation": f"mean {about.get('mean', unknown)}, std {about.get('std', unknown)}",
        "Meant for the distiller": meant.get("distiller") or unknown,
        "Meant for the temperature": unknown if temperature is None else temperature,
        "Lens": f"{lens_id(lens)}, {lens.extra_repr()}",
    }
    lines = ["---", data.to_yaml(), "---", MARK, "", f"# A lens for {facts['Teacher']}", ""]
    lines += ["A JPEG lens that amplifies a frozen teacher for knowledge distillation.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
    lines += ["", "| images | CMI, nats | cross entropy, nats | accuracy, % |", "|---|---|---|---|"]
    for title, key in {
        "training, without the lens": "before",
        "training, with it": "after",
        "test, without the lens": "test_before",
        "test, with it": "test_after",
    }.items():
        if numbers := about.get(key):
            lines.append(
                f"| {title} | {numbers['cmi']:.4f} | {numbers['ce']:.4f} "
                f"| {numbers['accuracy']:.2f} |"
            )
    lines += [
        "",
        "```python",
        "import djip_ext",
        "",
        'lens = djip_ext.JPEGLens.from_pretrained("FOLDER_OR_REPOSITORY")',
        "teacher = djip_ext.DJIPTeacher(teacher, lens, mean, std)",
        "```",
        "",
    ]
    return "\n".join(lines)
