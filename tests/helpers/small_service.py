"""A teacher behind a service that writes down how many images each request holds."""

from pathlib import Path

TEACHER = "closed:service.py:teacher"
SERVICE = """
import torch
from djip_ext import ClosedTeacher

torch.manual_seed(0)
WEIGHT = torch.randn(3 * 16, CLASSES) * 2

def ask(images):
    with open("asked.txt", "a") as file:
        print(len(images), file=file)
    small = torch.nn.functional.adaptive_avg_pool2d((images[:, :, 1:] - images[:, :, :-1]).abs(), 4)
    return (small.flatten(1) @ WEIGHT).softmax(1).topk(3)

teacher = ClosedTeacher(ask, CLASSES, answers="probabilities", name="service v1")
"""


def write_service(folder: Path, classes: int) -> None:
    """Write the module of ``TEACHER``, which tells ``classes`` apart, into ``folder``."""
    (folder / "service.py").write_text(SERVICE.replace("CLASSES", str(classes)))


def images_asked(folder: Path) -> int:
    """How many images the service, run in ``folder``, was asked about; 0 before the first."""
    log = folder / "asked.txt"
    return sum(map(int, log.read_text().split())) if log.exists() else 0
