"""Run Python in several processes of one group, in the environment that torchrun gives them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

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


def run_together(command: list[str], count: int) -> list["subprocess.CompletedProcess[str]"]:
    """Run ``command`` in ``count`` processes of one group; how each of them ended, by rank."""
    # This process keeps the group's store, as torchrun does: nobody can take the port in between.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(count),
    }
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(command, env=shared | {"RANK": rank, "LOCAL_RANK": rank}, **pipes)
        for rank in map(str, range(count))
    ]
    try:
        printed = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    return [
        subprocess.CompletedProcess(command, process.returncode, *texts)
        for process, texts in zip(started, printed, strict=True)
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
    ended = run_together([sys.executable, str(script)], count)
    assert all(process.returncode == 0 for process in ended), "\n".join(
        process.stderr[-2000:] for process in ended
    )
    return [json.loads((folder / f"answer-{rank}.json").read_text()) for rank in range(count)]
