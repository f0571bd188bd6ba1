"""Hooks of mkdocs: pages from outside docs/ join the site, and links work as in the repository.

On disk every link is relative to its file.  The site has README.md as its first page, and the pages
and pictures of results/; a link to any other file leads to the repository.
"""

import functools
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
FROM_OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>~?([\w.]+)</code>")


@functools.cache
def pages() -> dict[str, str]:
    """Path in the repository -> path in the site, of every file from outside docs/."""
    results = [*(ROOT / "results").rglob("*.md"), *(ROOT / "results").rglob("*.png")]
    paths = [path.relative_to(ROOT).as_posix() for path in sorted(results)]
    return FROM_OUTSIDE | {path: path for path in paths}


def on_files(files: Any, config: Any) -> Any:
    """Add the files from outside docs/."""
    for path, place in pages().items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page from the repository's paths to the site's."""
    outside = {place: path for path, place in pages().items()}
    uri = page.file.src_uri
    source = outside.get(uri, f"docs/{uri}")

    def rewrite(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = pages().get(path, path.removeprefix("docs/"))
        if not (ROOT / path).exists():
            return match[0]  # mkdocs says what is wrong with it
        if files.get_file_from_path(place) is None:
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            return f"]({config.repo_url}/{kind}/main/{path}{anchor})"
        return f"]({os.path.relpath(place, posixpath.dirname(uri) or '.')}{anchor})"

    return LINK.sub(rewrite, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Show a cross reference of a docstring, ``:class:`Name```, as the name alone."""
    return ROLE.sub(lambda match: f"<code>{match[1].removeprefix('djip_ext.')}</code>", html)
