"""``import djip_ext.autoload``: one line in a benchmark's train.py gives it ``--djip-lens``.

Importing takes ``--djip-lens LENS``, ``--djip-any-teacher``, ``--djip-seed N`` and
``--djip-no-workaround NAME`` out of ``sys.argv``, wherever they stand, and puts the lens in place.
Without any of the first three nothing changes at all.
"""

import argparse
import atexit
import sys
import types
from pathlib import Path

from djip_ext.errors import DJIPError
from djip_ext.hosts.activation import activate, add_flags
from djip_ext.hosts.registry import teachers_behind_lens


def take_flags(argv: list[str]) -> argparse.Namespace:
    """Remove this package's flags from ``argv``, in place; the rest keeps its order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser, prefix="djip-")
    flags, argv[1:] = parser.parse_known_args(argv[1:])
    return flags


def benchmark() -> str:
    """The package, imported already, that has ``<package>.distillers.distiller_dict``.

    It is mdistiller when there is none yet.

    Raises:
        DJIPError: there are several.
    """
    found = [
        name.removesuffix("distillers").removesuffix(".") or "."
        for name, module in list(sys.modules.items())
        if f".{name}".endswith(".distillers")
        and not name.startswith(f"{__package__}.")
        and isinstance(getattr(module, "distiller_dict", None), dict)
    ]
    if len(found) > 1:
        raise DJIPError(
            f"{', '.join(found)} all have a distiller_dict; "
            "use python -m djip_ext.launch --host PACKAGE"
        )
    return found[0] if found else "mdistiller"


def warn_if_unused(package: str) -> None:
    """Say so when the script has ended without building a distiller."""
    if not teachers_behind_lens(package):
        print(
            f"djip: the lens was never used: no distiller of {package} was built with a teacher",
            file=sys.stderr,
        )


def in_one_line() -> None:
    """Let a DJIPError that ends the script be one line, as from the launcher."""
    show = sys.excepthook

    def show_line(
        kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
    ) -> None:
        if isinstance(error, DJIPError):
            print(f"error: {error}", file=sys.stderr)
        else:
            show(kind, error, trace)

    sys.excepthook = show_line


def main() -> None:
    """Do what the flags in ``sys.argv`` ask for; end the process when that cannot be."""
    flags = take_flags(sys.argv)
    if flags.djip_lens is None and flags.seed is None and not flags.djip_any_teacher:
        return
    try:
        package = benchmark()
        activate(flags, package, Path(sys.argv[0]), sys.argv)
    except DJIPError as error:
        sys.exit(f"error: {error}")
    in_one_line()
    if flags.djip_lens is not None:
        atexit.register(warn_if_unused, package)


main()
