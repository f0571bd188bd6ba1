"""The README's promises: Python runs, commands parse, links lead somewhere, CI runs the tests."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import torch
from torch import nn

from djip_ext.cli.main import COMMANDS, command_parser
from djip_ext.hosts.activation import add_flags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "results").rglob("*.md")),
]
WRITTEN_BY_HAND = [
    *sorted(ROOT.glob("*.md")),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "hosts_table.md"),
    ROOT / "results" / "README.md",
]
WITH_TABLE = ("README.md", "docs/commands.md")
WITH_COMMANDS = (*WITH_TABLE, "docs/outside.md", "docs/tuning.md")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[str]:
    """Every line of a shell block, with its continuation lines."""
    found = "".join(
        block for name in WITH_COMMANDS for block in blocks("bash", (ROOT / name).read_text())
    )
    return found.replace("\\\n", " ").replace("&&\n", "&& ").splitlines()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 1000),
    )
    batch = torch.randn(8, 3, 16, 16).clamp(-2, 2), torch.tensor([3, 5] * 4)
    (example,) = blocks("python")
    scope = {"teacher": teacher, "loader": [batch], "images": batch[0]}
    band = "cmi_gain=(0.2, 0.4)"
    assert band in example
    quick = example.replace(band, f"{band}, rounds=1, progress=False")
    exec(compile(quick, "README.md", "exec"), scope)
    assert scope["logits"].shape == (8, 1000)
    assert Path("teacher.lens.safetensors").exists()


def test_ci_runs_the_test_command_word_for_word() -> None:
    command = blocks("bash")[1].strip()
    assert "pytest" in command and command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("document", WITH_TABLE)
def test_every_command_of_the_console_is_in_the_table_and_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    assert set(re.findall(r"^\| `djip (\w+)", text, flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("line", commands())
def test_every_command_has_the_arguments_that_it_is_given(line: str) -> None:
    *_, line = line.split("&& ")  # what comes before it makes an environment
    words = shlex.split(line)
    if Path(words[0]).name == "djip":
        parser, _ = command_parser(words[1])
        args, rest = parser.parse_known_args(words[1:])
        assert not any(word.startswith("-") for word in rest)
        assert args.command == words[1]
    elif words[:3] == ["python", "-m", "djip_ext.launch"]:
        parser = argparse.ArgumentParser()
        add_flags(parser, prefix="")
        args, rest = parser.parse_known_args(words[3:])
        assert rest[0] == "tools/train.py" and args.djip_lens
    else:
        assert words[-2:] == ["-m", "pytest"]


def test_configurations_of_the_commands_exist() -> None:
    text = "".join((ROOT / name).read_text() for name in WITH_COMMANDS if name != "README.md")
    named = re.findall(r"--cfg (configs/\S+)", text)
    assert named and all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", WRITTEN_BY_HAND, ids=lambda path: path.name)
def test_prose_is_wrapped_at_100_columns(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\||    |!\[", line)]
    assert [line for line in lines if len(line) > 100 and " " in line.strip()] == []


def test_files_that_the_documents_name_exist() -> None:
    kinds = r"`((?:tools|configs|djip_ext|docs|results|tests)/[\w./-]+\.(?:py|yaml|md|sh))`"
    for document in DOCUMENTS:
        for name in re.findall(kinds, document.read_text()):
            if Path(name).stem == "README" or not Path(name).stem.isupper():
                assert (ROOT / name).exists(), f"{document.name} names {name}"
