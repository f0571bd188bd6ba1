"""What the benchmarks share: interleaved timing, peak memory, the machine, tables of results."""

import csv
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 2
) -> dict[str, float]:
    """Median seconds of each call.

    Every round runs each call once, in a new order, so that a busy machine and a cold cache hurt
    all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for index in range(warm_up + rounds):
        for name, call in order.sample(list(calls.items()), len(calls)):
            _wait()
            started = time.perf_counter()
            call()
            _wait()
            if index >= warm_up:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(call: Callable[[], object]) -> int | None:
    """What a call holds at most, beyond what was there before; None where the system does not tell.

    On a CPU this is the high-water mark of resident memory, which Linux can reset; run with
    MALLOC_MMAP_THRESHOLD_=65536, so that freed tensors are returned at once.
    """
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        call()
        return _resident("VmHWM") - before
    except OSError:
        return None


def _resident(field: str) -> int:
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )
    return 1024 * int(line.split()[1])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> str:
    """One line: processor, threads, memory, GPU, versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    threads = f"{torch.get_num_threads()} threads"
    hardware = f"{_processor()}, {threads}, {torch.backends.cpu.get_cpu_capability()}, {gpu}"
    return f"{hardware}; Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def write(rows: Sequence[Mapping[str, object]], path: Path, title: str) -> str:
    """Write the rows as ``path``.csv and ``path``.md; returns the Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="")
        table.writeheader()
        table.writerows(rows)
    lines = [title, "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += [
        "| " + " | ".join(_text(row.get(column, "")) for column in columns) + " |" for row in rows
    ]
    text = "\n".join(lines) + "\n"
    path.with_suffix(".md").write_text(text)
    return text


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
