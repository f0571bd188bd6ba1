"""``djip train | fit | inspect | demo``: the console command; ``tools/`` holds the same as scripts."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from ..errors import DJIPError

COMMANDS = {
    "demo": "train a teacher, fit its lens, distil students with and without it, draw the pictures: five minutes, offline",
    "train": "train a teacher or distil a student on the embedded benchmark",
    "fit": "fit a lens for a teacher (tools/train_lens.py)",
    "inspect": "show what a lens is and does (tools/inspect_lens.py)",
}
MODULES = {"demo": "demo", "train": "train", "fit": "train_lens", "inspect": "inspect_lens"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; what the user can mend ends as one line on stderr and exit status 2."""
    parser = argparse.ArgumentParser("djip", description="Amplify a frozen teacher with a fitted JPEG lens.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    runners = {}
    for name, description in COMMANDS.items():
        module = importlib.import_module(f".{MODULES[name]}", __package__)
        module.add_arguments(commands.add_parser(name, help=description, description=description))
        runners[name] = module.run
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    try:
        runners[args.command](args)
    except DJIPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command with --resume continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
