"""The lenses in a report: drawn from their records alone, and what is missing is said."""

import json
from pathlib import Path

import pytest
import torch
from test_report import record

from djip_ext.cli.main import main
from djip_ext.cli.reproduce import keep_lens_records
from djip_ext.errors import DJIPError
from djip_ext.experiments.plan import Step
from djip_ext.fit.record import describe, parse_record, read_records
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.utils.files import write_json

NUMBERS = {"cmi": 0.1, "ncmi": 0.01, "ce": 0.2, "accuracy": 95.0}
FIT = {"cmi_gain": [0.1, 0.3], "max_accuracy_drop": 10.0, "rounds": 1, "chosen": 1, "in_band": True}
ABOUT = {
    "teacher": "resnet32x4",
    "teacher_hash": "feed",
    "before": NUMBERS,
    "after": NUMBERS | {"cmi": 0.3},
    "fit": FIT,
}
HISTORY = [
    NUMBERS | {"round": i, "lam": 1.0, "q_low": 0.5, "q_high": 2.0, "seconds": 1.0}
    for i in range(2)
]
SIDE = {"cmi": 0.1, "accuracy": 90.0, "f": [[0.9, 0.8], [0.05, 0.1], [0.0, 0.1]]}
ONE_CLASS = {
    "corners": ["pear", "apple", "plum"],
    "temperature": 1.0,
    "before": SIDE,
    "after": SIDE,
}


def lens(q: float, **about: object) -> JPEGLens:
    made = JPEGLens(torch.linspace(q, 20, 128).view(2, 8, 8))
    made.metadata = ABOUT | about
    return made


def students(folder: Path, arm: str, name: str, **about: object) -> None:
    record(folder, "KD", "plain", 0, 70.0) if not (folder / "plain").exists() else None
    record(folder, "KD", arm, 0, 71.0, lens=name, about=ABOUT | about)


def drawn(folder: Path) -> set[str]:
    return {
        path.name for path in (folder / "report").glob("lens-*.png") if path.stat().st_size > 5000
    }


def test_every_picture_of_a_lens_comes_from_its_record(tmp_path: Path) -> None:
    content = describe(lens(0.1)) | {"history": HISTORY, "one_class": ONE_CLASS}
    students(tmp_path, "lens", content["id"])
    write_json(tmp_path / "lenses/any-name.json", content)
    main(["report", str(tmp_path)])
    assert drawn(tmp_path) == {
        f"lens-lens-resnet32x4-{content['id']}-{kind}.png" for kind in ("tables", "fit", "simplex")
    }
    text = (tmp_path / "report/table.md").read_text()
    numbers = "0.1000 → 0.3000 | 0.2000 → 0.2000 | 95.00 → 95.00 |  | 1, tables of round 1"
    assert f"| resnet32x4 | lens | {content['id']} | {numbers} |" in text
    assert "Not drawn" not in text and all(f"({name})" in text for name in drawn(tmp_path))


def test_what_a_record_lacks_is_left_out_and_said_in_one_line(tmp_path: Path) -> None:
    old, jpeg = describe(lens(0.1)), describe(lens(0.2, fit=FIT | {"rounds": 0}))
    for arm, name in (("lens", old["id"]), ("jpeg", jpeg["id"]), ("lost", "0123abcd")):
        students(tmp_path, arm, name)
    write_json(tmp_path / "lenses/lens.json", old)
    write_json(tmp_path / "lenses/jpeg.json", jpeg | {"history": HISTORY[:1]})
    write_json(
        tmp_path / "lenses/older.json", {"about": ABOUT, "history": HISTORY}
    )  # before records had an id
    main(["report", str(tmp_path)])
    assert drawn(tmp_path) == {
        f"lens-lens-resnet32x4-{old['id']}-tables.png",
        f"lens-jpeg-resnet32x4-{jpeg['id']}-tables.png",
    }
    (line,) = [
        line
        for line in (tmp_path / "report/table.md").read_text().splitlines()
        if line.startswith("Not drawn")
    ]
    assert (
        "the fit for lens of resnet32x4 (" in line and "everything for lost of resnet32x4 (" in line
    )
    assert (
        "one class for jpeg of resnet32x4, lens of resnet32x4 (" in line
        or "one class for lens of resnet32x4, jpeg of resnet32x4 (" in line
    )


def test_a_lens_with_equal_tables_but_another_teacher_is_another_record(tmp_path: Path) -> None:
    content = describe(lens(0.1, teacher_hash="beef")) | {
        "history": HISTORY,
        "one_class": ONE_CLASS,
    }
    students(tmp_path, "lens", content["id"])
    write_json(tmp_path / "lenses/of-another.json", content)
    main(["report", str(tmp_path)])
    assert (
        not drawn(tmp_path)
        and "Not drawn: everything for lens" in (tmp_path / "report/table.md").read_text()
    )


@pytest.mark.parametrize(
    "damage", [{"id": "0123abcd"}, {"history": [{}]}, {"one_class": {"corners": []}}, {"lens": {}}]
)
def test_a_damaged_record_is_named(tmp_path: Path, damage: dict) -> None:
    with pytest.raises(DJIPError, match=r"a\.json is not the record of a lens"):
        parse_record(describe(lens(0.1)) | damage, "a.json")
    (tmp_path / "lenses").mkdir()
    (tmp_path / "lenses/a.json").write_text("{")
    with pytest.raises(DJIPError, match=r"a\.json cannot be read"):
        read_records(tmp_path)


def test_a_table_keeps_the_record_of_a_lens_that_was_given(tmp_path: Path) -> None:
    made = lens(0.1)
    made.save(tmp_path / "given.safetensors")
    write_json(
        tmp_path / "given.json", {"about": ABOUT, "history": HISTORY}
    )  # as an older djip fit left it
    config = str(Path(__file__).parents[2] / "configs/cifar100/fewshot/kd_wrn_16_2_resnet8.yaml")
    step = Step(
        "student",
        "KD",
        config,
        (),
        ("EXPERIMENT.PROJECT", "mine"),
        lens=str(tmp_path / "given.safetensors"),
    )
    keep_lens_records(
        [step, Step("student", "KD", config, (), (), lens="identity")], str(tmp_path / "out")
    )
    (path,) = (tmp_path / "out/lenses").iterdir()
    (kept,) = read_records(tmp_path / "out")
    assert path.name == f"wrn_16_2-mine-{kept.id}.json"
    assert torch.equal(kept.lens.q, made.q) and len(kept.history) == 2 and kept.about == ABOUT


def test_a_table_completes_the_record_of_its_own_older_fit(tmp_path: Path) -> None:
    path = tmp_path / "lenses/a.safetensors"
    path.parent.mkdir()
    lens(0.1).save(path)
    write_json(path.with_suffix(".json"), {"about": ABOUT, "history": HISTORY, "code": "abc"})
    fit, student = (
        Step("lens", "lens", "", (), (), makes=str(path)),
        Step("student", "KD", "", (), (), lens=str(path)),
    )
    keep_lens_records([fit, student], str(tmp_path))
    assert (
        len(read_records(tmp_path)) == 1
        and json.loads(path.with_suffix(".json").read_text())["code"] == "abc"
    )
