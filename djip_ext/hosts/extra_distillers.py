"""The paper's distillers that mdistiller lacks, put into a host's registry with their nodes."""

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

ADDITIONS = ("DIST", "WTTM", "CC", "FT", "ITRD", "LSKD")


def add_missing(package: str, registry: dict[str, Any]) -> Callable[[], None]:
    """Add to ``registry`` the distillers that it lacks, and their nodes to the host's ``CFG``.

    A name that the host uses already, in its registry or in ``<package>.engine.cfg.CFG``, is left
    alone; a host without such a ``CFG`` gets none.

    Returns:
        A function that takes nodes and hooks away again; the registry is the caller's to restore.
    """
    cfg: Any = getattr(_module(module_name(package, "engine.cfg")), "CFG", None)
    if cfg is None:
        return lambda: None
    missing = [name for name in ADDITIONS if name not in registry and name not in cfg]
    if not missing:
        return lambda: None
    from djip_ext.bench.distillers import distiller_defaults, distiller_dict

    for name in missing:
        registry[name] = distiller_dict[name]
        cfg[name] = type(cfg)(copy.deepcopy(distiller_defaults[name]))
    release_trainer = _pretrain_before_training(package)

    def remove() -> None:
        for name in missing:
            cfg.pop(name, None)
        release_trainer()

    return remove


def _pretrain_before_training(package: str) -> Callable[[], None]:
    """Let the host's trainer pretrain a method that asks for it (FT) before a fresh run.

    It calls ``distiller.pretrain(train_loader)``.
    """
    trainer = getattr(_module(module_name(package, "engine.trainer")), "BaseTrainer", None)
    if trainer is None:
        return lambda: None
    train = trainer.train

    @functools.wraps(train)
    def pretrain_and_train(self: Any, resume: bool = False, *args: Any, **kwargs: Any) -> Any:
        distiller = getattr(self.distiller, "module", self.distiller)
        ours = type(distiller).__module__.startswith("djip_ext.")
        if ours and hasattr(distiller, "pretrain") and not resume:
            distiller.pretrain(self.train_loader)
        return train(self, resume, *args, **kwargs)

    trainer.train = pretrain_and_train

    def release() -> None:
        trainer.train = train

    return release


def module_name(package: str, name: str) -> str:
    """The full name of a host's module.

    The package "." is a host whose packages stand at the top of its checkout.
    """
    return name if package == "." else f"{package}.{name}"


def _module(name: str) -> Any:
    """The module, or None when the host has none of that name."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
