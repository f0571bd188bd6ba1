"""A table's file, and the commands that it becomes."""

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from yacs.config import CfgNode

from djip_ext.bench.engine.run import run_folder, run_record
from djip_ext.cli import reproduce, train, train_lens
from djip_ext.cli.main import main
from djip_ext.cli.options import benchmark_cfg
from djip_ext.errors import DJIPError
from djip_ext.experiments.plan import Step, make_plan
from djip_ext.experiments.scheduler import Outcome
from djip_ext.experiments.table import load_table
from djip_ext.lens.io import lens_id, weight_hash
from djip_ext.lens.jpeg_lens import JPEGLens

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "cifar100"
TABLE = {
    "configs": f"{CONFIGS}/{{distiller}}/{{pair}}.yaml",
    "pairs": ["res32x4_res8x4", "res32x4_shuv1", "vgg13_vgg8"],
    "distillers": ["KD", "CRD"],
    "arms": {"plain": "identity", "lens": "fit --images 100 --cmi-gain 0.1 0.2", "jpeg": "jpeg:80"},
    "teachers": {"resnet32x4": f"{CONFIGS}/vanilla/res32x4.yaml", "vgg13": "vgg13.pth"},
    "seeds": 2,
    "epochs": 60,
    "options": {
        "all": {"BENCH.EVAL_EVERY": 5},
        "student": {"BENCH.EVAL_EVERY": 10, "BENCH.FRACTION": 0.5},
        "CRD": {"CRD.NCE.K": 100},
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with vgg13's checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("vgg13.pth").touch()


def plan(data_root: str = "", **changes: object) -> list[Step]:
    Path("t.yaml").write_text(yaml.safe_dump(TABLE | changes, sort_keys=False))
    return make_plan(load_table("t.yaml"), "out", data_root)


def parsed(step: Step) -> CfgNode:
    """What the command of ``step`` will read its settings as."""
    parser = argparse.ArgumentParser()
    (train_lens if step.kind == "lens" else train).add_arguments(parser)
    args, rest = parser.parse_known_args(step.words[1:])
    args.options += rest
    assert args.resume
    if step.kind == "lens":
        args.seed = None
    return benchmark_cfg(args)


def test_a_plan_has_every_command_once_in_the_order_of_need() -> None:
    steps = plan()
    assert [step.kind for step in steps] == ["teacher"] + ["lens"] * 4 + ["student"] * 3 * 2 * 3 * 2
    assert len({str(step) for step in steps}) == len(steps)
    for i, step in enumerate(steps):
        assert all(need in steps[:i] for need in step.needs)
    needed = {step.name: [need.name for need in step.needs] for step in steps}
    assert (
        needed["lens lens of resnet32x4"] == ["teacher resnet32x4"]
        and needed["lens jpeg of vgg13"] == []
    )
    assert needed["CRD res32x4_shuv1, lens, seed 1"] == [
        "teacher resnet32x4",
        "lens lens of resnet32x4",
    ]
    assert needed["KD vgg13_vgg8, plain, seed 0"] == []


def test_every_command_parses_to_the_settings_that_the_plan_believes_in() -> None:
    for step in plan():
        assert parsed(step) == step.settings()


def test_every_command_reads_the_images_of_the_data_root() -> None:
    steps = plan(
        data_root="my data",
        configs=f"{CONFIGS}/fewshot/{{distiller}}_{{pair}}.yaml",
        pairs=["wrn_16_2_resnet8"],
        distillers=["KD"],
        arms={"tuned": {"teacher": f"{CONFIGS}/cmim/wrn_16_2.yaml", "before": "jpeg:80"}},
        teachers={"wrn_16_2": f"{CONFIGS}/vanilla/wrn_16_2.yaml"},
        seeds=1,
        bar={"LS.EPSILON": [0.1]},
        options={},
    )
    assert [step.kind for step in steps] == ["teacher", "teacher", "lens", "student", "student"]
    for step in steps:
        assert parsed(step).BENCH.DATA_ROOT == step.settings().BENCH.DATA_ROOT == "my data"


def test_the_plan_reads_what_the_command_reads_where_a_flag_and_an_option_differ() -> None:
    root = {"all": {"BENCH.DATA_ROOT": "/option"}}
    for step in plan(data_root="/flag", options=root):
        assert parsed(step) == step.settings()
        assert step.settings().BENCH.DATA_ROOT == "/option"


def test_options_and_epochs_reach_the_commands_that_they_are_for() -> None:
    steps = {step.name: step for step in plan()}
    teacher, lens = steps["teacher resnet32x4"].settings(), steps["lens lens of vgg13"].settings()
    kd, crd = (
        steps["KD vgg13_vgg8, plain, seed 1"].settings(),
        steps["CRD vgg13_vgg8, lens, seed 0"].settings(),
    )
    assert (teacher.BENCH.EVAL_EVERY, teacher.BENCH.FRACTION, teacher.SOLVER.EPOCHS) == (
        5,
        1.0,
        240,
    )
    assert (lens.BENCH.FRACTION, lens.BENCH.TEACHER_CHECKPOINT) == (1.0, "vgg13.pth")
    assert (kd.BENCH.EVAL_EVERY, kd.BENCH.FRACTION, kd.BENCH.SEED, kd.CRD.NCE.K) == (
        10,
        0.5,
        1,
        16384,
    )
    assert (kd.SOLVER.EPOCHS, kd.SOLVER.LR_DECAY_STAGES) == (
        60,
        [38, 45, 52],
    )  # 150, 180, 210 of 240
    assert crd.CRD.NCE.K == 100 and crd.SOLVER.TRAINER == "crd"


def test_a_student_distils_from_the_teacher_and_the_lens_that_its_needs_make() -> None:
    steps = {step.name: step for step in plan()}
    student = steps["KD res32x4_res8x4, lens, seed 0"]
    assert (
        str(run_folder(steps["teacher resnet32x4"].cfg()) / "student_last.pth")
        == student.settings().BENCH.TEACHER_CHECKPOINT
    )
    assert student.lens == steps["lens lens of resnet32x4"].makes


def test_another_fit_is_another_lens_file() -> None:
    def file(flags: str) -> str:
        return next(
            step.makes for step in plan(arms={"lens": f"fit {flags}"}) if step.kind == "lens"
        )

    assert file("--rounds 3") == file("--rounds 3") != file("--rounds 4")


@pytest.mark.parametrize("source", ["fit --rounds=0", "fit --black-box --queries 9", "jpeg:80"])
def test_a_closed_teacher_takes_a_lens_that_needs_no_gradient(source: str) -> None:
    student = (CONFIGS / "kd" / "vgg13_vgg8.yaml").read_text()
    Path("closed.yaml").write_text(student.replace('TEACHER: "vgg13"', "TEACHER: 'closed:s.py:t'"))
    table = {"configs": "{pair}.yaml", "pairs": ["closed"], "distillers": ["KD"]}
    table |= {"options": {}, "teachers": {}}
    lens, *_ = plan(**table, arms={"lens": source})
    assert lens.kind == "lens"
    with pytest.raises(DJIPError, match="arm lens: closed:s.py:t is closed and has no gradient"):
        plan(**table, arms={"lens": "fit --rounds=1"})


@pytest.mark.parametrize("path", ["fits/my.safetensors", "fit.safetensors", "fit-mild.safetensors"])
def test_a_lens_file_may_be_called_as_a_fit_is(path: str) -> None:
    JPEGLens(q=5.0).save(path)
    steps = plan(arms={"lens": path})
    assert {step.lens for step in steps if step.kind == "student"} == {path}
    assert not [step for step in steps if step.kind == "lens"]


@pytest.mark.parametrize("dataset", ["cifar100", "imagefolder"])
def test_tables_that_are_not_fitted_are_measured_on_some_images_of_every_class(
    dataset: str,
) -> None:
    options = {"all": {"DATASET.TYPE": dataset}}
    lens = next(step for step in plan(options=options, arms={"jpeg": "jpeg:80"}) if step.makes)
    # Those of a folder may be of a thousand classes; djip fit takes 25 of each by itself.
    assert ("--images" in lens.flags) == (dataset == "cifar100")


@pytest.mark.parametrize("name", ["regime_features", "regime_published", "regime_logits"])
def test_lenses_of_the_tables_that_were_made_keep_their_names(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    steps = make_plan(load_table(f"results/cifar100/{name}.yaml"), "out")
    names = [Path(step.makes).stem for step in steps if step.kind == "lens"]
    assert names == ["vgg8-jpeg-2c8b7a"]
    assert Path("results/cifar100/tables/regime_features/lenses/vgg8-jpeg-2c8b7a.json").exists()


def test_a_run_is_done_when_its_record_says_so_and_refused_when_it_is_of_other_settings() -> None:
    step = next(step for step in plan() if step.name == "KD vgg13_vgg8, plain, seed 0")
    assert step.result() is None
    folder = run_folder(step.cfg())
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(run_record(step.cfg()) | {"last_acc": 70.0}))
    assert step.result()["last_acc"] == 70.0
    changed = next(step for step in plan(epochs=30) if step.name == "KD vgg13_vgg8, plain, seed 0")
    with pytest.raises(DJIPError, match=r"other settings: .*SOLVER.EPOCHS 60 \(now 30\)"):
        changed.result()


def test_whether_a_run_is_done_is_seen_without_asking_git(monkeypatch: pytest.MonkeyPatch) -> None:
    step = next(step for step in plan() if step.name == "KD vgg13_vgg8, plain, seed 0")
    folder = run_folder(step.cfg())
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(run_record(step.cfg())))
    monkeypatch.setattr("djip_ext.bench.engine.record.code_version", lambda: 1 / 0)
    assert step.result() is not None


def test_options_are_stronger_than_the_short_form_of_epochs() -> None:
    solver = plan(options={"student": {"SOLVER.LR_DECAY_STAGES": [40, 50]}})[-1].settings().SOLVER
    assert (solver.EPOCHS, solver.LR_DECAY_STAGES) == (60, [40, 50])


def test_what_another_teacher_made_is_never_taken_for_done() -> None:
    def weights(value: float) -> str:
        state = {"w": torch.full((2,), value)}
        torch.save({"model": state}, "vgg13.pth")
        os.utime("vgg13.pth", ns=(0, int(value)))  # a clock too coarse to tell the two files apart
        return weight_hash(state)

    steps = {step.name: step for step in plan()}
    student, lens = steps["KD vgg13_vgg8, plain, seed 0"], steps["lens jpeg of vgg13"]
    known = weights(1.0)
    JPEGLens(q=5.0).save(lens.makes)
    Path(lens.makes).with_suffix(".json").write_text(json.dumps({"about": {"teacher_hash": known}}))
    run_folder(student.cfg()).mkdir(parents=True)
    (run_folder(student.cfg()) / "result.json").write_text(
        json.dumps(run_record(student.cfg()) | {"teacher_hash": known})
    )
    assert student.result() and lens.result()
    weights(2.0)
    for step in (student, lens):
        with pytest.raises(
            DJIPError, match=f"made with another teacher .{known}. than vgg13.pth is now"
        ):
            step.result()


def test_what_went_on_from_another_network_is_never_taken_for_done() -> None:
    def weights(value: float) -> str:
        state = {"w": torch.full((2,), value)}
        torch.save(state, "own.pth")
        os.utime("own.pth", ns=(0, int(value)))
        return weight_hash(state)

    known = weights(1.0)
    tuned = next(step for step in composed(teachers={"resnet32x4": "own.pth"}) if not step.lens)
    assert tuned.settings().BENCH.STUDENT_CHECKPOINT == "own.pth"
    record = run_folder(tuned.cfg()) / "result.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(run_record(tuned.cfg()) | {"start_hash": known}))
    assert tuned.result() is not None
    now = weights(2.0)
    message = f"started from another network .{known}. than own.pth is now .{now}."
    with pytest.raises(DJIPError, match=message):
        tuned.result()
    record.write_text(json.dumps(run_record(tuned.cfg())))  # as older versions left it
    assert tuned.result() is not None


def test_a_lens_of_other_settings_is_never_taken_for_done() -> None:
    def step(**bench: object) -> Step:
        content = yaml.safe_load((CONFIGS / "kd" / "vgg13_vgg8.yaml").read_text())
        Path("kd.yaml").write_text(yaml.safe_dump(content | {"BENCH": bench}))
        one = {"configs": "kd.yaml", "pairs": ["one"], "distillers": ["KD"], "options": {}}
        return next(step for step in plan(**(one | {"arms": {"lens": "fit"}})) if step.makes)

    first = step(FRACTION=0.5)
    JPEGLens(q=5.0).save(first.makes)
    record = Path(first.makes).with_suffix(".json")
    record.write_text(json.dumps({"about": {}} | run_record(first.settings())))
    assert first.result() is not None
    assert step(FRACTION=0.5, EVAL_EVERY=7, DEVICE="cuda:3").result() is not None
    half = {"FRACTION": 0.5}
    for changed in ({}, half | {"HOLDOUT": 0.1}, half | {"PRECISION": "bfloat16"}):
        with pytest.raises(DJIPError, match=r"fitted with other settings: BENCH\.\w+ \S+ \(now"):
            step(**changed).result()
    record.write_text(json.dumps({"about": {}}))  # as early versions left it
    assert step().result() is not None


def test_where_a_run_happens_does_not_make_it_another() -> None:
    step = next(step for step in plan() if step.name == "KD vgg13_vgg8, plain, seed 0")
    cfg = step.cfg()
    cfg.BENCH.DEVICE, cfg.BENCH.DATA_ROOT, cfg.LOG.TENSORBOARD_FREQ = "cuda:3", "/elsewhere", 1
    run_folder(cfg).mkdir(parents=True)
    (run_folder(cfg) / "result.json").write_text(json.dumps(run_record(cfg)))
    assert step.result() is not None


def test_a_students_folder_is_named_after_its_lens_once_there_is_one() -> None:
    step = next(step for step in plan() if step.name == "KD vgg13_vgg8, lens, seed 0")
    assert step.result() is None and step.epochs_done() == 0
    lens = JPEGLens(q=5.0)
    lens.save(step.lens)
    folder = Path("out/lens", f"djip-{lens_id(lens)}", "kd_vgg13_vgg8", "seed-0")
    assert run_folder(step.cfg()) == folder
    folder.mkdir(parents=True)
    (folder / "log.csv").write_text("epoch\n1\n2\n")
    assert step.epochs_done() == 0  # it would begin anew
    (folder / "latest.pth").touch()
    assert step.epochs_done() == 2


def test_a_lens_is_done_when_all_of_its_fit_is() -> None:
    step = next(step for step in plan() if step.kind == "lens")
    path = Path(step.makes)
    JPEGLens(q=5.0).save(path)
    assert step.result() is None  # its record is missing
    path.with_suffix(".json").write_text('{"about": {}}')
    path.with_suffix(".fit.pth").touch()
    assert step.result() is None  # a fit is under way
    path.with_suffix(".fit.pth").unlink()
    assert step.result() == {"about": {}}


def test_a_lens_file_may_be_named_after_its_teacher() -> None:
    for teacher in ("resnet32x4", "vgg13"):
        JPEGLens(q=5.0).save(f"lenses/{teacher}.safetensors")
    lenses = {
        step.lens
        for step in plan(arms={"lens": "lenses/{teacher}.safetensors"})
        if step.kind == "student"
    }
    assert lenses == {"lenses/resnet32x4.safetensors", "lenses/vgg13.safetensors"}


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"pair": ["a"]}, "unknown key pair"),
        ({"pairs": []}, "pairs is missing"),
        ({"seeds": "three"}, "seeds is 'three'"),
        ({"seeds": 0}, "seeds is 0"),
        ({"distillers": ["MAGIC"]}, "MAGIC"),
        ({"distillers": ["CRD", "CRD"]}, "twice"),
        ({"arms": {"lens": "magic"}}, "arm lens"),
        ({"arms": {"lens": "fit-mild"}}, "arm lens is 'fit-mild'; give identity"),
        ({"arms": {"a/b": "identity"}}, "a/b"),
        ({"arms": {"lens": "nowhere.safetensors"}}, "nowhere.safetensors"),
        ({"options": {"DKD": {}}}, "no section DKD"),
        ({"options": {"all": {"BENCH.SEEDS": 3}}}, "SEEDS"),
        ({"options": {"student": {"BENCH.SEED": 7}}}, "options of student cannot set BENCH.SEED"),
        ({"options": {"KD": {"EXPERIMENT.PROJECT": "x"}}}, "options of KD cannot set EXPERIMENT"),
        ({"options": {"all": {"LOG.PREFIX": "x"}}}, "options of all cannot set LOG.PREFIX"),
        (
            {"options": {"lens": {"DISTILLER.TEACHER": "vgg8"}}},
            "options of lens cannot set DISTILLER.TEACHER",
        ),
        (
            {"options": {"all": {"BENCH.TEACHER_CHECKPOINT": "vgg13.pth"}}},
            "options of all cannot set BENCH.TEACHER_CHECKPOINT; teachers names",
        ),
        ({"arms": {"lens": "jpeg:0"}}, "arm lens is 'jpeg:0'; the JPEG quality is 0"),
        ({"arms": {"lens": "jpeg:101"}}, "arm lens is 'jpeg:101'; the JPEG quality is 101"),
        ({"arms": {"lens": "random:0"}}, "arm lens is 'random:0'; MEDIAN is a positive number"),
        ({"arms": {"lens": "random:1.2.3"}}, "arm lens is 'random:1.2.3'; MEDIAN is a positive"),
        ({"pairs": ["no_such"]}, "no_such"),
        ({"teachers": TABLE["teachers"] | {"vgg13": "nowhere.pth"}}, "nowhere.pth"),
        ({"teachers": {}}, "download_ckpts"),
        ({"teachers": {"vgg13": None}}, "teachers of vgg13 is None; it takes a checkpoint"),
        ({"vary": {1: [2]}}, "vary cannot take 1; it takes KEY"),
        (
            {"teachers": {"resnet32x4": f"{CONFIGS}/vanilla/vgg13.yaml", "vgg13": "vgg13.pth"}},
            "trains vgg13",
        ),
        ({"configs": "configs/{method}/{pair}.yaml"}, "takes {distiller} and {pair}"),
        ({"configs": f"{CONFIGS}/vanilla/res8x4.yaml"}, "DISTILLER.TYPE NONE"),
    ],
)
def test_a_mistake_in_a_table_is_one_line_that_names_it(changes: dict, names: str) -> None:
    with pytest.raises(DJIPError, match=names) as caught:
        plan(**changes)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_refused() -> None:
    with pytest.raises(DJIPError, match="docs/tables.md"):
        load_table("nowhere.yaml")
    Path("t.yaml").write_text("just words")
    with pytest.raises(DJIPError, match="not a table"):
        load_table("t.yaml")
    Path("t.yaml").write_bytes("pairs: [Prüfung]".encode("latin-1"))
    with pytest.raises(DJIPError, match=r"t.yaml is not valid YAML: .* codec can't decode"):
        load_table("t.yaml")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"config": "a: ["}', b"\xff"])
def test_a_damaged_record_is_one_line_that_says_what_to_delete(content: str | bytes) -> None:
    steps = {step.name: step for step in plan()}
    student, lens = steps["KD vgg13_vgg8, plain, seed 0"], steps["lens jpeg of vgg13"]
    JPEGLens(q=5.0).save(lens.makes)
    for step, record in (
        (student, run_folder(student.cfg()) / "result.json"),
        (lens, Path(lens.makes).with_suffix(".json")),
    ):
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(DJIPError, match=f"{record} is not the record of a") as caught:
            step.result()
        assert "delete" in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_of_other_images_is_never_taken_for_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from djip_ext.bench.dataset import image_sets
    from djip_ext.bench.dataset.synthetic import make_synthetic

    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    images = {"all": {"DATASET.TYPE": "synthetic"}}
    step = next(step for step in plan(options=images) if step.name.startswith("KD vgg13"))
    ((now, test),) = reproduce.check_data([step]).values()
    assert (now["images"], test["images"]) == (40, 40)
    record = run_folder(step.cfg()) / "result.json"
    record.parent.mkdir(parents=True)

    def done(**data: object) -> None:
        record.write_text(json.dumps(run_record(step.cfg()) | data))

    done(data={"train": now, "test": test})
    reproduce.refuse_other_images([step], reproduce.check_data([step]))
    done()  # as early versions left it
    reproduce.refuse_other_images([step], reproduce.check_data([step]))
    for name in ("train", "test"):
        other = {"images": 60, "sha256": "feed"}
        done(data={"train": now, "test": test} | {name: other})
        words = f"{record.parent} holds a run of other images: 60 {name}ing images"
        with pytest.raises(SystemExit):
            main(["reproduce", "t.yaml", "--out", "out"])
        said = capsys.readouterr().err
        assert words.replace("testing", "test") in said and "(feed)" in said
        assert f"now 40 ({now['sha256'] if name == 'train' else test['sha256']})" in said


@pytest.mark.parametrize(
    "path", sorted((ROOT / "results").glob("*/*.yaml")), ids=lambda path: path.stem
)
def test_every_table_of_the_project_plans(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    table = load_table(path)
    steps = make_plan(table, "out")
    students = [step for step in steps if step.kind == "student"]
    assert len(students) == table.students
    for step in steps:
        if step.kind == "lens":
            parser = argparse.ArgumentParser()
            train_lens.add_arguments(parser)
            assert not [
                word for word in parser.parse_known_args(step.words[1:])[1] if word.startswith("-")
            ]


def test_a_dry_run_prints_every_command_and_counts_its_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from safetensors.torch import save_file

    from djip_ext.bench.dataset import image_sets
    from djip_ext.bench.dataset.synthetic import make_synthetic
    from djip_ext.bench.engine.run import build_model

    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )  # 40 images
    save_file(build_model("resnet8", 20).state_dict(), "teacher.safetensors")
    table = {
        "configs": f"{CONFIGS}/fewshot/{{distiller}}_{{pair}}.yaml",
        "pairs": ["wrn_16_2_resnet8"],
        "distillers": ["KD", "FT"],
        "arms": {"plain": "identity", "lens": "fit --images 20 --rounds 4"},
        "teachers": {"resnet8": "teacher.safetensors"},
        "seeds": 2,
        "epochs": 3,
        "options": {
            "all": {
                "DATASET.TYPE": "synthetic",
                "DISTILLER.TEACHER": "resnet8",
                "BENCH.DEVICE": "cpu",
            },
            "KD": {"BENCH.VIEWS": 5},
        },
    }
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    main(["reproduce", "t.yaml", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("djip ")]
    assert commands == [str(step) for step in make_plan(load_table("t.yaml"), "output/t")]
    cost = {
        line[2:].split(":")[0]: line.split(": ")[1].split(" student passes")[0]
        for line in lines
        if line.startswith("# ")
    }
    assert cost["lens lens of resnet8"] == (
        f"{20 * (1 + 5 + 2 * 4) + 2 * 20 + 2 * 40 + 2 * 40} teacher and 0"
    )
    assert (
        cost["KD wrn_16_2_resnet8, plain, seed 0"] == f"{5 * 40} teacher and {3 * 40}"
    )  # asked once for every view, for all seeds
    assert cost["KD wrn_16_2_resnet8, plain, seed 1"] == f"0 teacher and {3 * 40}"
    assert cost["FT wrn_16_2_resnet8, lens, seed 1"] == f"{(3 + 30) * 40:,} teacher and {3 * 40}"
    hours = [
        float(line.rsplit(" hours", 1)[0].rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("in all")
    ]
    assert len(hours) == 1 and not Path("output").exists()

    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    main(["reproduce", "t.yaml", "--dry-run", "--workers", "4"])
    assert threads == [2] and "with 4 workers" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ("fit --start 'jpeg:70", "No closing quotation"),
        ("fit --rounds ten", "invalid int value: 'ten'"),
        ("fit --rounds", "expected one argument"),
        ("fit --rond 3", "unrecognized arguments: --rond"),
        ("fit --rounds -1", "rounds"),
        ("fit --queries 2000", "--black-box; add it"),
        ("fit --out mine.safetensors", "cannot have --out, --cfg"),
        ("fit --data-roo /elsewhere", "cannot have --out, --cfg"),
        ("fit BENCH.FRACTION 0.5", "KEY VALUE pairs"),
    ],
)
def test_wrong_flags_of_a_fit_are_said_before_anything_runs(
    fit: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("t.yaml").write_text(yaml.safe_dump(TABLE | {"arms": {"lens": fit}}, sort_keys=False))
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", "t.yaml", "--dry-run"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: arm lens is 'fit") and message in said


def test_parameters_of_a_job_are_numbers_where_they_look_like_some() -> None:
    assert reproduce.parameters(["timeout_min=5", "slurm_partition=gpu"]) == {
        "timeout_min": 5,
        "slurm_partition": "gpu",
    }
    with pytest.raises(DJIPError, match="KEY=VALUE"):
        reproduce.parameters(["gpu"])


OWN = f"{CONFIGS}/vanilla/res32x4.yaml"  # trains resnet32x4
ARMS = {
    "plain": "identity",
    "tuned": {"teacher": OWN},
    "tuned+lens": {"teacher": OWN, "before": "fit --images 100"},
    "afresh": {"teacher": OWN, "start": "scratch"},
    "slow": {"options": {"SOLVER.LR": 0.01}},
}


def composed(**changes: object) -> list[Step]:
    one = {"pairs": ["res32x4_res8x4"], "distillers": ["KD"], "options": {}}
    return plan(**(one | {"arms": ARMS, "seeds": 1} | changes))


def test_arms_compose_a_teacher_of_their_own_a_lens_and_options() -> None:
    steps = composed()
    assert [(step.kind, step.name) for step in steps if step.kind != "student"] == [
        ("teacher", "teacher resnet32x4"),
        ("teacher", "teacher resnet32x4, res32x4"),
        ("teacher", "teacher resnet32x4, res32x4-scratch"),
        ("lens", "lens tuned+lens of resnet32x4"),
    ]
    own, tuned, afresh, lens = steps[:4]
    assert tuned.settings().BENCH.STUDENT_CHECKPOINT == (
        "out/teachers/resnet32x4/seed-0/student_last.pth"
    )
    assert tuned.needs == (own,) and afresh.needs == () and lens.needs == (tuned,)
    assert afresh.settings().BENCH.STUDENT_CHECKPOINT == ""
    students = {step.name.split(", ")[1]: step for step in steps[4:]}
    teachers = {name: step.settings().BENCH.TEACHER_CHECKPOINT for name, step in students.items()}
    kept = "out/teachers/resnet32x4{}/seed-0/student_last.pth"
    assert teachers == {
        "plain": kept.format(""),
        "tuned": kept.format("-res32x4"),
        "tuned+lens": kept.format("-res32x4"),
        "afresh": kept.format("-res32x4-scratch"),
        "slow": kept.format(""),
    }
    assert students["tuned+lens"].needs == (tuned, lens)
    assert students["slow"].settings().SOLVER.LR == 0.01
    assert students["plain"].settings().SOLVER.LR == 0.05
    folders = {str(Path(run_folder(step.settings()))) for step in students.values()}
    assert len(folders) == len(students)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({"teacher": "vgg13.pth"}, r"takes a configuration \(.yaml\)"),
        ({"start": "scratch"}, "beside a teacher"),
        ({"teacher": OWN, "start": "here"}, "one of teacher, scratch"),
        ({"of": "identity"}, "a mapping with before, teacher, start, options"),
        ({"options": [1]}, "takes KEY: VALUE pairs"),
        ({"options": {"BENCH.SEED": 1}}, "cannot set BENCH.SEED"),
        ({"options": {"SOLVER.NO": 1}}, "SOLVER.NO"),
        ({"options": {"KD.TEMPERATURE": 2}}, "sets KD.TEMPERATURE, which the table varies"),
        ({"teacher": f"{CONFIGS}/vanilla/vgg13.yaml"}, "trains vgg13"),
        ({}, "a mapping with"),
        ({"before": "jpeg"}, "give identity"),
    ],
)
def test_a_wrong_arm_is_named(arm: dict[str, object], message: str) -> None:
    arms = {"plain": "identity", "wrong": arm}
    with pytest.raises(DJIPError, match=message):
        plan(
            pairs=["res32x4_res8x4"],
            distillers=["KD"],
            arms=arms,
            options={},
            vary={"KD.TEMPERATURE": [1, 4]},
        )


def test_an_arm_must_not_be_called_as_a_folder_of_the_table_is() -> None:
    with pytest.raises(DJIPError, match="cannot be called 'labels'"):
        plan(arms={"labels": "identity"})


def test_an_arm_can_stand_behind_the_lens_its_teacher_was_trained_with() -> None:
    arms = {"plain": "identity", "own": {"teacher": OWN, "before": "own"}}
    one = {"pairs": ["res32x4_res8x4"], "distillers": ["KD"], "options": {}, "seeds": 1}
    steps = plan(**(one | {"arms": arms}))
    assert steps[-1].lens == "out/teachers/resnet32x4-res32x4/seed-0/lens.safetensors"
    assert steps[-1].lacks_its_lens() and steps[-1].result() is None
    with pytest.raises(DJIPError, match="give it a teacher"):
        plan(arms={"plain": "identity", "lens": "own"})


def test_the_lens_that_a_teacher_was_trained_with_has_its_record_in_the_first_report(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = TABLE | {"pairs": ["res32x4_res8x4"], "distillers": ["KD"], "options": {}, "seeds": 1}
    table["arms"] = {"plain": "identity", "own": {"teacher": OWN, "before": "own"}}
    Path("t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))

    def trained(steps: list[Step], *_: object) -> Outcome:
        JPEGLens(q=5.0).save(steps[-1].lens)
        return Outcome()

    reported = []
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(reproduce, "check_data", lambda steps: {})
    monkeypatch.setattr(reproduce, "refuse_other_images", lambda *_: None)
    monkeypatch.setattr(reproduce, "run_plan", trained)
    monkeypatch.setattr(
        reproduce, "report", lambda *_: reported.extend(Path("output/t/lenses").glob("*.json"))
    )
    main(["reproduce", "t.yaml"])
    name = f"resnet32x4-own-{lens_id(JPEGLens(q=5.0))}.json"
    assert [path.name for path in reported] == [name]


def test_teachers_of_arms_whose_configurations_share_a_name_have_folders_of_their_own() -> None:
    other = Path("elsewhere/res32x4.yaml")
    other.parent.mkdir()
    other.write_text(Path(OWN).read_text())
    arms = {"plain": "identity", "one": {"teacher": OWN}, "two": {"teacher": str(other)}}
    one = {"pairs": ["res32x4_res8x4"], "distillers": ["KD"], "options": {}, "seeds": 1}
    steps = plan(**(one | {"arms": arms}))
    teachers = [step for step in steps if step.kind == "teacher"]
    names = {Path(run_folder(step.settings())).parent.name for step in teachers}
    assert names == {"resnet32x4", "resnet32x4-vanilla-res32x4", "resnet32x4-elsewhere-res32x4"}
