"""The README's promises: its Python runs, its commands parse, its links lead somewhere, CI runs its test command."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from djip_ext.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "results").rglob("*.md")),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    teacher = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 1000),
    )
    batch = torch.randn(2, 3, 16, 16).clamp(-2, 2), torch.tensor([3, 5])
    (example,) = blocks("python")
    scope = {"teacher": teacher, "loader": [batch], "images": batch[0]}
    exec(
        compile(
            example.replace("cmi_gain=(0.2, 0.4)", "cmi_gain=(0.2, 0.4), rounds=1, progress=False"),
            "README.md",
            "exec",
        ),
        scope,
    )
    assert scope["logits"].shape == (2, 1000) and Path("teacher.lens.safetensors").exists()


def test_ci_runs_the_test_command_word_for_word() -> None:
    command = blocks("bash")[1].strip()
    assert "pytest" in command and command in (ROOT / ".ci" / "run").read_text()


def test_every_command_of_the_console_is_in_the_table_and_exists() -> None:
    assert set(re.findall(r"^\| `djip (\w+)", README, flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(
        r"`((?:tools|configs|djip_ext|docs|results)/[\w./-]+\.(?:py|yaml|md|sh))`", README
    ):
        assert (ROOT / name).exists(), name
