"""The commands as a user types them: the whole story in small, and mistakes as one line."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from djip_ext import load_lens
from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.image_sets import make_loader
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.bench.engine.networks import build_teacher
from djip_ext.bench.engine.run import build_model
from djip_ext.cli import demo, train_lens
from djip_ext.cli.expectation import expectation
from djip_ext.cli.main import main, run_command
from djip_ext.fit.record import parse_record
from djip_ext.fit.settings import FitSettings
from djip_ext.hosts.task import HostTask
from djip_ext.lens.initial_tables import mean_magnitude, random_tables, sensitivity, standard_jpeg
from djip_ext.lens.jpeg_lens import Q_MAX, Q_MIN

TINY = [
    "DATASET.TYPE",
    "synthetic",
    "SOLVER.EPOCHS",
    "1",
    "SOLVER.BATCH_SIZE",
    "20",
    "DISTILLER.TEACHER",
    "resnet8",
    "DISTILLER.STUDENT",
    "resnet8",
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forty training images, one epoch, and a working folder of its own."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(2, seed)
    )
    monkeypatch.setattr(demo, "SOLVER", ["SOLVER.BATCH_SIZE", "20", "SOLVER.EPOCHS", "1"])
    monkeypatch.setattr(demo, "FEW_SHOT", [])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def teacher() -> str:
    run_command(["train", *TINY, "EXPERIMENT.NAME", "teacher"])
    return "output/distill/teacher/seed-0/student_last.pth"


def refused(capsys: pytest.CaptureFixture, *command: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(command)
    errors = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ") and errors.count("error: ") == 1
    return last


def test_the_demo_tells_the_whole_story(capsys: pytest.CaptureFixture) -> None:
    run_command(["demo"])
    out = Path("output/demo")
    record = json.loads((out / "demo.json").read_text())
    assert (
        record["finished"]
        and record["difference"] == record["lens"]["last_acc"] - record["plain"]["last_acc"]
    )
    assert (record["plain"]["lens"], len(record["lens"]["lens"])) == ("identity", 8)
    printed = capsys.readouterr().out
    assert (out / "comparison.md").read_text().splitlines()[0] in printed
    assert {path.name for path in (out / "pictures").iterdir()} >= {
        "tables.png",
        "images.png",
        "cmi.png",
        "fit.png",
        "simplex.png",
    }


def test_a_reader_who_has_enough_gets_no_traceback() -> None:
    lines = "print('x' * 10000) for _ in range(100)"
    code = f"from djip_ext.cli import main as m; m.run_command = lambda _: [{lines}]; m.main([])"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGPIPE and process.stderr.read() == b""


def test_the_demo_leaves_what_it_did_not_make_alone(capsys: pytest.CaptureFixture) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    assert "--overwrite" in refused(capsys, "demo", "--out", "mine")
    assert "left alone" in refused(capsys, "demo", "--out", "mine", "--overwrite")
    assert Path("mine/thesis.tex").read_text() == "years of work"


def test_a_file_where_a_folder_should_be_is_named(capsys: pytest.CaptureFixture) -> None:
    Path("mine").write_text("years of work")
    assert "Not a directory: mine; a file stands" in refused(capsys, "demo", "--out", "mine")
    assert Path("mine").read_text() == "years of work"


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_fit_says_what_the_distiller_will_read(
    teacher: str, temperature: float, capsys: pytest.CaptureFixture
) -> None:
    options = ["DISTILLER.TYPE", "KD", "KD.TEMPERATURE", str(temperature)]
    options += ["BENCH.TEACHER_CHECKPOINT", teacher]
    run_command(["fit", "--out", "a.safetensors", "--rounds", "1", *TINY, *options])
    about = load_lens("a.safetensors").metadata
    read = about["at_distiller"]
    assert (read["distiller"], read["temperature"]) == ("KD", temperature)
    own = read["before"] == pytest.approx(about["fit_before"]["cmi"], rel=1e-4)
    assert own == (temperature == 1.0)
    assert 0 < read["entropy_before"] < math.log(20) and 0 < read["entropy_after"] < math.log(20)
    printed = capsys.readouterr().out
    assert f"as KD reads it, at T = {temperature:g}" in printed
    assert ("expect no gain" in printed) == (temperature == 4.0)
    assert ("temperature:2" in printed) == (temperature == 1.0)


@pytest.mark.parametrize(
    ("distiller", "temperature", "words"),
    [
        ("KD", 1.0, "temperature:1.3) do as much"),
        ("WTTM", 1.0, "with WTTM at T = 1 a lens helps a student that overfits"),
        ("KD", 1.5, "with KD at T = 1.5 a lens helps a student that overfits"),
        ("KD", 2.0, "expect no gain: at T >= 2"),
        ("DKD", 1.0, "expect no gain with DKD"),
        ("DKD", 4.0, "expect no gain: at T >= 2"),
        ("DIST", 1.0, "expect little with DIST"),
        ("DIST", 4.0, "expect little with DIST"),
        ("LSKD", None, "expect no gain with LSKD"),
        ("AT", None, "that reads features"),
    ],
)
def test_what_to_expect_is_said_by_distiller(
    distiller: str, temperature: float | None, words: str
) -> None:
    assert words in expectation(distiller, temperature, 1.3)


def test_nothing_is_said_of_a_distiller_that_was_not_tried() -> None:
    assert expectation("HTC", None) == "" == expectation("", None)


def test_fit_says_what_to_expect_of_a_distiller_without_a_temperature(
    teacher: str, capsys: pytest.CaptureFixture
) -> None:
    options = ["DISTILLER.TYPE", "AT", "BENCH.TEACHER_CHECKPOINT", teacher]
    run_command(["fit", "--out", "a.safetensors", "--rounds", "1", *TINY, *options])
    assert "no lens has helped a distiller that reads features" in capsys.readouterr().out
    assert "at_distiller" not in load_lens("a.safetensors").metadata


def test_fit_writes_a_lens_that_knows_its_teacher_and_train_takes_it(
    teacher: str, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = ["BENCH.TEACHER_CHECKPOINT", teacher]
    run_command(["fit", "--out", "a.safetensors", "--rounds", "1", *TINY, *checkpoint])
    about = load_lens("a.safetensors").metadata
    assert (
        about["teacher"] == "resnet8"
        and about["dataset"] == "synthetic"
        and about["input_size"] == [32, 32]
    )
    assert {"cmi", "ce", "accuracy"} <= about["before"].keys() & about["test_after"].keys()
    record = json.loads(Path("a.json").read_text())
    assert record["about"] == about and record["data"]["fit"]["images"] == 40
    assert "TEACHER: resnet8" in record["config"] and record["environment"]["torch"]
    read = parse_record(record, "a.json")
    assert torch.equal(read.lens.q, load_lens("a.safetensors").q) and len(read.history) == 2
    assert (
        read.one_class.before.f.shape == (2, 3) and "°" in read.one_class.corners[0]
    )  # two images of a class of the synthetic set
    run_command(
        [
            "train",
            *TINY,
            *checkpoint,
            "DISTILLER.TYPE",
            "KD",
            "--djip-lens",
            "a.safetensors",
            "EXPERIMENT.NAME",
            "s",
        ]
    )
    assert "djip: lens" in capsys.readouterr().out
    run_command(["train", *TINY, "EXPERIMENT.NAME", "other", "--seed", "8"])
    other = "output/distill/other/seed-8/student_last.pth"
    message = refused(
        capsys,
        "train",
        *TINY,
        "BENCH.TEACHER_CHECKPOINT",
        other,
        "DISTILLER.TYPE",
        "KD",
        "--djip-lens",
        "a.safetensors",
        "EXPERIMENT.NAME",
        "x",
    )
    assert "--djip-any-teacher" in message


def test_fit_takes_teacher_and_images_from_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def read_host(*arguments: object) -> HostTask:
        asked.append(arguments)
        return HostTask(
            build_model("resnet8", 20),
            make_synthetic(4, 0),
            make_synthetic(1, 1),
            "cifar100",
            "resnet8",
        )

    monkeypatch.setattr(train_lens, "read_host", read_host)
    run_command(
        [
            "fit",
            "--host",
            "checkout",
            "--cfg",
            "theirs.yaml",
            "--images",
            "40",
            "--rounds",
            "1",
            "--out",
            "a.safetensors",
            "BENCH.DEVICE",
            "cpu",
            "DISTILLER.TEACHER",
            "resnet8",
        ]
    )
    assert asked == [
        ("checkout", "theirs.yaml", "mdistiller", 40, ["DISTILLER.TEACHER", "resnet8"])
    ]
    about = load_lens("a.safetensors").metadata
    assert (about["dataset"], about["teacher"], about["images"], about["host"]) == (
        "cifar100",
        "resnet8",
        40,
        "mdistiller",
    )
    record = yaml.safe_load(json.loads(Path("a.json").read_text())["config"])
    assert (record["DATASET"]["TYPE"], record["DISTILLER"]["TEACHER"]) == ("cifar100", "resnet8")


def test_a_fit_that_was_stopped_before_its_first_round_is_not_taken_for_the_one_before(
    teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        "fit",
        "--out",
        "a.safetensors",
        "--rounds",
        "1",
        *TINY,
        "BENCH.TEACHER_CHECKPOINT",
        teacher,
    ]
    run_command(command)
    real = train_lens.fit_lens

    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_lens, "fit_lens", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_command([*command, "--lr", "0.3"])
    monkeypatch.setattr(train_lens, "fit_lens", real)
    run_command([*command, "--lr", "0.3", "--resume"])
    assert load_lens("a.safetensors").metadata["fit"]["lr"] == 0.3


STARTS: dict[str, Callable[..., torch.Tensor]] = {
    "6": lambda network, *images: torch.full((2, 8, 8), 6.0),
    "jpeg:70": lambda network, *images: standard_jpeg(70),
    "magnitude": lambda network, *images: mean_magnitude(*images),
    "sensitivity:20": lambda network, *images: sensitivity(network, *images, q_max=20.0),
    "random:9": lambda network, *images: random_tables(9.0, seed=3),
}


@pytest.mark.parametrize("start", STARTS)
def test_every_start_is_measured_with_no_rounds(start: str, teacher: str) -> None:
    options = [*TINY, "BENCH.DEVICE", "cpu", "BENCH.TEACHER_CHECKPOINT", teacher]
    flags = ["--rounds", "0", "--start", start, "--alpha", "5", "--seed", "3"]
    run_command(["fit", "--out", "a.safetensors", *flags, *options])
    lens = load_lens("a.safetensors")
    assert lens.alpha == 5 and lens.kappa is None and lens.metadata["start"] == start
    data = make_synthetic(2, 0)
    network = build_teacher(load_cfg(None, options), data.num_classes).eval()
    q = STARTS[start](network, make_loader(data, 40), data.mean, data.std)
    torch.testing.assert_close(lens.q.detach(), q.clamp(Q_MIN, Q_MAX), rtol=1e-3, atol=0.0)


def test_every_setting_of_the_fit_has_a_flag(teacher: str) -> None:
    flags = [
        "--lam",
        "0.5",
        "--variant",
        "literal",
        "--temperature",
        "4",
        "--cmi-gain",
        "0.1",
        "0.2",
        "--seed",
        "3",
    ]
    run_command(
        [
            "fit",
            "--out",
            "a.safetensors",
            "--rounds",
            "1",
            *flags,
            *TINY,
            "BENCH.TEACHER_CHECKPOINT",
            teacher,
        ]
    )
    fit = load_lens("a.safetensors").metadata["fit"]
    assert (fit["lam"], fit["variant"], fit["temperature"], fit["seed"]) == (
        0.5,
        "literal",
        4.0,
        3,
    )
    assert set(vars(FitSettings())) <= fit.keys()
    run_command(
        [
            "fit",
            "--out",
            "a.safetensors",
            "--rounds",
            "1",
            "--refresh",
            "3",
            "--tables",
            "one",
            *TINY,
            "BENCH.TEACHER_CHECKPOINT",
            teacher,
        ]
    )
    fit = load_lens("a.safetensors").metadata["fit"]
    assert (fit["refresh"], fit["tables"]) == (3, "one")


@pytest.mark.parametrize(
    "command, names",
    [
        (["train", "--cfg", "nowhere.yaml"], "nowhere.yaml"),
        (["train", *TINY, "SOLVER.EPOCH", "3"], "EPOCH"),
        (["train", *TINY, "--djip-lens", "nowhere.safetensors"], "nowhere.safetensors"),
        (["train", *TINY, "--djip-lens", "identity"], "DISTILLER.TYPE is NONE"),
        (["train", *TINY, "--djip-any-teacher"], "name it with --djip-lens"),
        (["fit", "--out", "lens.json", *TINY], "ends in .safetensors"),
        (["fit", "--out", "a.safetensors", "--batch-size", "0"], "--batch-size is 0"),
        (
            ["fit", "--out", "a.safetensors", "--black-box", "--rounds", "3", "--lam-max", "2"],
            "--lam-max, --rounds: the search of --black-box has no use",
        ),
        (["train", "--data-root", "nodata"], "--data-root"),
        (["fit", "--out", "a.safetensors", *TINY], "TEACHER_CHECKPOINT"),
        (["inspect", "nowhere.safetensors"], "nowhere.safetensors"),
        (["compare", "plain=nowhere"], "nowhere"),
        (["compare", "nowhere"], "NAME=FOLDER"),
    ],
)
def test_a_mistake_is_one_line(
    command: list[str], names: str, capsys: pytest.CaptureFixture
) -> None:
    assert names in refused(capsys, *command)


def test_a_start_that_is_none_is_refused(teacher: str, capsys: pytest.CaptureFixture) -> None:
    assert "--start" in refused(
        capsys,
        "fit",
        "--out",
        "a.safetensors",
        "--start",
        "magic",
        *TINY,
        "BENCH.TEACHER_CHECKPOINT",
        teacher,
    )


def test_a_start_that_is_none_leaves_the_fit_that_is_there_alone(
    teacher: str, capsys: pytest.CaptureFixture
) -> None:
    command = ["fit", "--out", "a.safetensors", "--rounds", "1", *TINY]
    command += ["BENCH.TEACHER_CHECKPOINT", teacher]
    run_command(command)
    record = Path("a.json").read_text()
    Path("a.fit.pth").write_text("of an interrupted fit")
    refused(capsys, *command, "--start", "jpge:50")
    assert Path("a.json").read_text() == record and Path("a.fit.pth").exists()


def test_key_value_pairs_may_stand_on_either_side_of_a_flag() -> None:
    run_command(["train", *TINY[:4], "--seed", "2", *TINY[4:], "EXPERIMENT.NAME", "mixed"])
    assert Path("output/distill/mixed/seed-2/result.json").exists()


def test_a_full_disk_leaves_the_old_lens(
    teacher: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = [
        "fit",
        "--out",
        "a.safetensors",
        "--rounds",
        "0",
        *TINY,
        "BENCH.TEACHER_CHECKPOINT",
        teacher,
    ]
    run_command(command)
    before = Path("a.safetensors").read_bytes()
    move = os.replace

    def full(source: str, target: str) -> None:
        if str(target).endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        move(source, target)

    monkeypatch.setattr("os.replace", full)
    said = refused(capsys, *command, "--start", "9")
    assert "cannot write a.safetensors: No space left" in said
    assert Path("a.safetensors").read_bytes() == before and not list(Path().glob(".*partial"))


def test_compare_of_one_seed_has_no_spread(capsys: pytest.CaptureFixture) -> None:
    for arm, accuracy in (("plain", 50.0), ("lens", 51.0)):
        path = Path(arm, "seed-0", "result.json")
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"last_acc": accuracy, "best_acc": accuracy + 1}))
    run_command(["compare", "plain=plain", "lens=lens"])
    assert "| lens | 1 | 51.00 | 52.00 | +1.00 | +1.00 |" in capsys.readouterr().out


def test_compare_writes_table_and_picture(capsys: pytest.CaptureFixture) -> None:
    for arm, gain in (("plain", 0.0), ("lens", 0.5)):
        for seed in range(3):
            folder = Path(arm, f"seed-{seed}")
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(
                json.dumps({"last_acc": 50 + seed + gain, "best_acc": 51 + seed + gain})
            )
    run_command(["compare", "plain=plain", "lens=lens", "--out", "table"])
    assert (
        "+0.50 ± 0.00" in capsys.readouterr().out and "+0.50 ± 0.00" in Path("table.md").read_text()
    )
    assert Path("table.csv").read_text().startswith("arm,n,last_acc")
    assert Path("table.png").stat().st_size > 10_000
