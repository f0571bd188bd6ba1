"""The documentation builds as a site, strictly and without a network."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PROXY = "http://127.0.0.1:9"  # nobody listens there, so that whatever is fetched fails


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    offline = {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY, "NO_MKDOCS_2_WARNING": "1"}
    environment = os.environ | offline
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_nothing_is_fetched_when_a_page_is_read(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = re.findall(
            r"<(?:link|script|img)[^>]*(?:href|src)=\"(https?:[^\"]+)", page.read_text()
        )
        assert loaded == [], page


def test_every_local_link_of_the_site_leads_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        targets = set(re.findall(r"(?:href|src)=\"([^\"#:?]+)[\"#?]", page.read_text()))
        for target in targets:
            target = unquote(unescape(target))  # as a browser asks for it
            assert (page.parent / target).exists(), f"{page.relative_to(site)} links to {target}"


def test_the_api_reference_has_the_public_functions_with_their_arguments(site: Path) -> None:
    page = (site / "api" / "index.html").read_text()
    assert 'id="djip_ext.fit_lens"' in page and 'id="djip_ext.teacher.DJIPTeacher"' in page
    assert "cmi_gain" in (site / "api" / "fit.html").read_text()
    assert ":class:<code>" not in page


def test_links_out_of_the_documents_lead_to_the_repository(site: Path) -> None:
    page = (site / "tables.html").read_text()
    assert "/blob/main/results/cifar100/fewshot13.yaml" in page
