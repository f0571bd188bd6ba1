"""What importing the package drags in, and the examples in its docstrings."""

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import djip_ext


def test_import_loads_neither_torchvision_nor_plotting_nor_a_host() -> None:
    program = "import sys, djip_ext; print(sorted({'torchvision', 'matplotlib', 'yacs', 'mdistiller', 'PIL'} & set(sys.modules)))"
    root = Path(djip_ext.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ("lens", "cmi"))
def test_docstring_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(f"djip_ext.{name}"))
    assert results.attempted > 0 and results.failed == 0


def test_everything_advertised_exists() -> None:
    assert all(hasattr(djip_ext, name) for name in djip_ext.__all__)
