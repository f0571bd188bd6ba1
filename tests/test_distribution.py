"""The source distribution carries what its tests need and passes them; so does the wheel's data."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import djip_ext

ROOT = Path(__file__).parents[1]
NOT_COPIED = {"build", "data", "dist", "download_ckpts", "output", "runs", "site"}
NEEDED = (
    ".ci/run",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "mkdocs.yml",
    "benchmarks/lens.py",
    "configs/cifar100/kd/res32x4_res8x4.yaml",
    "configs/write.py",
    "djip_ext/py.typed",
    "docs/method.md",
    "docs/pictures/tables.png",
    "patches/djip_flag.py",
    "results/README.md",
    "results/cifar100/fewshot13.yaml",
    "tests/helpers/reference.py",
    "tools/train.py",
)
QUICK = ("tests/test_package.py", "tests/ops/test_dct.py")


def ignored(folder: str, names: list[str]) -> set[str]:
    """What .gitignore keeps out of the checkout."""
    hidden = {name for name in names if name.startswith((".git", ".venv")) and name != ".gitignore"}
    made = {name for name in names if name.endswith(("__pycache__", "_cache", ".egg-info"))}
    return hidden | made | (NOT_COPIED if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a source distribution lies, and the wheel built from it, both without a network."""
    folder = tmp_path_factory.mktemp("built")
    # a copy, since a build leaves an .egg-info, which the next build would read
    source = shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path) -> Path:
    """The root of the unpacked source distribution."""
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(built, filter="data")
    return built / archive.name.removesuffix(".tar.gz")


def test_the_version_is_that_of_the_package(unpacked: Path) -> None:
    assert unpacked.name == f"djip_ext-{djip_ext.__version__}"


def test_the_source_distribution_carries_what_is_needed(unpacked: Path) -> None:
    assert [name for name in NEEDED if not (unpacked / name).is_file()] == []


@pytest.mark.parametrize("folder", ("benchmarks", "configs", "djip_ext", "docs", "tests", "tools"))
def test_no_file_of_a_folder_is_left_out(folder: str, unpacked: Path) -> None:
    def files(root: Path) -> set[Path]:
        paths = (root / folder).rglob("*")
        return {
            path.relative_to(root) for path in paths if path.is_file() and path.suffix != ".pyc"
        }

    assert files(ROOT) - files(unpacked) == set()


def test_tests_pass_from_the_unpacked_source_distribution(unpacked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *QUICK]
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        command, cwd=unpacked, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_wheel_carries_types_and_published_numbers_and_nothing_beside_the_package(
    built: Path,
) -> None:
    (archive,) = built.glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
    assert {"djip_ext/py.typed", "djip_ext/experiments/published.csv"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"djip_ext"}
