"""Collected runs: a tree of ``result.json`` and its CSV files are read to the same."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from test_report import PAIR, record

from djip_ext.cli.main import main
from djip_ext.errors import DJIPError
from djip_ext.experiments.records import read_results
from djip_ext.experiments.runs import collect, read_arm, read_runs

ARMS = {"plain": "identity", "lens": "12345678", "jpeg": "554685e1"}  # two that read as numbers
REPORT = ("table.md", "table.csv", "table.tex")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two distillers with two seeds and three arms each, a teacher, logs, the record of a lens."""
    tree = tmp_path / "runs"
    for i, (arm, lens) in enumerate(ARMS.items()):
        for seed in range(2):
            record(tree, "KD", arm, seed, 0.1 + 0.2 + i * seed, lens=lens)
            record(tree, "AT", arm, seed, 70 / 3 + i - seed, lens=lens)
    record(tree, "NONE", "teachers", 0, 79, lens="none")
    for number, path in enumerate(sorted(tree.rglob("result.json"))):
        result = json.loads(path.read_text())
        result["config"] = result["config"].replace("/djip-none", "")  # as a teacher's
        if number == 0:  # as of an installed package, with a field of a version to come
            result |= {"code": "", "machine": {"gpus": 2, "name": None, "driver": "570"}}
        if number == 1:  # as of the first version
            del result["data"], result["about_lens"]
        path.write_text(json.dumps(result))
        rows = [f"{epoch},{epoch / 3}," for epoch in range(241 - number % 3, 240)]
        rows += [f"240,0.1,{result['last_acc']}"] if number % 3 else []
        path.with_name("log.csv").write_text("\n".join(["epoch,train_loss,test_acc", *rows, ""]))
    (tree / "lenses").mkdir()
    (tree / "lenses/of-an-older-fit.json").write_text("{}")
    return tree


@pytest.fixture
def kept(tree: Path, tmp_path: Path) -> Path:
    """The same runs, collected."""
    collect(tree, tmp_path / "kept")
    return tmp_path / "kept"


def cells(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_field_of_every_run_comes_back(tree: Path, kept: Path) -> None:
    runs = read_runs(kept)
    assert len(runs) == 13 and [run.folder for run in runs] == [r.folder for r in read_runs(tree)]
    for run in runs:
        result = json.loads((tree / run.folder / "result.json").read_text())
        found = dict(run.result)
        assert found.pop("folder") == run.folder
        config = yaml.safe_load(found.pop("config"))
        assert config == run.config == yaml.safe_load(result.pop("config"))
        assert found == result


def test_every_row_of_every_log_is_kept_as_it_stands(tree: Path, kept: Path) -> None:
    number = {row["run"]: row["folder"] for row in cells(kept / "runs.csv")}
    found: dict[str, list[dict[str, str]]] = {folder: [] for folder in number.values()}
    for row in cells(kept / "curves.csv"):
        found[number[row.pop("run")]].append(row)
    assert found == {folder: cells(tree / folder / "log.csv") for folder in found}


def test_arms_share_a_configuration(kept: Path) -> None:
    rows = cells(kept / "runs.csv")
    assert {row["distiller"]: row["config"] for row in rows if row["arm"] == "plain"} == {
        row["distiller"]: row["config"] for row in rows if row["arm"] == "jpeg"
    }
    files = {path.stem for path in (kept / "configs").iterdir()}
    assert files == {row["config"] for row in rows} and len(files) == 3
    text = (kept / "configs" / f"{rows[0]['config']}.yaml").read_text()
    assert "SEED" not in text and "PROJECT" not in text


def test_the_report_is_the_same(tree: Path, kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(tree), "--out", str(tree / "report")])
    first = capsys.readouterr().out
    kept.rename(tree.with_name("other"))
    tree.rename(tree.with_name("tree"))
    kept = tree.with_name("other").rename(tree)  # a report is called after its folder
    main(["report", str(kept)])
    assert capsys.readouterr().out == first and "12 students" in first
    for name in REPORT:
        before = tree.with_name("tree") / "report" / name
        assert (kept / "report" / name).read_bytes() == before.read_bytes()


def test_a_comparison_is_the_same(
    tree: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []
    for root in (tree, kept):
        place = f"KD_run_{PAIR.student}"
        arms = [f"{arm}={root}/{arm}/djip-{lens}/{place}" for arm, lens in ARMS.items()]
        main(["compare", *arms])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and "| jpeg | 2 |" in printed[0]
    with pytest.raises(DJIPError, match="no finished run"):
        read_arm(kept / "plain/djip-identity/DKD")


def test_runs_of_several_machines_are_collected_one_after_the_other(
    tree: Path, kept: Path, tmp_path: Path
) -> None:
    second = tmp_path / "of another machine"
    record(second, "SP", "plain", 0, 50.0)
    record(second, "KD", "plain", 1, 60.0)  # there already
    for path in second.rglob("result.json"):
        accuracy = json.loads(path.read_text())["last_acc"]
        path.with_name("log.csv").write_text(f"epoch,train_loss,test_acc\n240,0.3,{accuracy}\n")
        (tree / path.relative_to(second).parent).mkdir(parents=True, exist_ok=True)
    assert collect(second, kept) == (2, 14)
    for path in second.rglob("*.*"):
        if path.is_file():
            (tree / path.relative_to(second)).write_text(path.read_text())
    assert collect(tree, tmp_path / "at once") == (14, 14)
    for name in ("runs.csv", "curves.csv"):
        assert cells(kept / name) == cells(tmp_path / "at once" / name)


def test_curves_of_other_runs_are_not_mixed_in(tree: Path, kept: Path) -> None:
    """As after a kill between the two files: numbers of runs moved on in one of them."""
    curves = kept / "curves.csv"
    before, runs = curves.read_text(), (kept / "runs.csv").read_text()
    curves.write_text(before.replace("\n1,240,", "\n0,240,", 1))
    with pytest.raises(DJIPError, match=r"curves.csv ends .* otherwise than its runs.csv does"):
        collect(tree, kept)
    assert (kept / "runs.csv").read_text() == runs


def test_a_configuration_that_no_run_has_any_more_goes(tree: Path, kept: Path) -> None:
    for path in tree.rglob("KD_*/seed-*/result.json"):
        result = json.loads(path.read_text())
        result["config"] += "SOLVER: {LR: 1.0e-05}\n"
        path.write_text(json.dumps(result))
    collect(tree, kept)
    files = {path.stem for path in (kept / "configs").iterdir()}
    assert files == {row["config"] for row in cells(kept / "runs.csv")} and len(files) == 3
    assert {run.config.get("SOLVER", {}).get("LR") for run in read_runs(kept)} == {None, 1e-5}


def test_a_run_that_is_both_fresh_and_collected_is_refused(tree: Path, kept: Path) -> None:
    record(kept, "KD", "plain", 1, 60.0)
    with pytest.raises(DJIPError, match="both KD, plain, seed 1"):
        read_results(kept)


@pytest.mark.parametrize("place", [".", "kept"])
def test_runs_are_not_collected_into_their_own_folder(tree: Path, place: str) -> None:
    with pytest.raises(DJIPError, match="lies in .* somewhere else"):
        collect(tree, tree / place)
    assert not list(tree.rglob("runs.csv"))


def test_compared_arms_have_names_and_records_of_their_own(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arm = tree / f"plain/djip-identity/KD_run_{PAIR.student}"
    with pytest.raises(SystemExit):
        main(["compare", f"KD={arm}", f"KD={arm}"])
    assert "two arms are called 'KD'" in capsys.readouterr().err
    (arm / "seed-0/result.json").write_text("{")
    with pytest.raises(DJIPError, match="seed-0/result.json is not the record of a run"):
        read_arm(arm)
    (arm / "seed-0").rename(arm / "seed-x")
    with pytest.raises(DJIPError, match="seed-x/result.json is not the record of a run"):
        read_arm(arm)


def test_nothing_to_collect_is_said(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="nothing to collect"):
        collect(tmp_path, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def cut_off(kept: Path) -> None:
    text = (kept / "runs.csv").read_text()
    (kept / "runs.csv").write_text(text[: len(text) - 40])


def without_a_column(kept: Path) -> None:
    text = (kept / "runs.csv").read_text()
    (kept / "runs.csv").write_text(text.replace(",lens,", ",length,", 1))


def of_another_distiller(kept: Path) -> None:
    text = (kept / "runs.csv").read_text()
    (kept / "runs.csv").write_text(text.replace(",KD,", ",DKD,", 1))


def without_configurations(kept: Path) -> None:
    for path in (kept / "configs").iterdir():
        path.unlink()


def with_edited_configurations(kept: Path) -> None:
    for path in (kept / "configs").iterdir():
        path.write_text(path.read_text().replace("cifar100", "cifar10"))


@pytest.mark.parametrize(
    "damage, names",
    [
        (cut_off, "row 12 is cut off"),
        (without_a_column, "lens"),
        (of_another_distiller, "says distiller DKD, its configuration KD"),
        (without_configurations, r"No such file .*configs/\w+.yaml"),
        (with_edited_configurations, r"configs/\w+.yaml was changed"),
    ],
)
def test_damage_is_named_in_one_line(kept: Path, damage, names: str) -> None:
    damage(kept)
    with pytest.raises(DJIPError, match=rf"runs.csv is damaged \(.*{names}") as caught:
        read_runs(kept)
    assert "\n" not in str(caught.value)
