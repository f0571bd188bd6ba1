"""The one added line: where it goes, and that it comes out byte for byte."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "patches" / "djip_flag.py"
SOURCES = {
    "plain": b"import os\nfrom mdistiller.distillers import distiller_dict\nprint(1)\n",
    "windows": b"from mdistiller.distillers import distiller_dict\r\nprint(1)\r\n",
    "parentheses": b"from air.distillers import (\n    Vanilla,\n    distiller_dict,\n)\nprint()\n",
    "last line": b"from mdistiller.distillers import distiller_dict",
}


def run(action: str, checkout: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, action, checkout], capture_output=True, text=True)


@pytest.fixture
def train_py(tmp_path: Path) -> Path:
    path = tmp_path / "tools" / "train.py"
    path.parent.mkdir()
    return path


@pytest.mark.parametrize("name", SOURCES)
def test_the_line_follows_the_import_and_comes_out_exactly(
    name: str, train_py: Path, tmp_path: Path
) -> None:
    train_py.write_bytes(SOURCES[name])
    assert run("add", tmp_path).returncode == 0
    text = train_py.read_text()
    assert text.index("distiller_dict") < text.index("import djip_ext.autoload") and (
        "print(1)" not in text or text.index("autoload") < text.index("print(1)")
    )
    compile(text, "train.py", "exec")
    assert run("remove", tmp_path).returncode == 0
    assert train_py.read_bytes() == SOURCES[name]


def test_showing_changes_nothing(train_py: Path, tmp_path: Path) -> None:
    train_py.write_bytes(SOURCES["plain"])
    shown = run("show", tmp_path)
    assert "after line 2" in shown.stdout and train_py.read_bytes() == SOURCES["plain"]


@pytest.mark.parametrize(
    "source, action, reason",
    [
        (b"print(1)\n", "add", "distillers import distiller_dict"),
        (SOURCES["plain"], "remove", "nothing to undo"),
        (
            SOURCES["plain"] + b"import djip_ext.autoload  # gives this script --djip-lens\n",
            "add",
            "already",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_left_alone(
    source: bytes, action: str, reason: str, train_py: Path, tmp_path: Path
) -> None:
    train_py.write_bytes(source)
    result = run(action, tmp_path)
    assert result.returncode == 1 and reason in result.stderr and "Traceback" not in result.stderr
    assert train_py.read_bytes() == source
