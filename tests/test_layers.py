"""Imports point one way, by the contracts in pyproject.toml; and the contracts notice if not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytest.importorskip("importlinter")


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of the checkout at ``root``."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and its contracts."""
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", root)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "djip_ext", root / "djip_ext", ignore=ignored)
    return root


def test_imports_point_one_way() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "importing, imported",
    (
        ("ops/dct.py", "djip_ext.lens.jpeg_lens"),
        ("ops/curves.py", "djip_ext.ops.quantizer"),
        ("lens/file_format.py", "djip_ext.lens.jpeg_lens"),
        ("lens/jpeg_lens.py", "djip_ext.lens.io"),
        ("metrics/class_simplex.py", "djip_ext.bench.dataset.imageset"),
        ("fit/sampling.py", "djip_ext.fit.loop"),
        ("bench/models/init.py", "djip_ext.hosts.registry"),
    ),
)
def test_an_import_against_the_layers_is_noticed(
    copied: Path, importing: str, imported: str
) -> None:
    """Also one for the sake of types, or inside a function."""
    path = copied / "djip_ext" / importing
    text = path.read_text()
    path.write_text(f"{text}\n\ndef against_the_layers() -> None:\n    import {imported}\n")
    try:
        result = lint(copied)
    finally:
        path.write_text(text)
    module = "djip_ext." + importing.removesuffix(".py").replace("/", ".")
    assert result.returncode != 0
    assert f"{module} -> {imported}" in " ".join(result.stdout.split())
