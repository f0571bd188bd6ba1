"""The console command ``djip COMMAND``; ``tools/`` holds some commands as scripts."""

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from djip_ext.errors import Busy, DJIPError

COMMANDS = {
    "demo": "train a teacher, fit its lens, distil students with and without it, "
    "draw the pictures: five minutes, offline",
    "train": "train a teacher or distil a student on the embedded benchmark",
    "eval": "evaluate a network, plain or behind a lens, on the test images (tools/eval.py)",
    "fit": "fit a lens for a teacher (tools/train_lens.py)",
    "compare": "compare arms of students over paired seeds",
    "reproduce": "make a whole table from its file: teachers, lenses, students; "
    "skips what is done, resumes what was interrupted",
    "tune": "choose what goes before a teacher by short paired students on held-out training "
    "images",
    "report": "a table from the records of its runs: Markdown, CSV, LaTeX, pictures",
    "audit": "can a model be distilled? knockoff students against students from labels alone",
    "collect": "the records of finished runs as a few files to keep: runs.csv, curves.csv, "
    "configs/, lenses/",
    "encode": "write a folder of images as JPEG files with a lens's tables",
    "inspect": "show what a lens is and does (tools/inspect_lens.py)",
}
MODULES = {name: name for name in COMMANDS} | {
    "eval": "evaluate",
    "fit": "train_lens",
    "inspect": "inspect_lens",
}

# what a user can do about an error of the operating system, by its number
CURES = {
    errno.ENOSPC: "free some, then go on with --resume: what was finished is safe",
    errno.ENOTDIR: "a file stands where a folder should be, choose another place",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; an error that the user can fix is one line on stderr and exit status 2."""
    try:
        run_command(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:  # of "djip ... | head": who reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except DJIPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL if isinstance(error, Busy) else 2)
    except OSError as error:
        if error.errno not in CURES:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(
            f"error: {os.strerror(error.errno)}{where}; {CURES[error.errno]}",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; train and fit continue with --resume", file=sys.stderr)
        sys.exit(130)


def run_command(argv: Sequence[str]) -> None:
    """Parse ``argv`` and run the command that it names.

    Raises:
        DJIPError: anything the user can fix.
    """
    argv = list(argv)
    parser, module = command_parser(argv[0] if argv else None)
    args, rest = parser.parse_known_args(argv)
    if rest:  # KEY VALUE pairs may stand on either side of a flag
        if not hasattr(args, "options") or any(word.startswith("-") for word in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.options += rest
    module.run(args)


def command_parser(chosen: str | None) -> tuple[argparse.ArgumentParser, Any]:
    """The parser of all commands, and the module of the command ``chosen``.

    Only the chosen command has its arguments: the imports of the others would delay it.
    """
    module = None
    parser = argparse.ArgumentParser(
        "djip", description="Amplify a frozen teacher with a fitted JPEG lens."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in COMMANDS.items():
        command = commands.add_parser(name, help=description, description=description)
        if name == chosen:
            module = importlib.import_module(f".{MODULES[name]}", __package__)
            module.add_arguments(command)
    return parser, module


if __name__ == "__main__":
    main()
