"""A lens in a folder as the Hub has it, offline: what goes in comes out, and the card says so."""

import sys
from pathlib import Path

import pytest
import torch

from djip_ext import DJIPError, JPEGLens

hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def lens() -> JPEGLens:
    lens = JPEGLens(1 + 20 * torch.rand(2, 8, 8), kappa=5.0)
    lens.metadata = {
        "teacher": "resnet56",
        "dataset": "cifar100",
        "images": 2500,
        "before": {"cmi": 0.25, "ce": 0.15, "accuracy": 96.77},
        "after": {"cmi": 0.5569, "ce": 0.37, "accuracy": 88.28},
    }
    return lens


def test_a_saved_lens_comes_back(lens: JPEGLens, tmp_path: Path) -> None:
    lens.save_pretrained(tmp_path / "a", distiller="KD", temperature=4.0)
    again = JPEGLens.from_pretrained(tmp_path / "a")
    assert torch.equal(again.q, lens.q) and again.settings() == lens.settings()
    assert again.metadata["meant_for"] == {"distiller": "KD", "temperature": 4.0}
    assert {k: v for k, v in again.metadata.items() if k != "meant_for"} == lens.metadata
    assert "meant_for" not in lens.metadata
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["README.md", "config.json", "lens.safetensors"]


def test_the_card_says_what_it_is_for(lens: JPEGLens, tmp_path: Path) -> None:
    lens.save_pretrained(tmp_path, distiller="KD", temperature=4.0)
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "djip_ext" and "knowledge-distillation" in card.data.tags
    for fact in ("resnet56", "cifar100", "2500", "0.5569", "88.28", "| KD |", "| 4.0 |"):
        assert fact in card.text
    lens.metadata["teacher"] = "resnet110"
    lens.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "resnet110" in text and "resnet56" not in text and "not recorded" in text
    (tmp_path / "README.md").write_text("my own words")
    lens.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


def test_a_lens_is_uploaded_with_its_card(
    lens: JPEGLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, object] = {}

    class Api:
        def __init__(self, **how: object) -> None: ...

        def create_repo(self, repo_id: str, **how: object) -> object:
            return type("Repository", (), {"repo_id": repo_id})()

        def upload_folder(self, folder_path: Path, **how: object) -> str:
            sent.update({p.name: p.read_bytes() for p in Path(folder_path).iterdir()}, **how)
            return "https://localhost/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert lens.push_to_hub("someone/lens", distiller="DKD") == "https://localhost/commit"
    assert sent["repo_id"] == "someone/lens" and b"DKD" in sent["README.md"]  # type: ignore[operator]
    (tmp_path / "lens.safetensors").write_bytes(sent["lens.safetensors"])  # type: ignore[arg-type]
    assert torch.equal(JPEGLens.from_pretrained(tmp_path).q, lens.q)


def test_mistakes_are_one_line(
    lens: JPEGLens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DJIPError, match="there is no lens"):
        JPEGLens.from_pretrained(tmp_path)
    with pytest.raises(DJIPError, match="none came from the Hub[^\n]+check the name and"):
        JPEGLens.from_pretrained("someone/missing", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(DJIPError, match="was not uploaded to someone/lens[^\n]+check the name,"):
        lens.push_to_hub("someone/lens", token="")
    (tmp_path / "file").touch()
    with pytest.raises(DJIPError, match="cannot write"):
        lens.save_pretrained(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "djip_ext.lens.hub", raising=False)
    with pytest.raises(DJIPError, match=r"djip_ext\[hub\]"):
        lens.save_pretrained(tmp_path)
