"""Axes over options: ``vary`` in a table, its folders, and the rows, columns and pictures of the report."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from djip_ext.bench import axes
from djip_ext.bench.plan import make_plan
from djip_ext.bench.run import run_folder
from djip_ext.bench.table import load_table
from djip_ext.commands.main import main
from djip_ext.errors import DJIPError

ROOT = Path(__file__).parents[2]
TABLE = {
    "configs": f"{ROOT}/configs/cifar100/fewshot/{{distiller}}_{{pair}}.yaml",
    "pairs": ["vgg8_resnet8"],
    "distillers": ["KD"],
    "arms": {"plain": "identity", "soft": "temperature:2"},
    "teachers": {"vgg8": "vgg8.pth"},
    "seeds": 3,
    "options": {"student": {"KD.TEMPERATURE": 7, "BENCH.VIEWS": 16}},
    "vary": {"KD.TEMPERATURE": [1, 4, 10], "BENCH.FRACTION": [0.05, 0.2]},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vgg8.pth").touch()


def table(**changes: object) -> Path:
    Path("t.yaml").write_text(yaml.safe_dump(TABLE | changes, sort_keys=False))
    return Path("t.yaml")


def test_every_combination_is_a_student_in_a_folder_of_its_own() -> None:
    plan = make_plan(load_table(table()), "out")
    assert len(plan) == load_table("t.yaml").students == 3 * 2 * 2 * 3
    assert len({run_folder(step.cfg()) for step in plan}) == len(plan)
    assert [step.seed for step in plan] == sorted(step.seed for step in plan)  # seeds outermost
    last = plan[-1]
    cfg = last.settings()
    assert (cfg.KD.TEMPERATURE, cfg.BENCH.FRACTION, cfg.BENCH.VIEWS) == (10, 0.2, 16)
    assert last.name == "KD vgg8_resnet8,KD.TEMPERATURE=10,BENCH.FRACTION=0.2, soft, seed 2"
    assert str(run_folder(last.cfg())) == "out/soft/djip-temperature-2/kd_vgg8_resnet8,KD.TEMPERATURE=10,BENCH.FRACTION=0.2/seed-2"


@pytest.mark.parametrize(
    "vary, names",
    [
        ({"KD.TEMPERATURE": []}, "takes a list"),
        ({"KD.TEMPERATURE": 3}, "takes a list"),
        ({"KD.TEMPERATURE": [1, 1]}, "twice"),
        ({"BENCH.TEACHER_CHECKPOINT": ["a/b"]}, "name folders"),
        ({"KD.TEMPER": [1]}, "TEMPER"),
        ({"DISTILLER.TEACHER": ["vgg8"]}, "axes already"),
        ([1], "vary is"),
    ],
)
def test_a_mistake_is_named(vary: object, names: str) -> None:
    with pytest.raises(DJIPError, match=names):
        make_plan(load_table(table(vary=vary)), "out")


def test_names_and_values_are_read_back() -> None:
    values = {"KD.TEMPERATURE": 10, "BENCH.SCHEDULE": "cosine", "BENCH.FRACTION": 0.05}
    row = "KD" + axes.of_name("kd_vgg8_resnet8" + axes.suffix(values))
    assert axes.split(row) == ("KD", values) and axes.of_name("kd,vgg8,resnet8") == ""
    assert axes.order(["KD,T=10", "KD,T=9.5", "KD,T=1"]) == ["KD,T=1", "KD,T=9.5", "KD,T=10"]


def finished(_: Path) -> None:
    """A record of every student of the table but the last; the gain of an arm is a tenth of its temperature."""
    for step in make_plan(load_table("t.yaml"), "out")[:-1]:
        cfg = step.cfg()
        place = run_folder(cfg)
        place.mkdir(parents=True)
        accuracy = 30.0 + step.seed + (0.1 * cfg.KD.TEMPERATURE + 0.01 * step.seed if "soft" in step.name else 0)
        result = {
            "config": cfg.dump(), "code": "abc", "environment": {"torch": "2"}, "lens": place.parts[-3].removeprefix("djip-"), "about_lens": {},
            "last_acc": accuracy, "best_acc": accuracy, "seconds": 60, "epochs": 120,
        }  # fmt: skip
        (place / "result.json").write_text(json.dumps(result))


def test_a_report_has_a_row_a_value_columns_for_the_axes_and_a_picture_of_each(capsys: pytest.CaptureFixture) -> None:
    finished(table())
    for what in (["t.yaml", "--runs", "out"], ["out"]):  # from the table, and from the records alone
        main(["report", *what, "--out", "r"])
        text = capsys.readouterr().out
        assert "| distiller | KD.TEMPERATURE | BENCH.FRACTION | n |" in text
        lines = [line for line in text.split("## ")[1].splitlines() if line.startswith("| KD")]
        assert [line.split(" | ")[1:3] for line in lines] == [[t, f] for t in ("1", "4", "10") for f in ("0.05", "0.2")]
        assert "| KD | 4 | 0.2 | 3 | 31.00 ± 1.00 |" in lines[3].replace("  ", " ") and "+0.41 ± 0.02" in lines[3]
        assert "mean of all" not in text
        assert {path.name for path in Path("r").glob("*.png")} == {"differences.png", "gain_by_KD.TEMPERATURE.png", "gain_by_BENCH.FRACTION.png"}
        assert "![gain_by_KD.TEMPERATURE.png]" in text
        with open("r/table.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 12 and {row["KD.TEMPERATURE"] for row in rows} == {"1", "4", "10"}
        assert "KD & 10 & 0.2 & 2 to 3" in Path("r/table.tex").read_text()


def test_an_axis_picture_has_a_line_an_arm_and_a_panel_for_the_other_axes() -> None:
    from djip_ext.bench.records import read_results, table_rows
    from djip_ext.table_pictures import axis_figure

    finished(table())
    rows = table_rows(read_results("out"), "plain")
    figure = axis_figure(rows, ["plain", "soft"], "KD.TEMPERATURE", ["KD.TEMPERATURE", "BENCH.FRACTION"])
    panels = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in panels] == ["vgg8, resnet8: KD, fraction 0.05", "vgg8, resnet8: KD, fraction 0.2"]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["1", "4", "10"]
    heights = panels[0].containers[0].lines[0].get_ydata()
    assert list(heights) == pytest.approx([0.11, 0.41, 1.01])
