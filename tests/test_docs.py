"""docs/how_it_works.md names what there is, the gallery shows it, and the metadata agree."""

import re
from pathlib import Path

import pytest
import yaml

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
