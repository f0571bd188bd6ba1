"""``python -m djip_ext.launch --djip-lens LENS SCRIPT ...``: an untouched script with a lens.

The script runs as it would by itself: its arguments verbatim, its folder and the current one on
the path, as ``__main__``, with its own tracebacks.  Under torchrun:
``torchrun --nproc_per_node 2 -m djip_ext.launch --djip-lens LENS train.py ...``.
"""

import argparse
import builtins
import functools
import importlib
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from djip_ext.errors import DJIPError
from djip_ext.hosts.activation import activate, add_flags
from djip_ext.hosts.extra_distillers import module_name
from djip_ext.hosts.registry import put_behind, teachers_behind_lens
from djip_ext.lens.jpeg_lens import JPEGLens


def main(argv: Sequence[str] | None = None) -> None:
    """Run one script; an error that the user can fix is one line on stderr and exit status 2."""
    flags = _parser().parse_args(argv)
    try:
        _launch(flags)
    except DJIPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m djip_ext.launch",
        description="Run a script of mdistiller or a fork of it with a lens.",
        allow_abbrev=False,
    )
    add_flags(parser, prefix="")
    parser.add_argument(
        "--host",
        default="mdistiller",
        metavar="PACKAGE",
        help="the benchmark's package; . when its distillers are no part of one "
        "(default: %(default)s)",
    )
    parser.add_argument("script", help="the host's script, usually tools/train.py or tools/eval.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    return parser


def _launch(flags: argparse.Namespace) -> None:
    """Activate what the flags ask for and run the script; raises DJIPError for a lens unused."""
    script = Path(flags.script)
    if not script.is_file():
        raise DJIPError(f"there is no script {script}; name the host's, for example tools/train.py")
    for folder in (os.getcwd(), str(script.resolve().parent)):
        sys.path[:] = [folder, *(entry for entry in sys.path if entry not in (folder, ""))]
    lens = activate(flags, flags.host, script, flags.arguments)
    shown: list[Any] = []
    if lens is not None and _evaluates(script):
        shown = _put_before_vanilla(flags.host, lens, flags.djip_any_teacher)
    try:
        run_script(flags.script, flags.arguments)
    except SystemExit as end:
        if end.code not in (None, 0) or {"-h", "--help"} & set(flags.arguments):
            raise
    if lens is not None and not (shown or teachers_behind_lens(flags.host)):
        raise DJIPError(
            f"{script} ended without building a distiller of {flags.host}: the lens was never used"
        )


def run_script(path: str, arguments: list[str]) -> None:
    """Execute the script at ``path`` as ``python path arguments...`` would.

    Errors of the script end the process, with its own traceback.

    Raises:
        DJIPError: raised while the script ran.
    """
    sys.argv = [path, *arguments]
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__file__=path, __builtins__=builtins, __spec__=None)
    sys.modules["__main__"] = main_module
    code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    try:
        exec(code, main_module.__dict__)
    except DJIPError:
        raise
    except Exception as error:
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next  # without this frame
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


def _evaluates(script: Path) -> bool:
    """Whether the script wraps one network in ``Vanilla``, as the hosts' eval.py does.

    Such a script builds no distiller.
    """
    text = script.read_text(errors="replace")
    return "Vanilla" in text and "distiller_dict" not in text


def _put_before_vanilla(package: str, lens: JPEGLens | str, any_teacher: bool) -> list[Any]:
    """Put the lens in front of the network that eval.py evaluates.

    The list returned grows with every such network.
    """
    distillers: Any = importlib.import_module(module_name(package, "distillers"))
    cfg = importlib.import_module(module_name(package, "engine.cfg")).CFG
    vanilla = distillers.Vanilla
    shown: list[Any] = []

    @functools.wraps(vanilla, updated=())
    def vanilla_with_lens(network: Any) -> Any:
        shown.append(network)
        return vanilla(put_behind(network, lens, cfg, any_teacher))

    distillers.Vanilla = vanilla_with_lens
    return shown


if __name__ == "__main__":
    main()
