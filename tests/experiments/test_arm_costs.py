"""What the arms of a table cost, from hand-made records."""

import json
from pathlib import Path

import yaml
from test_report import record

from djip_ext.cli.main import main
from djip_ext.experiments.arm_costs import ArmCost, arm_costs, cost_lines
from djip_ext.experiments.lenses import TableLens
from djip_ext.experiments.runs import read_runs


def change(tree: Path, arm: str, **fields: object) -> None:
    """Add ``fields`` to the results below ``arm``; ``checkpoint`` goes to their configuration."""
    for path in tree.glob(f"{arm}/**/result.json"):
        result = json.loads(path.read_text())
        config = yaml.safe_load(result["config"])
        if "checkpoint" in fields:
            config["BENCH"]["TEACHER_CHECKPOINT"] = fields["checkpoint"]
        config["EXPERIMENT"]["PROJECT"] = config["EXPERIMENT"]["PROJECT"].replace("/djip-none", "")
        result |= {key: value for key, value in fields.items() if key != "checkpoint"}
        path.write_text(json.dumps(result | {"config": yaml.safe_dump(config)}))


def tree_of(root: Path) -> Path:
    record(root, "MCMI", "teachers", 0, 79, lens="none")
    change(root, "teachers", seconds=500)
    folder = next((root / "teachers").rglob("seed-0")).relative_to(root)
    for arm in ("plain", "mcmi", "ckd", "tald"):
        record(root, "KD", arm, 0, 70, lens="identity")
        record(root, "KD", arm, 1, 71, lens="identity")
    change(root, "mcmi", checkpoint=f"output/t/{folder}/student_last.pth", seconds=100)
    change(root, "ckd", ckd={"teacher_passes": 880, "qualities": {}})
    change(root, "tald", adversarial_teacher_passes=12)
    change(root, "tald/**/seed-1", adversarial_teacher_passes=15)
    return root


def test_costs_come_from_the_runs_that_made_them(tmp_path: Path) -> None:
    costs = arm_costs(read_runs(tree_of(tmp_path)), [])
    assert costs == {
        "plain": ArmCost(None, None, None, 3600.0),
        "mcmi": ArmCost(500.0, None, None, 100.0),
        "ckd": ArmCost(None, None, 880, 3600.0),
        "tald": ArmCost(None, None, 14, 3600.0),
    }
    lines = cost_lines(costs, ["plain", "mcmi", "ckd"])
    assert lines[1:] == [
        ["plain", "", "", "", "3,600"],
        ["mcmi", "500", "", "", "100"],
        ["ckd", "", "", "880", "3,600"],
    ]
    assert cost_lines(costs, ["plain"]) == []


def test_a_report_has_them(tmp_path: Path) -> None:
    main(["report", str(tree_of(tmp_path / "runs")), "--out", str(tmp_path / "out")])
    assert "| mcmi | 500 |  |  | 100 |" in (tmp_path / "out/table.md").read_text()


def test_of_several_teachers_the_mean_counts(tmp_path: Path) -> None:
    tree = tree_of(tmp_path)
    record(tree, "KD", "mcmi", 2, 70, lens="identity")
    record(tree, "MCMI", "teachers/other", 0, 79, lens="none")
    change(tree, "teachers/other", seconds=700)
    other = next((tree / "teachers/other").rglob("seed-0")).relative_to(tree)
    change(tree, "mcmi/**/seed-2", checkpoint=f"output/t/{other}/student_last.pth")
    lenses = [TableLens("", "mcmi", "", {"seconds": seconds}, None) for seconds in (10, 20)]
    cost = arm_costs(read_runs(tree), lenses)["mcmi"]
    assert (cost.training, cost.fit) == (600.0, 15.0)
