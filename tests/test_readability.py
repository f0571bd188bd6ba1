"""benchmarks/readability.py counts what it says, on a package small enough to count by hand."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = 101  # one too many
MODULE = '''"""A module of twenty lines."""

import os


def documented(a: int, *rest: int) -> int:
    """Say something."""
    first, second = a, len(rest)  # packed
    first, second = divmod(first, 2)  # one value, so not packed
    return first if second else 0


def bare(a):
    def inner() -> None: ...

    return a  # LONG


class _Hidden:
    def method(self): ...
'''


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "readability.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_measures_of_a_small_package(tmp_path: Path) -> None:
    package = tmp_path / "djip_ext"
    (package / "ops").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text(MODULE.replace("LONG", "x" * (COLUMNS - 14)))
    (package / "ops" / "empty.py").write_text("")
    done = measure(f"before={tmp_path}")
    assert done.returncode == 0, done.stderr
    head, _, *rows = done.stdout.splitlines()
    assert head == "| measure | before |"
    values = dict(row.strip("| ").split(" | ") for row in rows)
    assert values == {
        "modules at the top": "1",
        "longest function (lines)": "5 (module.documented)",
        "lines over 100 columns (%)": "5.0",
        "packed assignments per 1,000 lines": "50.0",
        "conditional expressions per 1,000 lines": "50.0",
        "public functions documented (%)": "50.0",
        "public functions typed (%)": "50.0",
        "findings of ruff": "2",  # the import without a use, the long line
        "findings of mypy --strict": "2",  # two functions without types
    }


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    done = measure(str(tmp_path))
    assert done.returncode == 1 and "holds no package djip_ext" in done.stderr
