"""Faults of mdistiller and its forks that would ruin a run, each with its cure, in one list: :data:`CURES`.

A cure changes the running process only, never the host's files; it says in one line what it did, or stops with what the
user has to do.  ``--no-cure NAME`` switches one off.
"""

import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from djip_ext.errors import DJIPError
from djip_ext.hosts.extra_distillers import module_name


@dataclass(frozen=True)
class Host:
    """What a cure may need to know.

    ``script`` is the script about to run; ``tag`` is what sets this run's folder apart from the plain one, such as
    ``djip-1a2b3c4d/seed-0``, empty when nothing does.
    """

    package: str
    script: Path
    tag: str
    resume: bool


@dataclass(frozen=True)
class Cure:
    """``apply`` returns the line to print, or None when the fault is not there."""

    name: str
    fault: str
    apply: Callable[[Host], str | None]


def apply_cures(host: Host, switched_off: Collection[str] = ()) -> list[str]:
    """Apply every cure that is not switched off; returns what they say.

    Raises:
        DJIPError: an unknown name in ``switched_off``, or a fault that only the user can cure.
    """
    names = [cure.name for cure in CURES]
    for name in switched_off:
        if name not in names:
            raise DJIPError(f"there is no cure '{name}'; the cures are {', '.join(names)}")
    said = [(cure.name, cure.apply(host)) for cure in CURES if cure.name not in switched_off]
    return [f"djip: {line} [cure {name}]" for name, line in said if line]


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
    return f"{top} is taken from the script's own checkout {checkout}" + (
        f", not from {found.parent}" if found else ""
    )


def require_scipy(host: Host) -> str | None:
    """OFD imports scipy, which the requirements of mdistiller do not name."""
    top, *rest = module_name(host.package, "distillers").split(".")
    folder = _folder(top)
    sources = (
        [path.read_text(errors="replace") for path in folder.joinpath(*rest).glob("*.py")]
        if folder
        else []
    )
    if importlib.util.find_spec("scipy") is None and any(
        "from scipy" in text or "import scipy" in text for text in sources
    ):
        raise DJIPError(
            f"{host.package} imports scipy, which its requirements forget; pip install scipy"
        )
    return None


def _folder(top: str) -> Path | None:
    """Where the top-level package of that name would be imported from, None when there is none."""
    spec = importlib.util.find_spec(top)
    return (
        None
        if spec is None or not spec.submodule_search_locations
        else Path(next(iter(spec.submodule_search_locations))).resolve()
    )


def without_wandb(host: Host) -> str | None:
    """Switch W&B off before the configuration is frozen; where the package is missing, let hosts import an empty one."""

    def switch_off(cfg: Any) -> None:
        if "LOG" in cfg and "WANDB" in cfg.LOG:
            cfg.LOG.WANDB = False

    _before_freeze(switch_off)
    if "wandb" not in sys.modules and importlib.util.find_spec("wandb") is None:
        sys.modules["wandb"] = types.ModuleType("wandb")
    return "Weights & Biases is off"


def cuda_means_cpu(host: Host) -> str | None:
    """Where there is no GPU, ``.cuda()`` gives back the tensor or the module itself, and processes talk by gloo."""
    if torch.cuda.is_available():
        return None

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    torch.Tensor.cuda = torch.nn.Module.cuda = stay  # type: ignore[method-assign, assignment]
    torch.cuda.set_device = lambda device: None
    if torch.distributed.is_available():
        _distribute_over_cpus()
    return "there is no GPU, .cuda() stays on the CPU"


def _distribute_over_cpus() -> None:
    """Take ``nccl`` for ``gloo``, and no device for the one that DistributedDataParallel is told."""
    start, replicated = (
        torch.distributed.init_process_group,
        torch.nn.parallel.DistributedDataParallel,
    )
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
    """Allow torch.load the numpy number that the host's learning rate becomes at the first decay."""
    if not hasattr(torch.serialization, "add_safe_globals"):
        return None  # a torch that does not restrict what it loads
    import numpy as np

    number = np.float64(0)
    torch.serialization.add_safe_globals([number.__reduce__()[0], np.dtype, type(number.dtype)])
    return None  # nothing that a user would see


def separate_folders(host: Host) -> str | None:
    """Give a run with a lens or a seed a folder of its own, and refuse to write over a finished one."""

    def append_tag(cfg: Any) -> None:
        if "EXPERIMENT" not in cfg or not host.tag:
            return
        if "PROJECT" not in cfg.EXPERIMENT:
            raise DJIPError(
                "the host has no EXPERIMENT.PROJECT to set this run apart by; name a folder of its own and add --no-cure folders"
            )
        if not cfg.EXPERIMENT.PROJECT.endswith(host.tag):
            cfg.EXPERIMENT.PROJECT += f"/{host.tag}"

    _before_freeze(append_tag)
    import tensorboardX

    start = tensorboardX.SummaryWriter.__init__

    @functools.wraps(start)
    def check_and_start(self: Any, logdir: str | None = None, *args: Any, **kwargs: Any) -> None:
        if (
            logdir is not None
        ):  # every host opens its log, in the folder of the run, before it trains
            folder = Path(logdir).parent
            if host.tag and host.tag not in folder.as_posix():
                raise DJIPError(
                    f"the run would go to {folder}, among runs without {host.tag}; let the host freeze its configuration first"
                )
            if (folder / "latest").exists() and not host.resume:
                raise DJIPError(
                    f"{folder} holds a run already; add --resume, move it away, or write over it with --no-cure folders"
                )
            if host.tag:
                print(f"djip: the run goes to {folder} [cure folders]", file=sys.stderr, flush=True)
        start(self, logdir, *args, **kwargs)

    tensorboardX.SummaryWriter.__init__ = check_and_start
    return None  # said when the folder is known


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


CURES = (
    Cure(
        "path",
        "another installed copy shadows the checkout, or none is found at all",
        own_checkout_first,
    ),
    Cure("scipy", "scipy is needed and not declared", require_scipy),
    Cure(
        "wandb",
        "W&B is on by default, and its fallback writes to a frozen configuration",
        without_wandb,
    ),
    Cure("cpu", ".cuda() everywhere", cuda_means_cpu),
    Cure("resume", "--resume fails once the learning rate has decayed", resume_after_decay),
    Cure("folders", "runs with another lens or seed write over each other", separate_folders),
)
