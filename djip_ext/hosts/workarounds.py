"""Faults of mdistiller and its forks that would ruin a run, each with its workaround.

They are in one list, :data:`WORKAROUNDS`.  A workaround changes the running process only, never
the host's files; it says in one line what it did, or stops with what the user has to do.
``--no-workaround NAME`` switches one off.
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from djip_ext.errors import DJIPError
from djip_ext.hosts.extra_distillers import module_name

# What raises without a driver, although there is nothing to do on a CPU.
GPU_ONLY = (
    "set_device",
    "synchronize",
    "reset_peak_memory_stats",
    "reset_accumulated_memory_stats",
    "reset_max_memory_allocated",
    "reset_max_memory_cached",
)


@dataclass(frozen=True)
class Host:
    """What a workaround may need to know.

    Attributes:
        package: the host's package; "." when its distillers are no part of one.
        script: the script about to run.
        tag: what sets this run's folder apart from the plain one, such as
            ``djip-1a2b3c4d/seed-0``; empty when nothing does.
        resume: whether the script was asked to go on with an earlier run.
    """

    package: str
    script: Path
    tag: str
    resume: bool


@dataclass(frozen=True)
class Workaround:
    """A fault of hosts; ``apply`` returns the line to print, or None for nothing."""

    name: str
    fault: str
    apply: Callable[[Host], str | None]


def apply_workarounds(host: Host, switched_off: Collection[str] = ()) -> list[str]:
    """Apply every workaround that is not switched off; return what they say.

    Raises:
        DJIPError: an unknown name in ``switched_off``, or a fault that only the user can remedy.
    """
    names = [workaround.name for workaround in WORKAROUNDS]
    for name in switched_off:
        if name not in names:
            raise DJIPError(
                f"there is no workaround '{name}'; the workarounds are {', '.join(names)}"
            )
    said = []
    for workaround in WORKAROUNDS:
        if workaround.name not in switched_off:
            line = workaround.apply(host)
            if line is not None:
                said.append(f"djip: {line} [workaround {workaround.name}]")
    return said


def own_checkout_first(host: Host) -> str | None:
    """Import the package from the checkout that the script belongs to."""
    parts = module_name(host.package, "distillers").split(".")
    top = parts[0]
    checkout = next(
        (folder for folder in host.script.resolve().parents if folder.joinpath(*parts).is_dir()),
        None,
    )
    if checkout is None:
        return None  # a script of one's own, for an installed package
    found = _folder(top)
    if found == checkout / top:
        return None
    if top in sys.modules:
        raise DJIPError(
            f"{top} is imported already, from {found}, not from {checkout}; start in {checkout}"
        )
    sys.path.insert(0, str(checkout))
    importlib.invalidate_caches()
    instead = f", not from {found.parent}" if found else ""
    return f"{top} is taken from the script's own checkout {checkout}{instead}"


def require_scipy(host: Host) -> str | None:
    """Stop where scipy is imported and missing: OFD needs it, mdistiller does not declare it."""
    top, *rest = module_name(host.package, "distillers").split(".")
    folder = _folder(top)
    if folder is None or importlib.util.find_spec("scipy") is not None:
        return None
    sources = (path.read_text(errors="replace") for path in folder.joinpath(*rest).glob("*.py"))
    if any("from scipy" in text or "import scipy" in text for text in sources):
        raise DJIPError(
            f"{host.package} imports scipy, which its requirements forget; pip install scipy"
        )
    return None


def _folder(top: str) -> Path | None:
    """Where the top-level package of that name would be imported from, None when there is none."""
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def without_wandb(host: Host) -> str | None:
    """Switch W&B off before the configuration is frozen.

    Where the package is missing, hosts import an empty one.
    """

    def switch_off(cfg: Any) -> None:
        if "LOG" in cfg and "WANDB" in cfg.LOG:
            cfg.LOG.WANDB = False

    _before_freeze(switch_off)
    if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        stand_in = types.ModuleType("wandb")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("wandb", None)  # for find_spec
        sys.modules["wandb"] = stand_in
    return "Weights & Biases is off"


def cuda_means_cpu(host: Host) -> str | None:
    """Where there is no GPU, let ``.cuda()`` stay on the CPU and processes talk by gloo.

    The functions of ``torch.cuda`` in :data:`GPU_ONLY` do nothing then.
    """
    if torch.cuda.is_available():
        return None

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    torch.Tensor.cuda = stay  # type: ignore[method-assign]
    torch.nn.Module.cuda = stay  # type: ignore[method-assign]
    for name in GPU_ONLY:
        setattr(torch.cuda, name, nothing)
    if torch.distributed.is_available():
        _distribute_over_cpus()
    return "there is no GPU, .cuda() stays on the CPU"


def _distribute_over_cpus() -> None:
    """Take ``nccl`` for ``gloo``, and no device for the one DistributedDataParallel is given."""
    start = torch.distributed.init_process_group
    replicated = torch.nn.parallel.DistributedDataParallel
    build = replicated.__init__

    @functools.wraps(start)
    def start_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        start("gloo" if backend == "nccl" else backend, *args, **kwargs)

    @functools.wraps(build)
    def build_on_cpu(
        self: Any,
        module: Any,
        device_ids: Any = None,
        output_device: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        build(self, module, None, None, *args, **kwargs)

    torch.distributed.init_process_group = start_gloo
    replicated.__init__ = build_on_cpu  # type: ignore[method-assign]


def resume_after_decay(host: Host) -> str | None:
    """Allow torch.load the numpy number that a host's learning rate becomes at the first decay."""
    if not hasattr(torch.serialization, "add_safe_globals"):
        return None  # a torch that does not restrict what it loads
    import numpy as np

    number = np.float64(0)
    torch.serialization.add_safe_globals([number.__reduce__()[0], np.dtype, type(number.dtype)])
    return None  # nothing that a user would see


def separate_folders(host: Host) -> str | None:
    """Give a run with a lens or a seed a folder of its own, and never write over another run."""

    def append_tag(cfg: Any) -> None:
        if "EXPERIMENT" not in cfg or not host.tag:
            return
        if "PROJECT" not in cfg.EXPERIMENT:
            raise DJIPError(
                "the host has no EXPERIMENT.PROJECT to set this run apart by; "
                "name a folder of its own and add --no-workaround folders"
            )
        if not cfg.EXPERIMENT.PROJECT.endswith(host.tag):
            cfg.EXPERIMENT.PROJECT += f"/{host.tag}"

    _before_freeze(append_tag)
    _before_log(functools.partial(_check_folder, host))
    return None  # said when the folder is known


def _check_folder(host: Host, folder: Path) -> None:
    """Refuse ``folder``, where the run is about to log, if it is not for this run."""
    if host.tag and host.tag not in folder.as_posix():
        raise DJIPError(
            f"the run would go to {folder}, among runs without {host.tag}; "
            "let the host freeze its configuration first"
        )
    if (folder / "latest").exists() and not host.resume:
        raise DJIPError(
            f"{folder} holds a run already; add --resume, move it away, "
            "or write over it with --no-workaround folders"
        )
    if host.resume and not _checkpoint_named() and not _holds_checkpoint(folder):
        raise DJIPError(
            f"--resume finds no checkpoint in {folder}; leave it out to start that run, "
            "or give lens and seed of the run that you mean"
        )
    if host.tag:
        print(f"djip: the run goes to {folder} [workaround folders]", file=sys.stderr, flush=True)


def _holds_checkpoint(folder: Path) -> bool:
    """Whether there is more in ``folder`` than logs."""
    return any(
        path.is_file() and path.suffix != ".txt" and "tfevents" not in path.name
        for path in folder.rglob("*")
    )


def _checkpoint_named() -> bool:
    """Whether the script's arguments name a file to resume from."""
    after = sys.argv[sys.argv.index("--resume") + 1 :][:1] if "--resume" in sys.argv else []
    return any(Path(word).exists() for word in after)


def one_group(host: Host) -> str | None:
    """Stop a script under torchrun whose processes train side by side, unaware of each other.

    They are found out when the script opens its log, and at the latest when it takes a step.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        return None

    def check(*_: Any) -> None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise DJIPError(
                f"{processes} processes were started, but {host.script} does not join them "
                "(no init_process_group): each would train alone and write over the others; "
                "start it without torchrun, or, if it joins them later, add "
                "--no-workaround torchrun"
            )

    _before_log(check)
    register_optimizer_step_pre_hook(check)
    return None


def _before_log(check: Callable[[Path], None]) -> None:
    """Call ``check(folder)`` when a host opens its log there: every host does before it trains."""
    import tensorboardX

    start = tensorboardX.SummaryWriter.__init__

    @functools.wraps(start)
    def check_and_start(self: Any, logdir: str | None = None, *args: Any, **kwargs: Any) -> None:
        if logdir is not None:
            check(Path(logdir).parent)
        start(self, logdir, *args, **kwargs)

    tensorboardX.SummaryWriter.__init__ = check_and_start


def _before_freeze(change: Callable[[Any], None]) -> None:
    """Run ``change(cfg)`` whenever a configuration is about to be frozen."""
    from yacs.config import CfgNode

    freeze = CfgNode.freeze

    @functools.wraps(freeze)
    def change_and_freeze(cfg: Any) -> None:
        if not cfg.is_frozen():
            change(cfg)
        freeze(cfg)

    CfgNode.freeze = change_and_freeze


WORKAROUNDS = (
    Workaround(
        "path",
        "another installed copy shadows the checkout, or none is found at all",
        own_checkout_first,
    ),
    Workaround("scipy", "scipy is needed and not declared", require_scipy),
    Workaround(
        "wandb",
        "W&B is on by default, and its fallback writes to a frozen configuration",
        without_wandb,
    ),
    Workaround("cpu", ".cuda() everywhere", cuda_means_cpu),
    Workaround("resume", "--resume fails once the learning rate has decayed", resume_after_decay),
    Workaround("folders", "runs with another lens or seed write over each other", separate_folders),
    Workaround(
        "torchrun", "processes of torchrun that do not join write over each other", one_group
    ),
)
