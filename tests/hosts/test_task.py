"""Reading teacher, images and scale from a host of a few lines."""

import importlib
import socket
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yacs.config  # noqa: F401
from helpers.forks import forked

from djip_ext import DJIPError
from djip_ext.cli.main import main, run_command
from djip_ext.hosts.offline import no_downloads
from djip_ext.hosts.task import read_host

MODELS = """
import os
from torch import nn
folder = os.path.dirname(__file__)
def small(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, num_classes))
cifar_model_dict = {
    "small": (small, os.path.join(folder, "small.pth")),
    "untrained": (small, None),
    "lost": (small, os.path.join(folder, "lost.pth")),
}
"""
DATASET = """
import torch
import numpy as np
from torchvision import transforms
from torch.utils.data import DataLoader, Dataset
normalize = transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
pixels = np.arange(10 * 4 * 4 * 3, dtype=np.uint8).reshape(10, 4, 4, 3)

class Stored(Dataset):
    def __init__(self, transform):
        self.data, self.targets, self.transform = pixels, list(range(10)), transform
    def __len__(self):
        return 10
    def __getitem__(self, i):
        return self.transform(self.data[i]), self.targets[i], i

class Files(Stored):
    def __init__(self, transform):
        self.hidden, self.transform = Stored(transform), transform
    def __getitem__(self, i):
        return self.transform(self.hidden.data[i]), i

def get_dataset(cfg):
    kind = {"cifar100": Stored, "files": Files, "resized": Stored}[cfg.DATASET.TYPE]
    erase = transforms.RandomErasing(p=1.0)
    augment = transforms.Compose([transforms.ToTensor(), erase, normalize])
    resize = [transforms.Resize(8)] if cfg.DATASET.TYPE == "resized" else []
    plain = transforms.Compose([transforms.ToTensor(), *resize, normalize])
    return DataLoader(kind(augment)), DataLoader(kind(plain)), 10, 10
"""
CFG = """
from yacs.config import CfgNode
CFG = CfgNode({"DATASET": {"TYPE": "cifar100"}, "DISTILLER": {"TEACHER": "small"}})
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "host/__init__.py": "",
        "host/distillers/__init__.py": "",
        "host/models.py": MODELS + "files_model_dict = resized_model_dict = cifar_model_dict\n",
    }
    files |= {
        "host/dataset.py": DATASET,
        "host/engine/__init__.py": "",
        "host/engine/cfg.py": CFG,
        "own.yaml": "{}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    torch.save(
        {"model": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 10)).state_dict()},
        tmp_path / "host/small.pth",
    )
    return tmp_path


def reading(
    checkout: Path,
    yaml: str = "{}",
    limit: int = 0,
    code: str = "pass",
    options: Sequence[str] = (),
) -> tuple[int, str]:
    """Read the host and run ``code`` on the ``task``, in a child process."""
    (checkout / "own.yaml").write_text(yaml)

    def read() -> None:
        try:
            task = read_host(checkout, checkout / "own.yaml", "host", limit, options)
        except DJIPError as error:
            print("error:", error)
            raise SystemExit(2) from None
        exec(
            code, {"task": task, "torch": torch, "dataset": importlib.import_module("host.dataset")}
        )

    return forked(checkout, read)


def test_a_host_gives_its_teacher_its_scale_and_its_images_as_stored(checkout: Path) -> None:
    status, output = reading(
        checkout,
        code="""
stored = torch.load("host/small.pth")["model"]["1.weight"]
assert torch.equal(task.teacher[1].weight, stored) and not task.teacher.training
assert task.train.mean == (0.5, 0.4, 0.3) and task.train.std == (0.2, 0.3, 0.25)
assert task.train.num_classes == 10 and task.train.labels.tolist() == list(range(10))
assert (task.train.images.numpy() == dataset.pixels).all()
assert (task.dataset, task.teacher_name) == ("cifar100", "small")
""",
    )
    assert status == 0, output


def test_images_in_files_are_read_without_augmentation_up_to_the_limit(checkout: Path) -> None:
    status, output = reading(
        checkout,
        "DATASET: {TYPE: files}",
        limit=4,
        code="""
assert task.train.labels.tolist() == [0, 3, 6, 9]
assert (task.train.images.numpy() == dataset.pixels[[0, 3, 6, 9]]).all()
""",
    )
    assert status == 0, output


def test_images_in_the_hosts_memory_are_taken_whole_whatever_the_limit(checkout: Path) -> None:
    status, output = reading(
        checkout,
        limit=4,
        code="assert len(task.train.labels) == len(task.test.labels) == 10",
    )
    assert status == 0, output


def test_stored_images_that_the_host_resizes_are_read_as_its_teacher_sees_them(
    checkout: Path,
) -> None:
    status, output = reading(
        checkout,
        "DATASET: {TYPE: resized}",
        limit=4,
        code="""
for part in (task.train, task.test):
    assert part.images.shape == (4, 8, 8, 3) and part.labels.tolist() == [0, 3, 6, 9]
""",
    )
    assert status == 0, output


@pytest.mark.parametrize(
    "yaml, reason",
    [
        ("DATASET: {TYPE: files}", "with --images"),
        ("DATASET: {TYPE: resized}", "with --images"),
        ("[1, 2]", "own.yaml: "),
        ("a: [1", "own.yaml: "),
        ("DISTILLER: {TEACHER: untrained}", "no checkpoint for 'untrained'"),
        ("DISTILLER: {TEACHER: lost}", "host/lost.pth is missing; fetch its checkpoints"),
        ("DISTILLER: {TEACHER: other}", "no teacher 'other'"),
        ("NO_SUCH_NODE: 1", "NO_SUCH_NODE"),
    ],
)
def test_what_the_host_lacks_is_named(yaml: str, reason: str, checkout: Path) -> None:
    status, output = reading(checkout, yaml)
    assert status == 2 and reason in output


def test_options_override_the_file(checkout: Path) -> None:
    status, output = reading(
        checkout,
        "DATASET: {TYPE: files}",
        limit=3,
        options=["DATASET.TYPE", "cifar100"],
        code="assert task.dataset == 'cifar100'",
    )
    assert status == 0, output
    assert "NO_SUCH" in reading(checkout, options=["NO_SUCH.KEY", "1"])[1]


@pytest.mark.parametrize(
    "options, reason",
    [
        (["BENCH.FRACTION", "0.1"], "BENCH.FRACTION is the embedded"),
        (["DISTILLER.TEACHER"], "has no value"),
    ],
)
def test_options_that_mean_nothing_with_a_host_are_refused(
    options: list[str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DJIPError, match=reason):
        run_command(
            [
                "fit",
                "--host",
                str(tmp_path),
                "--cfg",
                "own.yaml",
                "--out",
                str(tmp_path / "lens.safetensors"),
                *options,
            ]
        )


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="has no mdistiller/distillers"):
        read_host(tmp_path, "any.yaml")


def fitting(checkout: Path, out: Path, *options: str) -> tuple[int, str]:
    """``djip fit --host .`` for five images of a class, in a child process."""
    data = checkout / "host/dataset.py"
    data.write_text(data.read_text().replace("list(range(10))", "[i // 5 for i in range(10)]"))

    def fit() -> None:
        own = ["--host-package", "host", "--cfg", "own.yaml", "--rounds", "1", "--out", str(out)]
        main(["fit", "--host", ".", *own, *options, "BENCH.DEVICE", "cpu"])

    return forked(checkout, fit)


def files(folder: Path) -> set[str]:
    """The files below ``folder``, but for what Python and the test itself leave there."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name != "log.txt"
    }


def test_a_fit_leaves_nothing_in_the_checkout_and_no_lock(checkout: Path, tmp_path: Path) -> None:
    before = files(checkout)
    out = tmp_path / "lenses" / "a.safetensors"
    status, output = fitting(checkout, out)
    assert status == 0, output
    written = files(out.parent)
    assert {name for name in written if "tfevents" not in name} == {"a.safetensors", "a.json"}
    assert {name.split("/")[0] for name in written} <= {"a.safetensors", "a.json", "a.events"}
    assert files(checkout) - {f"lenses/{name}" for name in written} == before


def test_a_failed_fit_leaves_nothing(checkout: Path, tmp_path: Path) -> None:
    out = tmp_path / "lenses" / "a.safetensors"
    before = files(checkout)
    status, output = fitting(checkout, out, "DISTILLER.TEACHER", "lost")
    assert status == 2 and files(checkout) == before, output


FLAGS = """
def get_dataset(cfg):
    return open(cfg.DATASET.ROOT)
"""
FETCHING = {
    "torchvision": "from torchvision.datasets import CIFAR100; CIFAR100('data', download=True)",
    "urllib": "import urllib.request; urllib.request.urlopen('http://example.org/a.tar')",
    "by name": "from urllib.request import urlretrieve; urlretrieve('http://example.org/a.tar')",
    "torch.hub": "torch.hub.load_state_dict_from_url('http://example.org/a.pth', 'hub')",
    "a look-up": "import socket; socket.create_connection(('example.org', 80))",
}


def refusal(status: int, output: str) -> str:
    assert status == 2 and "Traceback" not in output and output.count("error: ") == 1, output
    return output.strip().splitlines()[-1]


def test_what_only_the_hosts_own_script_sets_is_one_line(checkout: Path, tmp_path: Path) -> None:
    with open(checkout / "host/dataset.py", "a") as file:
        file.write(FLAGS)
    line = refusal(*fitting(checkout, tmp_path / "a.safetensors"))
    number = len((checkout / "host/dataset.py").read_text().splitlines())
    place = f"{checkout.resolve()}/host/dataset.py:{number}"
    assert f"the host's get_dataset fails at {place} with AttributeError: ROOT" in line
    assert "add KEY VALUE pairs" in line


@pytest.mark.parametrize("how", FETCHING)
def test_nothing_is_downloaded(how: str, checkout: Path, tmp_path: Path) -> None:
    with open(checkout / "host/dataset.py", "a") as file:
        file.write(f"def get_dataset(cfg):\n    {FETCHING[how]}\n")
    before = {path for path in checkout.rglob("*") if "__pycache__" not in str(path)}
    line = refusal(*fitting(checkout, tmp_path / "a.safetensors"))
    assert "but djip fit downloads nothing" in line
    assert "a.tar" in line or "a.pth" in line or "cifar" in line or "example.org" in line
    left = {path for path in checkout.rglob("*") if "__pycache__" not in str(path)} - before
    assert {path.name for path in left} <= {"log.txt", "hub"}


def test_afterwards_downloads_are_possible_again(checkout: Path) -> None:
    look_up = socket.getaddrinfo
    opened = urllib.request.OpenerDirector.open
    with pytest.raises(DJIPError, match="would fetch"), no_downloads():
        urllib.request.urlopen("http://example.org")
    assert socket.getaddrinfo is look_up
    assert urllib.request.OpenerDirector.open is opened
