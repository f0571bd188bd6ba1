"""A table of results from records alone: runs, statistics, published numbers, text and pictures."""

import csv
import json
import math
from pathlib import Path

import pytest
import yaml

from djip_ext.cli.main import main
from djip_ext.errors import DJIPError
from djip_ext.experiments.differences import (
    cmi_difference,
    gains,
    mean_difference,
    table_rows,
)
from djip_ext.experiments.published import PUBLISHED, read_published
from djip_ext.experiments.records import arms_of, read_results
from djip_ext.experiments.report import pair_table
from djip_ext.experiments.runs import Pair
from djip_ext.experiments.statistics import summarise
from djip_ext.plots.table import gain_figure

PAIR = Pair("cifar100", "resnet32x4", "resnet8x4")
ABOUT = {"before": {"cmi": 0.1, "accuracy": 99.0}, "after": {"cmi": 0.4, "accuracy": 95.0}}


def record(
    folder: Path,
    distiller: str,
    arm: str,
    seed: int,
    accuracy: float,
    pair: Pair = PAIR,
    lens: str = "",
    name: str = "run",
    about: dict | None = None,
) -> None:
    """What a finished run leaves behind, as far as a report reads it."""
    lens = lens or ("identity" if arm == "plain" else "0123abcd")
    cfg = {
        "DATASET": {"TYPE": pair.dataset},
        "DISTILLER": {"TYPE": distiller, "TEACHER": pair.teacher, "STUDENT": pair.student},
        "EXPERIMENT": {"PROJECT": f"{arm}/djip-{lens}"},
        "BENCH": {"SEED": seed},
    }
    result = {
        "config": yaml.safe_dump(cfg),
        "code": "abc",
        "environment": {"torch": "2"},
        "lens": lens,
        "about_lens": {} if lens == "identity" else about or ABOUT,
        "data": {"train": {"images": 50, "sha256": "feed"}},
        "last_acc": accuracy,
        "best_acc": accuracy + 1,
        "seconds": 3600,
        "epochs": 240,
    }
    path = (
        folder
        / arm
        / f"djip-{lens}"
        / f"{distiller}_{name}_{pair.student}"
        / f"seed-{seed}"
        / "result.json"
    )
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """KD with three paired seeds, AT with two of three, a teacher that is no student."""
    for seed, (plain, lens) in enumerate([(70, 71), (72, 72.5), (71, 73)]):
        record(tmp_path, "KD", "plain", seed, plain)
        record(tmp_path, "KD", "lens", seed, lens)
        record(tmp_path, "AT", "plain", seed, plain - 5)
        if seed:
            record(tmp_path, "AT", "lens", seed, lens - 6)
    record(tmp_path, "NONE", "teachers", 0, 79)
    return tmp_path


def test_accuracies_on_held_out_images_are_not_called_those_of_the_test_set(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["report", str(records), "--out", str(records / "one")])
    assert "Accuracy on the test set in %" in capsys.readouterr().out
    for path in records.rglob("result.json"):
        path.write_text(path.read_text().replace("BENCH:\\n", "BENCH:\\n  HOLDOUT: 0.2\\n"))
    main(["report", str(records), "--out", str(records / "two")])
    assert "Accuracy on held-out training images in %" in capsys.readouterr().out


def row(folder: Path, distiller: str, arm: str) -> dict:
    rows = table_rows(read_results(folder), "plain")
    return next(row for row in rows if (row["distiller"], row["arm"]) == (distiller, arm))


def test_every_student_is_found_and_no_teacher(records: Path) -> None:
    results = read_results(records)
    seeds = {
        row: {arm: [*cell] for arm, cell in arms.items()} for row, arms in results[PAIR].items()
    }
    assert seeds == {
        "KD": {"plain": [0, 1, 2], "lens": [0, 1, 2]},
        "AT": {"plain": [0, 1, 2], "lens": [1, 2]},
    }
    assert arms_of(results) == ["plain", "lens"]


def test_differences_are_paired_by_seed(records: Path) -> None:
    kd, at = row(records, "KD", "lens"), row(records, "AT", "lens")
    expected = summarise([1.0, 0.5, 2.0])
    assert (kd["n"], kd["pairs"]) == (3, 3)
    assert (kd["last_acc_diff"], kd["last_acc_ci95"]) == (
        pytest.approx(expected.mean),
        pytest.approx(expected.half_width),
    )
    assert (at["n"], at["pairs"], at["last_acc_diff"]) == (2, 2, pytest.approx((-0.5 + 1.0) / 2))
    assert (kd["cmi_before"], kd["cmi_after"]) == (0.1, 0.4) and row(records, "KD", "plain")[
        "cmi_after"
    ] == ""


def test_the_mean_of_all_distillers_uses_the_seeds_that_all_have(records: Path) -> None:
    mean = mean_difference(read_results(records)[PAIR], "lens", "plain", "last_acc")
    assert (mean.n, mean.mean) == (2, pytest.approx(((0.5 - 0.5) / 2 + (2.0 + 1.0) / 2) / 2))


def test_an_arm_without_its_baseline_still_has_its_own_numbers(records: Path) -> None:
    record(records, "SP", "lens", 0, 50.0)
    sp = row(records, "SP", "lens")
    assert (sp["n"], sp["last_acc"], sp["last_acc_diff"], sp["pairs"]) == (1, 50.0, "", 0)
    table = pair_table(
        table_rows(read_results(records), "plain"),
        read_results(records),
        PAIR,
        ["plain", "lens"],
        "last_acc",
    )
    assert next(line for line in table if line[0] == "SP") == [
        "SP",
        "0 to 1",
        "",
        "50.00",
        "",
        "+2.44 on 1 other pair",
    ]


def test_published_numbers_stand_beside_their_cells(records: Path) -> None:
    table = pair_table(
        table_rows(read_results(records), "plain"),
        read_results(records),
        PAIR,
        ["plain", "lens"],
        "last_acc",
    )
    assert table[0] == ["distiller", "n", "plain", "lens", "lens − plain", "published"]
    assert table[1] == ["KD", "3", "71.00 ± 1.00", "72.17 ± 1.04", "+1.17 ± 1.90", "73.33 → 74.38"]
    assert table[2][-1] == "73.44" and table[3][0] == "mean of all"


def test_whatever_the_baseline_published_numbers_are_those_of_the_plain_teacher_and_of_the_lens(
    records: Path,
) -> None:
    record(records, "KD", "jpeg", 0, 70.0, lens="aaaa")

    def published(baseline: str) -> dict[str, object]:
        rows = table_rows(read_results(records), baseline)
        return {row["arm"]: row["published"] for row in rows if row["distiller"] == "KD"}

    known = {"plain": 73.33, "lens": 74.38, "jpeg": ""}
    assert published("plain") == published("jpeg") == published("lens") == known
    # of two without a lens one has another teacher: the baseline tells which is the plain one
    record(records, "KD", "mcmi", 0, 70.0, lens="identity")
    assert published("plain") == known | {"mcmi": ""}
    assert published("lens") == known | {"mcmi": "", "plain": ""}


def test_the_published_file_names_a_source_for_every_number_and_agrees_with_itself() -> None:
    seen: dict[tuple, float] = {}
    with open(PUBLISHED, newline="") as file:
        for line in csv.DictReader(file):
            key = tuple(
                line[name] for name in ("dataset", "teacher", "student", "distiller", "arm")
            )
            assert line["source"] and 50 < float(line["top1"]) < 90
            assert seen.setdefault(key, float(line["top1"])) == float(line["top1"])
    published = read_published()
    assert (
        published[PAIR, "KD", "lens"] == (74.38, "DJIP, ICLR 2026")
        and published[PAIR, "DKD", "plain"][0] == 76.32
    )


def test_two_runs_of_one_cell_are_refused(records: Path) -> None:
    record(records, "KD", "plain", 1, 60.0, name="again")
    with pytest.raises(DJIPError, match="both KD, plain, seed 1"):
        read_results(records)


def test_lenses_that_share_a_project_are_told_apart(tmp_path: Path) -> None:
    for lens in ("identity", "aaaa", "bbbb"):
        record(tmp_path, "KD", "students", 0, 50.0, lens=lens)
    assert arms_of(read_results(tmp_path)) == ["identity", "aaaa", "bbbb"]


@pytest.mark.parametrize("content", ["{", "{}", '{"config": "a: ["}', '{"config": "DISTILLER: 3"}'])
def test_a_damaged_record_is_named(records: Path, content: str) -> None:
    bad = records / "bad" / "result.json"
    bad.parent.mkdir()
    bad.write_text(content)
    with pytest.raises(DJIPError, match="bad/result.json"):
        read_results(records)


def test_a_folder_without_students_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DJIPError, match="no finished student"):
        read_results(tmp_path)


def test_report_writes_markdown_csv_latex_and_pictures(
    records: Path, capsys: pytest.CaptureFixture
) -> None:
    other = Pair("cifar100", "vgg13", "vgg8")
    for seed in range(2):
        record(records, "KD", "plain", seed, 60.0 + seed, other)
        record(records, "KD", "lens", seed, 61.0, other)
    main(["report", str(records)])
    printed, out = capsys.readouterr().out, records / "report"
    text = (out / "table.md").read_text()
    assert (
        printed.strip() == text.strip()
        and "15 students, 15.0 hours" in text
        and "50 training images (feed)" in text
    )
    assert "| KD | 2 | 60.50 ± 0.71 | 61.00 ± 0.00 | +0.50 ± 6.35 | 72.98 → 74.01 |" in text
    assert {path.name for path in out.iterdir()} == {
        "table.md",
        "table.csv",
        "table.tex",
        "differences.png",
        "cmi.png",
    }
    assert all(path.stat().st_size > 5000 for path in out.glob("*.png"))
    with open(out / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and not any(value == "nan" for line in rows for value in line.values())
    assert math.isclose(float(rows[0]["last_acc"]), 71.0)
    latex = (out / "table.tex").read_text()
    assert latex.count("\\begin{tabular}") == latex.count("\\end{tabular}") == 4
    accuracies = "71.00 $\\pm$ 1.00 & 72.17 $\\pm$ 1.04"
    assert f"KD & 3 & {accuracies} & +1.17 $\\pm$ 1.90 & 73.33 $\\to$ 74.38 \\\\" in latex


def test_a_report_on_a_table_keeps_its_order_and_counts_what_is_missing(
    records: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(records)
    table = {
        "configs": "x",
        "pairs": ["p"],
        "distillers": ["AT", "KD"],
        "arms": {"lens": "fit", "plain": "identity"},
        "seeds": 3,
    }
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    main(["report", "t.yaml", "--runs", ".", "--out", "r"])
    text = capsys.readouterr().out
    assert "11 of 12 students" in text and "| distiller | n | lens | plain | plain − lens |" in text
    assert text.index("| AT |") < text.index("| KD |")
    main(["report", "t.yaml", "--runs", ".", "--out", "r", "--baseline", "plain"])
    assert "lens − plain" in capsys.readouterr().out


def test_a_report_counts_apart_what_the_table_no_longer_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for temperature in (4, 8):
        for seed in range(3):
            record(tmp_path, "KD", "plain", seed, 70.0, name=f"T{temperature}")
    for path in tmp_path.rglob("result.json"):
        temperature = path.parts[-3].split("_")[1][1:]
        name = f"EXPERIMENT:\\n  NAME: kd_p,KD.TEMPERATURE={temperature}\\n"
        path.write_text(path.read_text().replace("EXPERIMENT:\\n", name))
    table = {"configs": "x", "pairs": ["p"], "distillers": ["KD"], "arms": {"plain": "identity"}}
    table |= {"seeds": 2, "vary": {"KD.TEMPERATURE": [4]}}
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    main(["report", "t.yaml", "--runs", ".", "--out", "r"])
    text = capsys.readouterr().out
    assert "2 of 2 students, and 4 that the table does not ask for" in text
    assert "| KD | 8 | 3 |" in text
    Path("t.yaml").write_text(
        yaml.safe_dump(table | {"seeds": 3, "vary": {"KD.TEMPERATURE": [4, 8]}})
    )
    main(["report", "t.yaml", "--runs", ".", "--out", "r"])
    assert "6 of 6 students, 6.0 hours" in capsys.readouterr().out


def test_an_arm_with_several_lenses_is_refused_and_not_left_out(
    records: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(records)
    record(records, "KD", "lens", 0, 60.0, lens="89abcdef")
    table = {
        "configs": "x",
        "pairs": ["p"],
        "distillers": ["KD"],
        "arms": {"plain": "identity", "lens": "fit"},
    }
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    with pytest.raises(SystemExit):
        main(["report", "t.yaml", "--runs", ".", "--out", "r"])
    assert (
        "the arm lens has runs with several lenses in .: 0123abcd, 89abcdef"
        in capsys.readouterr().err
    )


def behind(cmi: float) -> dict:
    """What a record repeats of a lens that brings the teacher to ``cmi``."""
    return {"before": {"cmi": 0.1, "accuracy": 99.0}, "after": {"cmi": cmi, "accuracy": 95.0}}


def test_gains_stand_at_the_cmi_that_the_teacher_gained_and_are_drawn_only_for_two(
    records: Path,
) -> None:
    assert [(gain.arm, round(gain.cmi, 6)) for gain in gains(read_results(records), "plain")] == [
        ("lens", 0.3)
    ]
    main(["report", str(records)])
    (records / "report/gain.png").write_bytes(b"of an earlier report")
    main(["report", str(records)])
    assert (
        not (records / "report/gain.png").exists()
        and "gain.png" not in (records / "report/table.md").read_text()
    )

    for seed in range(3):
        record(records, "KD", "jpeg", seed, 70.0 + seed, lens="aaaa", about=behind(0.2))
    both = {gain.arm: gain for gain in gains(read_results(records), "plain")}
    assert (both["jpeg"].cmi, both["jpeg"].mean.mean, both["jpeg"].each) == (
        pytest.approx(0.1),
        pytest.approx(0.0),
        {"KD": pytest.approx(0.0)},
    )
    assert both["lens"].each.keys() == {"KD", "AT"} and both["lens"].mean.n == 2
    figure = gain_figure(list(both.values()), "plain")
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {"lens", "jpeg (KD)"}  # where the lens has AT as well
    axes = figure.axes[0]
    means = [float(container.lines[0].get_xdata()[0]) for container in axes.containers]
    each = [
        float(x)
        for points in axes.collections
        if len(points.get_offsets()) == 2
        for x, _ in points.get_offsets()
    ]
    assert (
        axes.get_xlim()[0] < 0
        and sorted(means) == pytest.approx([0.1, 0.3])
        and each == pytest.approx([0.3, 0.3])
    )  # nothing is moved aside
    main(["report", str(records)])
    assert (records / "report/gain.png").stat().st_size > 5000


def test_against_a_lens_the_gain_in_cmi_is_against_that_lens() -> None:
    plain, lens, jpeg = (
        {0: {"lens": "identity"}},
        {0: {"lens": "b", "about_lens": behind(0.4)}},
        {0: {"lens": "a", "about_lens": behind(0.2)}},
    )
    assert cmi_difference(lens, plain) == pytest.approx(0.3) and cmi_difference(
        plain, lens
    ) == pytest.approx(-0.3)
    assert cmi_difference(lens, jpeg) == pytest.approx(0.2)
    assert cmi_difference({0: {"lens": "c"}}, plain) is None  # nobody measured it


def test_a_lens_before_another_teacher_gains_nothing_over_the_plain_one() -> None:
    plain = {0: {"lens": "identity", "teacher_hash": "aa"}}
    lens = {0: {"lens": "b", "about_lens": behind(0.4), "teacher_hash": "aa"}}
    other = {0: {"lens": "b", "about_lens": behind(0.4), "teacher_hash": "bb"}}
    assert cmi_difference(lens, plain) == pytest.approx(0.3)
    assert cmi_difference(other, plain) is None and cmi_difference(plain, other) is None


def test_students_from_labels_are_no_part_of_what_a_report_counts(
    records: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(records)
    table = {"configs": "x", "pairs": ["p"], "distillers": ["AT", "KD"], "seeds": 3}
    table |= {"arms": {"plain": "identity", "lens": "fit"}, "bar": {"LS.EPSILON": [0.1, 0.2]}}
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    main(["report", "t.yaml", "--runs", ".", "--out", "r"])
    assert "11 of 12 students" in capsys.readouterr().out
