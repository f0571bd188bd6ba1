"""docs/how_it_works.md names what there is, the gallery shows it, and the metadata agree."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import djip_ext

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOW_IT_WORKS = (DOCS / "how_it_works.md").read_text()
NAMED = set(re.findall(r"`(djip_ext/[\w./-]*)`", HOW_IT_WORKS))
PACKAGES = {
    path.parent.relative_to(ROOT).as_posix() + "/"
    for path in (ROOT / "djip_ext").rglob("__init__.py")
} - {"djip_ext/"}


def test_how_it_works_names_every_package_in_its_table() -> None:
    rows = re.findall(r"^\| (`.*?) \|", HOW_IT_WORKS, flags=re.MULTILINE)
    assert set(re.findall(r"`(djip_ext/[\w/]*/)`", " ".join(rows))) == PACKAGES


@pytest.mark.parametrize("name", sorted(NAMED))
def test_what_how_it_works_names_exists(name: str) -> None:
    path = ROOT / name
    assert path.is_dir() if name.endswith("/") else path.is_file()


MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def example(word: str) -> str:
    """The one example of docs/outside.md that holds ``word``."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "outside.md").read_text(), flags=re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def test_the_example_of_a_closed_teacher_runs_within_its_budget() -> None:
    weights = torch.randn(3 * 8 * 8, 10)
    sent = []

    def ask(images: torch.Tensor) -> list[list[float]]:
        sent.append(len(images))
        return (images.flatten(1) @ weights / 8).softmax(1).tolist()

    images = torch.randn(60, 3, 8, 8).clamp(-2, 2)
    batch = images, torch.arange(60) % 10
    scope = {"djip_ext": djip_ext, "ask": ask, "loader": [batch], "mean": MEAN, "std": STD}
    short = example("ClosedTeacher").replace("queries=3000", "queries=300, progress=False")
    exec(compile(short, "outside.md", "exec"), scope)
    assert 120 <= sum(sent) <= 300
    assert scope["amplified"](images).shape == (60, 10)


def test_the_example_of_an_exported_teacher_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = []
    monkeypatch.setattr(torch.onnx, "export", lambda program, f: written.append(f))
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    lens = djip_ext.JPEGLens(q=8.0, kappa=5.0)
    scope = {"djip_ext": djip_ext, "teacher": teacher, "lens": lens, "mean": MEAN, "std": STD}
    scope["images"] = torch.randn(2, 3, 16, 24)
    exec(compile(example("torch.export"), "outside.md", "exec"), scope)
    others = torch.randn(3, 3, 32, 40)
    exported, amplified = scope["program"].module(), scope["amplified"]
    assert torch.allclose(exported(others), amplified(others), atol=1e-5)
    assert written == ["teacher.onnx"]


def test_every_package_has_a_page_of_the_api_reference() -> None:
    top = {name.split("/")[1] for name in PACKAGES} - {"commands"}  # an alias of cli
    assert {path.stem for path in (DOCS / "api").glob("*.md")} - {"index"} == top
    for name in top:
        assert f"::: djip_ext.{name}\n" in (DOCS / "api" / f"{name}.md").read_text()


def test_every_picture_of_the_documents_is_in_the_gallery() -> None:
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", (DOCS / "gallery.md").read_text()))
    pictures = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.png")}
    assert pictures <= shown
    assert all((DOCS / name).is_file() for name in shown)


def test_the_citation_names_the_method_and_the_codec() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert [one["year"] for one in citation["references"]] == [2026, 2025]
    assert "ZKYPoPn0fP" in str(citation) and "2410.07081" in str(citation)


def test_the_changelog_says_where_modules_went() -> None:
    now = re.findall(r"^\| .* \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    named = re.findall(r"`((?:ops|lens|metrics|fit|hosts|plots|utils)\.\w+)`", " ".join(now))
    assert len(named) > 20
    for name in named:
        assert (ROOT / "djip_ext" / f"{name.replace('.', '/')}.py").exists(), name
