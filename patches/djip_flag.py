"""Give a checkout's own train.py the flag --djip-lens, by one added line.

The checkout's other lines are not touched.

python patches/djip_flag.py show CHECKOUT      what would be done
python patches/djip_flag.py add CHECKOUT       do it
python patches/djip_flag.py remove CHECKOUT    undo it, byte for byte
"""

import argparse
import ast
import sys
from pathlib import Path

LINE = "import djip_ext.autoload  # gives this script --djip-lens"


def place(source: bytes) -> int:
    """The number of the line after which ours goes.

    It is where ``distiller_dict`` is imported from a benchmark's ``distillers``.

    Raises:
        ValueError: there is no such line.
    """
    for node in ast.parse(source).body:
        imports = isinstance(node, ast.ImportFrom) and (node.module or "").endswith("distillers")
        if imports and any(name.name == "distiller_dict" for name in node.names):
            return node.end_lineno or node.lineno
    raise ValueError(
        "has no 'from ... .distillers import distiller_dict' at its top level; "
        "use python -m djip_ext.launch"
    )


def added(source: bytes) -> bytes:
    """``source`` with our line, ended as its neighbours are; raises ValueError if it has it."""
    if LINE.encode() in source:
        raise ValueError("has the line already")
    lines = source.splitlines(keepends=True)
    number = place(source)
    before = lines[number - 1]
    ending = before[len(before.rstrip(b"\r\n")) :]
    if not ending:  # the last line of a file that does not end in a line break
        return source + b"\n" + LINE.encode()
    return b"".join([*lines[:number], LINE.encode() + ending, *lines[number:]])


def removed(source: bytes) -> bytes:
    """``source`` without our line; raises ValueError when it does not have it."""
    if LINE.encode() not in source:
        raise ValueError("does not have the line; there is nothing to undo")
    lines = source.splitlines(keepends=True)
    rest = b"".join(line for line in lines if line.rstrip(b"\r\n") != LINE.encode())
    if lines[-1] == LINE.encode():  # added at the end, after a line break of ours
        return rest[:-1]
    return rest


def main() -> None:
    """Add, remove or show the line, as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["show", "add", "remove"])
    parser.add_argument("checkout", type=Path, help="folder of mdistiller or of a fork")
    parser.add_argument(
        "--script", default="tools/train.py", help="the script inside it (default: %(default)s)"
    )
    args = parser.parse_args()
    path = args.checkout / args.script
    try:
        source = path.read_bytes()
        result = removed(source) if args.action == "remove" else added(source)
        if args.action == "show":
            print(f"{path}: after line {place(source)} this line is added:\n+{LINE}")
            return
        path.write_bytes(result)
    except (OSError, SyntaxError, ValueError) as error:
        sys.exit(f"error: {path} {error.strerror if isinstance(error, OSError) else error}")
    print(f"{path}: line {'added' if args.action == 'add' else 'removed'}")


if __name__ == "__main__":
    main()
