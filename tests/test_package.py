"""What importing the package drags in, and the examples in its docstrings."""

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import djip_ext

HELP = "from djip_ext.cli.main import main; main(['--help'])"


@pytest.mark.parametrize("statement", ["import djip_ext", HELP])
def test_neither_the_package_nor_its_help_loads_torchvision_plotting_or_a_host(
    statement: str,
) -> None:
    heavy = {
        "torchvision",
        "matplotlib",
        "yacs",
        "tensorboardX",
        "mdistiller",
        "PIL",
        "djip_ext.bench",
    }
    program = f"""
import sys
try:
    {statement}
except SystemExit:
    pass
print(sorted({heavy} & set(sys.modules)))
"""
    root = Path(djip_ext.__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


PACKAGE = Path(djip_ext.__file__).parent
WITH_EXAMPLES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.stem)
def test_docstring_examples_run(path: Path) -> None:
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0 and results.failed == 0


def test_everything_advertised_exists() -> None:
    assert all(hasattr(djip_ext, name) for name in djip_ext.__all__)
