"""``python -m djip_ext.launch --djip-lens LENS tools/train.py --cfg ...``: an untouched script of a benchmark, with a lens.

The script runs as it would by itself: its arguments verbatim, its folder and the current one on the path, as ``__main__``,
with its own tracebacks.  Under torchrun: ``torchrun --nproc_per_node 2 -m djip_ext.launch --djip-lens LENS train.py ...``.
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
    """Run one script; what the user can mend ends as one line on stderr and exit status 2."""
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
        help="the benchmark's package (default: %(default)s); . when its distillers are no part of one",
    )
    parser.add_argument("script", help="the host's script, usually tools/train.py or tools/eval.py")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    flags = parser.parse_args(argv)
    try:
        script = Path(flags.script)
        if not script.is_file():
            raise DJIPError(
                f"there is no script {script}; name the host's, for example tools/train.py"
            )
        for folder in (os.getcwd(), str(script.resolve().parent)):
            sys.path[:] = [folder, *(entry for entry in sys.path if entry not in (folder, ""))]
        lens = activate(flags, flags.host, script, flags.arguments)
        shown = (
            _show_to_vanilla(flags.host, lens, flags.djip_any_teacher)
            if lens is not None and _evaluates(script)
            else None
        )
        run_script(flags.script, flags.arguments)
        if lens is not None and not (shown or teachers_behind_lens(flags.host)):
            raise DJIPError(
                f"{script} ended without building a distiller of {flags.host}: the lens was never used"
            )
    except DJIPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run_script(path: str, arguments: list[str]) -> None:
    """Execute the script at ``path`` as ``python path arguments...`` would; a DJIPError passes, other errors end the process."""
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
        error.__traceback__ = (
            error.__traceback__ and error.__traceback__.tb_next
        )  # without this frame
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


def _evaluates(script: Path) -> bool:
    """Whether the script builds no distiller but wraps one network in ``Vanilla``, as the hosts' eval.py does."""
    text = script.read_text(errors="replace")
    return "Vanilla" in text and "distiller_dict" not in text


def _show_to_vanilla(package: str, lens: JPEGLens | str, any_teacher: bool) -> list[Any]:
    """Put the lens in front of the network that eval.py evaluates; the list returned grows with every one."""
    distillers = importlib.import_module(module_name(package, "distillers"))
    cfg = importlib.import_module(module_name(package, "engine.cfg")).CFG
    vanilla, shown = distillers.Vanilla, []

    @functools.wraps(vanilla, updated=())
    def vanilla_with_lens(network: Any) -> Any:
        shown.append(network)
        return vanilla(put_behind(network, lens, cfg, any_teacher))

    distillers.Vanilla = vanilla_with_lens
    return shown


if __name__ == "__main__":
    main()
