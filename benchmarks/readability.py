"""How readable a checkout is, in numbers: a column for each checkout, so that two can be compared.

    git worktree add /tmp/old COMMIT
    python benchmarks/readability.py before=/tmp/old after=.

Measured is the package ``djip_ext`` alone.  Ruff and mypy judge every checkout by the rules in this
one's pyproject.toml.  Only ruff and mypy are needed beside Python; nothing is imported.
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RULES = Path(__file__).resolve().parents[1] / "pyproject.toml"
COLUMNS = 100

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A module of the package: its path, its lines and its syntax tree."""

    path: Path
    lines: list[str]
    tree: ast.Module


def read_sources(checkout: Path) -> list[Source]:
    """Every module of the package in ``checkout``.

    Raises:
        SystemExit: there is no package djip_ext.
    """
    paths = sorted((checkout / "djip_ext").rglob("*.py"))
    if not paths:
        sys.exit(f"error: {checkout} holds no package djip_ext; name the root of a checkout")
    texts = {path: path.read_text() for path in paths}
    return [Source(path, text.splitlines(), ast.parse(text)) for path, text in texts.items()]


def is_packed(node: ast.AST) -> bool:
    """Whether ``node`` assigns several values to several names: ``a, b = f(x), g(y)``."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
    )


def functions_of(tree: ast.Module) -> Iterator[Function]:
    """Every function, method and nested function of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_functions_of(node: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Functions of a module and methods of its classes, where no name begins with an underscore."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | Function) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from public_functions_of(child)
            else:
                yield child


def is_typed(function: Function) -> bool:
    """Whether every parameter but ``self`` and ``cls``, and the result, has a type."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters = [one for one in named if one.arg not in ("self", "cls")]
    parameters += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return function.returns is not None and all(one.annotation for one in parameters)


def longest_function(sources: list[Source]) -> str:
    """Lines of the longest function, with its name."""
    lengths = [
        (function.end_lineno - function.lineno + 1, f"{source.path.stem}.{function.name}")
        for source in sources
        for function in functions_of(source.tree)
        if function.end_lineno is not None
    ]
    length, name = max(lengths)
    return f"{length} ({name})"


def ruff_findings(checkout: Path) -> int:
    """Findings of ``ruff check`` in the package, by the rules of this checkout."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--exit-zero"]
    command += ["--config", str(RULES), "--output-format", "json", str(checkout / "djip_ext")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return len(json.loads(done.stdout))


def mypy_findings(checkout: Path) -> int:
    """Errors of ``mypy --strict`` in the package, by the rules of this checkout."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "mypy", "--config-file", str(RULES), "--strict"]
        command += ["--cache-dir", cache, "--no-error-summary", "--no-pretty", "djip_ext"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=checkout)
    if done.returncode not in (0, 1):
        sys.exit(f"error: mypy cannot check {checkout}: {done.stdout}{done.stderr}")
    return sum(": error: " in line for line in done.stdout.splitlines())


def measures(checkout: Path) -> dict[str, str]:
    """Name of a measure -> its value for ``checkout``, as text."""
    sources = read_sources(checkout)
    top = [source for source in sources if source.path.parent.name == "djip_ext"]
    lines = [line for source in sources for line in source.lines]
    nodes = [node for source in sources for node in ast.walk(source.tree)]
    public = [one for source in sources for one in public_functions_of(source.tree)]

    def per_thousand(count: int) -> str:
        return f"{1000 * count / len(lines):.1f}"

    def percent(count: int, of: int) -> str:
        return f"{100 * count / of:.1f}"

    return {
        "modules at the top": str(sum(source.path.name != "__init__.py" for source in top)),
        "longest function (lines)": longest_function(sources),
        f"lines over {COLUMNS} columns (%)": percent(
            sum(len(line) > COLUMNS for line in lines), len(lines)
        ),
        "packed assignments per 1,000 lines": per_thousand(sum(map(is_packed, nodes))),
        "conditional expressions per 1,000 lines": per_thousand(
            sum(isinstance(node, ast.IfExp) for node in nodes)
        ),
        "public functions documented (%)": percent(
            sum(ast.get_docstring(one) is not None for one in public), len(public)
        ),
        "public functions typed (%)": percent(sum(map(is_typed, public)), len(public)),
        "findings of ruff": str(ruff_findings(checkout)),
        "findings of mypy --strict": str(mypy_findings(checkout)),
    }


def main() -> None:
    """Print the measures as a Markdown table with a column per checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "checkouts", nargs="+", metavar="NAME=ROOT", help="a column, and its checkout"
    )
    columns = {}
    for argument in parser.parse_args().checkouts:
        name, _, root = argument.rpartition("=")
        columns[name or root] = measures(Path(root))
    print(f"| measure | {' | '.join(columns)} |")
    print("|---" * (1 + len(columns)) + "|")
    for measure in next(iter(columns.values())):
        print(f"| {measure} | {' | '.join(column[measure] for column in columns.values())} |")


if __name__ == "__main__":
    main()
