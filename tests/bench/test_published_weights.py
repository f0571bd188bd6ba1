"""The table of docs/distillers.md and the configuration files say the same of every pair."""

from pathlib import Path

import pytest

from djip_ext.bench.engine.cfg import load_cfg

ROOT = Path(__file__).parents[2]


def table() -> dict[tuple[str, str], dict[str, float]]:
    """(teacher, student) -> key -> value, for the pairs of CIFAR-100."""
    lines = (ROOT / "docs" / "distillers.md").read_text().partition("| pair |")[2].splitlines()
    keys = [cell.strip(" `") for cell in lines[0].split("|") if cell.strip()]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines[2:]
        if line.startswith("|") and "ImageNet" not in line
    ]
    return {
        tuple(row[0].split(" - ")): {
            key: float(cell) for key, cell in zip(keys, row[1:], strict=True) if cell
        }
        for row in rows
    }


def test_the_table_is_that_of_the_13_pairs() -> None:
    assert (
        len(table()) == 13 and sum(len(values) for values in table().values()) == 13 * 5 - 2
    )  # two betas of DKD are not published


@pytest.mark.parametrize("method", ["WTTM", "ITRD", "DKD"])
def test_every_file_has_the_weights_of_the_table(method: str) -> None:
    seen = set()
    for path in (ROOT / "configs" / "cifar100" / method.lower()).glob("*.yaml"):
        cfg = load_cfg(str(path))
        pair = (cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT)
        for key, value in table()[pair].items():
            if key.startswith(f"{method}."):
                node = cfg
                for name in key.split("."):
                    node = node[name]
                assert node == value, f"{path.name}: {key}"
                seen.add(pair)
    assert seen == {
        pair for pair, values in table().items() if any(key.startswith(method) for key in values)
    }
