"""Run Python in several processes of one group, in the environment that torchrun gives them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

PROLOGUE = """
import json, os, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from djip_ext.utils.distributed import *
from djip_ext.utils.distributed import joined
from djip_ext import *
from helpers.textures import *
answer = {{}}
with joined():
"""


def environments(count: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        shared | {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(count)
    ]


def together(folder: Path, count: int, body: str) -> list[dict[str, Any]]:
    """Run ``body``, which fills a dict ``answer``, in ``count`` processes.

    Returns their answers by rank.
    """
    script = folder / "body.py"
    target = f"os.path.join({str(folder)!r}, f'answer-{{rank()}}.json')"
    lines = [
        *body.strip().splitlines(),
        f"with open({target}, 'w') as file: file.write(json.dumps(answer))",
    ]
    script.write_text(
        PROLOGUE.format(tests=str(Path(__file__).parents[1]))
        + "".join(f"    {line}\n" for line in lines)
    )
    started = [
        subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, env=e)
        for e in environments(count)
    ]
    errors = [process.communicate(timeout=200)[1] for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(
        error[-2000:] for error in errors
    )
    return [json.loads((folder / f"answer-{rank}.json").read_text()) for rank in range(count)]
