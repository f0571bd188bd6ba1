"""The checks of .pre-commit-config.yaml pass on the whole checkout: lint, format, types, layers."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOOKS = {
    hook["id"]: hook
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    for hook in repository["hooks"]
}


def installed(program: str) -> str:
    """The interpreter of this test, or a console script of its environment."""
    return sys.executable if program == "python" else str(Path(sys.executable).with_name(program))


def test_the_hooks_are_those_of_the_project_and_need_no_network() -> None:
    assert set(HOOKS) == {"ruff-check", "ruff-format", "mypy", "import-linter"}
    assert {hook["language"] for hook in HOOKS.values()} == {"system"}


@pytest.mark.parametrize("name", HOOKS)
def test_hook_has_no_findings(name: str) -> None:
    program, *arguments = shlex.split(HOOKS[name]["entry"])
    done = subprocess.run(
        [installed(program), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
