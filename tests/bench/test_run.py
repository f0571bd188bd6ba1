"""Runs and what they leave: checkpoints, records, kept teachers, paired comparison."""

import copy
import csv
import functools
import json
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine import record as records
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.run import (
    build_model,
    code_version,
    load_weights,
    resolve_device,
    run_record,
    train,
)
from djip_ext.errors import DJIPError
from djip_ext.experiments.runs import read_arm
from djip_ext.experiments.statistics import compare, markdown, summarise
from djip_ext.hosts.registry import install, uninstall
from djip_ext.lens.io import weight_hash
from djip_ext.lens.jpeg_lens import JPEGLens
from djip_ext.lens.normalisation import Normalisation
from djip_ext.ops import fused

SMALL = [
    "DATASET.TYPE",
    "synthetic",
    "BENCH.DEVICE",
    "cpu",
    "SOLVER.EPOCHS",
    3,
    "SOLVER.BATCH_SIZE",
    20,
    "SOLVER.LR",
    0.01,
]
SMALL += ["DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8"]


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list:
    """Three epochs on forty images, with a teacher of random weights."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    teacher = tmp_path / "teacher.safetensors"
    save_file(build_model("resnet8", 20).state_dict(), teacher)
    return [*SMALL, "BENCH.TEACHER_CHECKPOINT", str(teacher), "LOG.PREFIX", str(tmp_path)]


def test_a_run_leaves_its_record(options: list, tmp_path: Path) -> None:
    result = train(
        load_cfg(None, [*options, "EXPERIMENT.NAME", "run", "BENCH.SEED", 3, "BENCH.EVAL_EVERY", 2])
    )
    folder = tmp_path / "distill" / "run" / "seed-3"
    with open(folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["test_acc"]) for row in rows] == [False, True, True]
    on_disk = json.loads((folder / "result.json").read_text())
    assert on_disk == result and on_disk["best_acc"] >= on_disk["last_acc"] == float(
        rows[-1]["test_acc"]
    )
    assert "SEED: 3" in on_disk["config"] and on_disk["environment"]["torch"] == torch.__version__
    for name in ("student_last.pth", "student_best.pth"):
        load_weights(build_model("resnet8", 20), folder / name)
    assert list((folder / "train.events").iterdir()) and not list(folder.glob(".*partial"))


@pytest.mark.parametrize("broken_off", [False, True])
def test_the_best_student_is_that_of_the_first_best_epoch(
    broken_off: bool, options: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    students, accuracies = [], iter([30.0, 50.0, *[KeyboardInterrupt] * broken_off, 50.0])

    def evaluate(student: torch.nn.Module, *_: object) -> dict[str, float]:
        accuracy = next(accuracies)
        if accuracy is KeyboardInterrupt:
            raise accuracy
        students.append(copy.deepcopy(student.state_dict()))
        return {"test_acc": accuracy}

    monkeypatch.setattr("djip_ext.bench.engine.trainer.evaluate", evaluate)
    cfg = load_cfg(None, [*options, "EXPERIMENT.NAME", "run"])
    if broken_off:
        with pytest.raises(KeyboardInterrupt):
            train(cfg)
    result = train(cfg, resume=broken_off)
    assert (result["best_epoch"], result["best_acc"]) == (2, 50.0)
    for name, student in (("best", students[1]), ("last", students[2])):
        path = Path(result["folder"], f"student_{name}.pth")
        saved = torch.load(path, weights_only=True)["model"]
        torch.testing.assert_close(saved, student, rtol=0, atol=0)


def test_a_record_names_the_weights_of_the_teacher_and_they_must_not_change(options: list) -> None:
    for lens in (None, "identity"):
        if lens:
            install(lens, "djip_ext.bench")
        cfg = load_cfg(None, [*options, "EXPERIMENT.NAME", f"run-{lens}", "DISTILLER.TYPE", "KD"])
        result = train(cfg)
        assert result["teacher_hash"] == weight_hash(
            load_weights(build_model("resnet8", 20), cfg.BENCH.TEACHER_CHECKPOINT)
        )
    uninstall("djip_ext.bench")
    (Path(result["folder"]) / "result.json").unlink()
    save_file(build_model("resnet8", 20).state_dict(), cfg.BENCH.TEACHER_CHECKPOINT)
    install("identity", "djip_ext.bench")
    with pytest.raises(DJIPError, match="another teacher_hash"):
        train(cfg, resume=True)
    uninstall("djip_ext.bench")


def test_a_record_names_the_weights_it_started_from_and_they_must_not_change(
    options: list,
) -> None:
    start = options[options.index("BENCH.TEACHER_CHECKPOINT") + 1]
    cfg = load_cfg(None, [*options, "EXPERIMENT.NAME", "tuned", "BENCH.STUDENT_CHECKPOINT", start])
    result = train(cfg)
    assert result["start_hash"] == weight_hash(load_weights(build_model("resnet8", 20), start))
    (Path(result["folder"]) / "result.json").unlink()
    save_file(build_model("resnet8", 20).state_dict(), start)
    with pytest.raises(DJIPError, match="another start_hash"):
        train(cfg, resume=True)
    assert "start_hash" not in train(load_cfg(None, [*options, "SOLVER.EPOCHS", 1]))


def test_a_record_holds_the_base_that_lskd_standardises_for() -> None:
    def node(base: str) -> dict | None:
        return yaml.safe_load(
            run_record(
                load_cfg(None, ["DISTILLER.TYPE", "LSKD", "LSKD.BASE", base, "DKD.BETA", 2.0])
            )["config"]
        ).get("DKD")

    assert node("DKD")["BETA"] == 2.0 and node("KD") is None


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_code_is_that_of_a_repository_that_holds_this_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the project in whose virtual environment it is installed."""

    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    installed = tmp_path / ".venv" / "djip_ext" / "record.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "a project of its own")
    monkeypatch.setattr(records, "__file__", str(installed))
    assert code_version() == ""
    git("add", ".venv")
    git("commit", "--quiet", "--message", "a checkout of djip_ext")
    assert code_version() == git("rev-parse", "--short=12", "HEAD")
    installed.write_text("# changed")
    assert code_version() == git("rev-parse", "--short=12", "HEAD") + "+"


def test_wandb_is_answered_with_a_note(options: list, capsys: pytest.CaptureFixture) -> None:
    train(load_cfg(None, [*options, "LOG.WANDB", True, "SOLVER.EPOCHS", 1]))
    assert "note: LOG.WANDB is True" in capsys.readouterr().out


def test_a_lens_undoes_the_scale_of_the_loader(
    options: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the data set's name, which a network of another library may not share."""
    scale = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    monkeypatch.setattr(
        image_sets,
        "make_synthetic",
        lambda per_class, seed: replace(make_synthetic(2, seed), mean=scale[0], std=scale[1]),
    )
    seen = []
    monkeypatch.setattr(Normalisation, "through", lambda self, lens, x: seen.append(self) or x)
    lens = JPEGLens(q=5.0)
    lens.metadata = {"mean": list(scale[0]), "std": list(scale[1])}
    install(lens, "djip_ext.bench")
    try:
        train(load_cfg(None, [*options, "DISTILLER.TYPE", "KD", "SOLVER.EPOCHS", 1]))
    finally:
        uninstall("djip_ext.bench")
    assert seen and (seen[0].mean, seen[0].std) == scale


def test_a_finished_folder_is_not_overwritten(options: list) -> None:
    cfg = load_cfg(None, [*options, "EXPERIMENT.NAME", "run"])
    train(cfg)
    with pytest.raises(DJIPError, match="--resume"):
        train(cfg)


def test_a_run_with_other_settings_does_not_resume(options: list) -> None:
    train(load_cfg(None, [*options, "EXPERIMENT.NAME", "run"]))
    with pytest.raises(DJIPError, match="SOLVER.LR"):
        train(load_cfg(None, [*options, "EXPERIMENT.NAME", "run", "SOLVER.LR", 0.5]), resume=True)


def test_seeds_differ_and_repeat(options: list) -> None:
    def student(name: str, seed: int) -> torch.Tensor:
        result = train(load_cfg(None, [*options, "EXPERIMENT.NAME", name, "BENCH.SEED", seed]))
        return torch.load(Path(result["folder"]) / "student_last.pth", weights_only=True)["model"][
            "fc.weight"
        ]

    first = student("a", 1)
    assert torch.equal(first, student("b", 1)) and not torch.equal(first, student("a", 2))


def test_an_exploding_run_stops_with_the_epoch(options: list) -> None:
    with pytest.raises(DJIPError, match="epoch 1.*SOLVER.LR"):
        train(load_cfg(None, [*options, "SOLVER.LR", 1e30]))


@pytest.mark.parametrize(
    "change, names",
    [
        (["DISTILLER.TYPE", "MAGIC"], "MAGIC"),
        (["DISTILLER.STUDENT", "resnet9"], "resnet9"),
        (["SOLVER.TYPE", "LION"], "LION"),
        (["BENCH.PRECISION", "int3"], "int3"),
        (["BENCH.DEVICE", "tpu9"], "tpu9"),
        (["DISTILLER.TYPE", "KD", "BENCH.TEACHER_CHECKPOINT", ""], "TEACHER_CHECKPOINT"),
        (["DISTILLER.TYPE", "KD", "BENCH.TEACHER_CHECKPOINT", "nowhere.pth"], "nowhere.pth"),
        (["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "resnet14"], "does not fit"),
        (["BENCH.EVAL_EVERY", 0], "EVAL_EVERY is 0"),
        (
            ["DISTILLER.TYPE", "FT", "FT.RATE", 0.001],
            "FT.RATE is 0.001, .* none of the 64 channels .* 1/64 or more",
        ),
        (
            ["DISTILLER.TYPE", "FITNET", "FITNET.HINT_LAYER", 9],
            "HINT_LAYER is 9; the student has 4 maps",
        ),
        (
            ["DISTILLER.TYPE", "CRD", "SOLVER.TRAINER", "crd", "CRD.FEAT.STUDENT_DIM", 64],
            "TEACHER_DIM is 256, .* set it to 64",
        ),
    ],
)
def test_a_wrong_setting_is_refused_by_name(change: list, names: str, options: list) -> None:
    with pytest.raises(DJIPError, match=names) as caught:
        train(load_cfg(None, [*options, *change]))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_for_another_number_of_classes_is_refused(
    options: list, tmp_path: Path
) -> None:
    torch.save({"model": build_model("resnet8", 7).state_dict()}, tmp_path / "seven.pth")
    with pytest.raises(DJIPError, match="size mismatch"):
        load_weights(build_model("resnet8", 20), tmp_path / "seven.pth")


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_checkpoint_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(DJIPError, match="damaged"):
        load_weights(build_model("resnet8", 20), path)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DJIPError, match="evil.pth"):
        load_weights(build_model("resnet8", 20), tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_auto_finds_a_device() -> None:
    assert resolve_device("auto").type in ("cpu", "cuda")


def test_a_lens_changes_the_student_and_identity_does_not(options: list) -> None:
    def last_loss(name: str, lens) -> float:
        if lens is not None:
            install(lens, "djip_ext.bench", any_teacher=True)
        try:
            result = train(
                load_cfg(None, [*options, "DISTILLER.TYPE", "KD", "EXPERIMENT.NAME", name])
            )
        finally:
            uninstall("djip_ext.bench")
        with open(Path(result["folder"]) / "log.csv") as file:
            return float(list(csv.DictReader(file))[-1]["train_loss"])

    plain = last_loss("plain", None)
    assert last_loss("identity", "identity") == plain
    assert last_loss("lens", JPEGLens(q=60.0)) != plain


def test_compiled_networks_give_the_same_student_behind_a_lens(
    options: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced by the real compiler.

    What that generates is left out here, since a C++ compiler takes a minute for it.
    """
    traced = []

    def backend(graph: torch.fx.GraphModule, _: list) -> torch.fx.GraphModule:
        traced.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    install(JPEGLens(q=60.0), "djip_ext.bench", any_teacher=True)
    try:
        kd = [*options, "DISTILLER.TYPE", "KD"]
        results = {
            compiled: train(
                load_cfg(
                    None,
                    [*kd, "EXPERIMENT.NAME", f"compiled {compiled}", "BENCH.COMPILE", compiled],
                )
            )
            for compiled in (False, True)
        }
    finally:
        uninstall("djip_ext.bench")
        fused.kernels.cache_clear()  # they hold this backend
    assert sum("conv" in str(graph.graph) for graph in traced) >= 2  # student and teacher
    first, second = (
        torch.load(Path(result["folder"], "student_last.pth"), weights_only=True)["model"]
        for result in results.values()
    )
    assert first.keys() == second.keys()
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)


def test_a_machine_that_cannot_compile_says_so_first(
    options: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(torch, "compile", lambda function: fails)
    with pytest.raises(
        DJIPError,
        match=r"BENCH.COMPILE: torch.compile does not work here \(no C\+\+ compiler found\)",
    ):
        train(load_cfg(None, [*options, "BENCH.COMPILE", True]))
    assert not list(tmp_path.rglob("log.csv"))


def test_a_kept_teacher_gives_nearly_the_students_of_a_live_one(
    options: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*options, "DISTILLER.TYPE", "RKD", "BENCH.VIEWS", 2]
    kept = train(load_cfg(None, [*options, "EXPERIMENT.NAME", "kept"]))
    assert len(list((tmp_path / "teacher_cache").glob("*.safetensors"))) == 1
    monkeypatch.setattr(
        "djip_ext.bench.engine.run.cached_teacher", lambda teacher, *_: teacher
    )  # live, on the same views
    live = train(load_cfg(None, [*options, "EXPERIMENT.NAME", "live"]))

    def losses(result: dict) -> list[float]:
        with open(Path(result["folder"]) / "log.csv") as file:
            return [float(row["train_loss"]) for row in csv.DictReader(file)]

    assert losses(kept) == pytest.approx(losses(live), rel=2e-3)  # kept as float16


def test_a_kept_teacher_refuses_methods_that_need_maps(options: list) -> None:
    with pytest.raises(DJIPError, match="BENCH.VIEWS 0"):
        train(load_cfg(None, [*options, "DISTILLER.TYPE", "AT", "BENCH.VIEWS", 2]))


def test_summaries_match_a_table_of_students_t() -> None:
    summary = summarise([1.0, 2.0, 4.0, 5.0])
    assert (summary.n, summary.mean) == (4, 3.0)
    assert summary.spread == pytest.approx(math.sqrt(10 / 3))
    assert summary.half_width == pytest.approx(
        3.182446 * math.sqrt(10 / 3) / 2, rel=5e-4
    )  # the table has three decimals
    assert math.isnan(summarise([1.0]).half_width)


def record(folder: Path, accuracies: dict[int, float]) -> Path:
    for seed, accuracy in accuracies.items():
        (folder / f"seed-{seed}").mkdir(parents=True)
        (folder / f"seed-{seed}" / "result.json").write_text(
            json.dumps({"last_acc": accuracy, "best_acc": accuracy + 1})
        )
    return folder


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    plain = record(tmp_path / "plain", {0: 10.0, 1: 20.0, 2: 30.0})
    lens = record(tmp_path / "lens", {1: 21.0, 2: 32.0, 5: 99.0})
    first, second = compare({"plain": read_arm(plain), "lens": read_arm(lens)})
    assert (first["n"], second["n"], second["pairs"]) == (3, 3, 2)
    assert second["last_acc_diff"] == pytest.approx(1.5)
    assert second["last_acc_ci95"] == pytest.approx(
        12.706 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4
    )
    assert "+1.50 ± 6.35" in markdown([first, second])


def test_arms_without_runs_or_common_seeds_are_refused(tmp_path: Path) -> None:
    plain = record(tmp_path / "plain", {0: 10.0})
    with pytest.raises(DJIPError, match="no finished run"):
        read_arm(tmp_path / "empty")
    with pytest.raises(DJIPError, match="no seed in common"):
        compare({"plain": read_arm(plain), "lens": read_arm(record(tmp_path / "lens", {4: 10.0}))})
