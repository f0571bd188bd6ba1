"""Several processes on a host of a few lines: of torchrun, and those that a script spawns."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tensorboardX  # noqa: F401  (here once, not in every fork)
import torch
import yacs.config  # noqa: F401
from helpers.forks import forked

import djip_ext
from djip_ext import JPEGLens
from djip_ext.launch import main as launch
from djip_ext.launch import run_script
from djip_ext.lens.io import lens_id

DISTILLERS = """
from torch import nn

class KD(nn.Module):
    def __init__(self, student, teacher, cfg):
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, image):
        return (self.student(image) - self.teacher(image)).square().mean()

distiller_dict = {"KD": KD}
"""
CFG = """
from yacs.config import CfgNode
CFG = CfgNode({"EXPERIMENT": {"PROJECT": "project"}, "DATASET": {"TYPE": "cifar100"}})
"""
# Distilling a linear student for three steps, each process on its share of the images.
WORKER = """
import os
import sys
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from host.distillers import distiller_dict
from host.engine.cfg import CFG as cfg

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))

def train(rank, processes):
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=processes)
    torch.manual_seed(0)
    teacher, student = network(), network()
    distiller = distiller_dict["KD"](student, teacher, cfg).cuda()
    if processes > 1:
        distiller = DistributedDataParallel(distiller, device_ids=[rank])
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    image = torch.randn(8, 3, 8, 8)[rank::processes].cuda()
    for _ in range(3):
        optimizer.zero_grad()
        distiller(image).backward()
        optimizer.step()
    torch.save(student.state_dict(), f"student-{rank}-of-{processes}")
    if "FT" in sys.argv:
        torch.save(pretrained(image), f"paraphraser-{rank}-of-{processes}")
    dist.destroy_process_group()

def pretrained(image):
    from djip_ext.bench.engine.cfg import CFG as ours
    from djip_ext.bench.distillers.ft import FT
    from djip_ext.bench.models import cifar_model_dict
    torch.manual_seed(0)
    ours.FT.PRETRAIN.EPOCHS, ours.FT.INPUT_SIZE = 3, (8, 8)
    distiller = FT(*(cifar_model_dict["resnet8"][0](num_classes=4) for _ in range(2)), ours)
    distiller.pretrain([(image,)])
    return distiller.paraphraser.state_dict()
"""
TORCHRUN = (
    WORKER
    + """
if __name__ == "__main__":
    cfg.freeze()
    print(cfg.EXPERIMENT.PROJECT, sys.argv[1:])
    train(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
"""
)
SPAWN = (
    WORKER
    + """
if __name__ == "__main__":
    cfg.freeze()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
    mp.spawn(train, args=(1,), nprocs=1)
"""
)

IDLE = """
import torch.multiprocessing as mp

def idle(rank):
    print("idle", flush=True)

if __name__ == "__main__":
    mp.spawn(idle, nprocs=2)
"""

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch has no torch.distributed"
    ),
    pytest.mark.skipif(torch.cuda.is_available(), reason="two processes would want two GPUs"),
]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "host/__init__.py": "",
        "host/distillers/__init__.py": DISTILLERS,
        "host/engine/__init__.py": "",
        "host/engine/cfg.py": CFG,
    }
    files |= {"tools/train.py": TORCHRUN, "tools/spawn.py": SPAWN}
    files["tools/patched.py"] = SPAWN.replace(
        "distiller_dict\nfrom", "distiller_dict\nimport djip_ext.autoload\nfrom", 1
    )
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    JPEGLens(40.0, window=5).save(tmp_path / "lens.safetensors")
    return tmp_path


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def alone(checkout: Path, lens: str) -> dict[str, torch.Tensor]:
    """The student that one process trains on all images."""

    def one_process() -> None:
        os.environ |= {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        launch(["--host", "host", "--djip-lens", lens, "tools/train.py", "FT"])

    status, output = forked(checkout, one_process)
    assert status == 0, output
    return torch.load(checkout / "student-0-of-1")


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(one[key], other[key], rtol=1e-5, atol=1e-6) for key in one)


def test_two_processes_of_torchrun_train_the_student_of_one(checkout: Path) -> None:
    start = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "djip_ext.launch",
    ]
    command = [
        sys.executable,
        *start,
        "--host",
        "host",
        "--djip-lens",
        "lens.safetensors",
        "tools/train.py",
        "KEY",
        "FT",
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(checkout), str(Path(djip_ext.__file__).parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command,
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    students = [torch.load(checkout / f"student-{rank}-of-2") for rank in range(2)]
    assert all(torch.equal(students[0][key], students[1][key]) for key in students[0])
    assert close(students[0], alone(checkout, "lens.safetensors")) and not close(
        students[0], alone(checkout, "identity")
    )
    paraphrasers = [
        torch.load(checkout / f"paraphraser-{which}") for which in ("0-of-2", "1-of-2", "0-of-1")
    ]
    assert all(
        torch.equal(paraphrasers[0][key], paraphrasers[1][key]) for key in paraphrasers[0]
    ) and close(paraphrasers[0], paraphrasers[2])
    tag = f"djip-{lens_id(JPEGLens(40.0, window=5))}"
    assert output.count("in front of the teacher") == 1  # said once, by the first process
    assert output.count(f"project/{tag} ['KEY', 'FT']") == 2


@pytest.mark.parametrize("entry", ["launcher", "one line"])
def test_a_process_that_the_script_spawns_has_the_lens_too(entry: str, checkout: Path) -> None:
    flags, script = (
        ["--djip-lens", "lens.safetensors"],
        checkout / "tools" / ("spawn.py" if entry == "launcher" else "patched.py"),
    )

    def script_spawns() -> None:
        sys.path.insert(0, str(checkout))
        if entry == "launcher":
            launch(["--host", "host", *flags, str(script), free_port()])
        else:
            run_script(str(script), [free_port(), *flags])

    status, output = forked(checkout, script_spawns)
    assert status == 0, output
    spawned = torch.load(checkout / "student-0-of-1")
    assert close(spawned, alone(checkout, "lens.safetensors"))


def test_spawned_processes_that_build_no_distiller_do_not_count(checkout: Path) -> None:
    script = checkout / "tools/idle.py"
    script.write_text(IDLE)
    status, output = forked(
        checkout, lambda: launch(["--host", "host", "--djip-lens", "identity", str(script)])
    )
    assert output.count("idle\n") == 2, output
    assert status == 2 and "the lens was never used" in output, output
