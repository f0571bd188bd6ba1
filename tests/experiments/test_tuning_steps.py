"""The commands of a choice: which images they read, how long they are, what they cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from djip_ext.bench.dataset import image_sets
from djip_ext.bench.dataset.image_sets import load_run_sets
from djip_ext.bench.dataset.synthetic import make_synthetic
from djip_ext.bench.engine.cfg import load_cfg
from djip_ext.errors import DJIPError
from djip_ext.experiments.arms import Arm
from djip_ext.experiments.cost import Cost, data_key
from djip_ext.experiments.plan import Step
from djip_ext.experiments.table import load_arms
from djip_ext.experiments.tuning import Candidate
from djip_ext.experiments.tuning_steps import TuningSteps, check_options, with_needs

STUDENT = """
DATASET: {TYPE: synthetic}
DISTILLER: {TYPE: KD, TEACHER: resnet8, STUDENT: resnet8}
SOLVER: {EPOCHS: 50, LR_DECAY_STAGES: [30, 40, 46]}
BENCH: {FRACTION: 0.5, FRACTION_SEED: 3, DEVICE: cpu}
"""
TEACHER = """
DATASET: {TYPE: synthetic}
DISTILLER: {TYPE: MCMI, TEACHER: resnet8, STUDENT: resnet8}
SOLVER: {EPOCHS: 6}
BENCH: {FRACTION: 0.8}
"""
OPTIONS = {"SOLVER.EPOCHS": "60", "BENCH.VIEWS": "16", "KD.TEMPERATURE": "1"}
POOL = [Candidate("plain", 1.0), Candidate("mcmi", 1.0), Candidate("fitted", 1.0)]
POOL += [Candidate("plain", 4.0)]


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuningSteps:
    """A student, an arm with a teacher of its own, a fit on that teacher."""
    monkeypatch.setattr(
        image_sets, "make_synthetic", lambda per_class, seed: make_synthetic(10, seed)
    )
    for name, text in (("student", STUDENT), ("mcmi", TEACHER)):
        (tmp_path / f"{name}.yaml").write_text(text)
    checkpoint = tmp_path / "teacher.safetensors"
    checkpoint.touch()
    options = OPTIONS | {"BENCH.TEACHER_CHECKPOINT": str(checkpoint)}
    words = [word for pair in options.items() for word in pair]
    config = str(tmp_path / "student.yaml")
    own = str(tmp_path / "mcmi.yaml")
    return TuningSteps(
        config=config,
        pair="student",
        options=options,
        cfg=load_cfg(config, words),
        arms={"plain": Arm(), "mcmi": Arm(teacher=own), "fitted": Arm("fit", teacher=own)},
        pool=POOL,
        key="KD.TEMPERATURE",
        holdout=0.4,
        out=str(tmp_path / "out"),
        data_root="",
    )


def all_steps(steps: TuningSteps, seeds: int = 1, epochs: int = 7) -> list[Step]:
    by_candidate = steps.students(seeds, epochs)
    return with_needs(step for students in by_candidate.values() for step in students)


def bytes_of(images: Any) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_no_command_trains_on_an_image_that_is_held_out(steps: TuningSteps) -> None:
    found = all_steps(steps)
    student = next(step for step in found if step.kind == "student")
    held = bytes_of(load_run_sets(student.settings())[1].images)
    assert len(held) == 20 * 2
    for step in found:
        train, test = load_run_sets(step.settings())
        assert not held & bytes_of(train.images), step.name
        assert bytes_of(test.images) == held, step.name
    assert [step.kind for step in found].count("teacher") == 1  # one, which two arms share
    assert [step.kind for step in found].count("lens") == 1


def test_a_full_student_reads_all_training_images_and_the_test_images(steps: TuningSteps) -> None:
    (whole,) = steps.students(1)[POOL[0]]
    cfg = whole.settings()
    assert (cfg.BENCH.HOLDOUT, cfg.SOLVER.EPOCHS, cfg.BENCH.VIEWS) == (0.0, 60, 16)


def test_options_of_the_students_are_not_for_the_teacher_of_an_arm(steps: TuningSteps) -> None:
    (teacher,) = (step for step in all_steps(steps) if step.kind == "teacher")
    cfg = teacher.settings()
    assert (cfg.SOLVER.EPOCHS, cfg.BENCH.VIEWS) == (6, 0)
    assert (cfg.BENCH.FRACTION, cfg.BENCH.FRACTION_SEED) == (0.5, 3)


def test_short_students_are_short_whatever_epochs_the_user_gave(steps: TuningSteps) -> None:
    for students in steps.students(2, 6).values():
        for step in students:
            cfg = step.settings()
            assert (cfg.SOLVER.EPOCHS, cfg.BENCH.EVAL_EVERY, cfg.BENCH.VIEWS) == (6, 6, 6)
            assert list(cfg.SOLVER.LR_DECAY_STAGES) == [3, 4, 5]  # of 60 epochs


def test_every_candidate_has_its_arm_its_temperature_and_its_seeds(steps: TuningSteps) -> None:
    found = steps.students(3, 5)
    assert list(found) == POOL
    for candidate, students in found.items():
        assert [step.seed for step in students] == [0, 1, 2]
        for step in students:
            cfg = step.settings()
            assert candidate.arm == cfg.EXPERIMENT.PROJECT
            assert candidate.temperature == cfg.KD.TEMPERATURE


def test_the_price_counts_teachers_fits_and_starts_once_each(steps: TuningSteps) -> None:
    seconds = {"teacher": 100.0, "lens": 10.0, "student": 1.0}

    def estimate(found: Sequence[Step]) -> list[Cost]:
        return [Cost(seconds=seconds[step.kind]) for step in found]

    price = steps.price(estimate, 0.25, 3, 5)  # type: ignore[arg-type]
    assert (price.teachers, price.lenses, price.students) == (100.25, 10.25, 12 * 1.25)
    assert price.total == 125.5 and str(price) == "teachers 100 s, lenses 10 s, students 15 s"


def test_held_out_images_are_priced_as_such() -> None:
    cfg = load_cfg(None, ["DATASET.TYPE", "synthetic"])
    held = load_cfg(None, ["DATASET.TYPE", "synthetic", "BENCH.HOLDOUT", "0.2"])
    assert data_key(cfg) != data_key(held)


@pytest.mark.parametrize("key", ["BENCH.HOLDOUT", "EXPERIMENT.NAME", "LOG.PREFIX", "BENCH.SEED"])
def test_an_option_that_the_choice_sets_itself_is_refused(key: str) -> None:
    with pytest.raises(DJIPError, match=f"{key} is set by djip tune"):
        check_options({key: "1"}, {})


@pytest.mark.parametrize("key", ["BENCH.HOLDOUT", "BENCH.FRACTION", "SOLVER.EPOCHS"])
def test_an_arm_has_the_images_and_epochs_of_all(key: str) -> None:
    with pytest.raises(DJIPError, match=f"arm odd sets {key}"):
        check_options({}, {"odd": Arm(options={key: 1})})


def test_a_whole_table_and_its_arms_alone_are_the_same_arms(tmp_path: Path) -> None:
    arms = "{plain: identity, soft: {before: temperature:2, options: {BENCH.CKD: true}}}"
    (tmp_path / "arms.yaml").write_text(arms)
    (tmp_path / "table.yaml").write_text(f"configs: x\npairs: [y]\ndistillers: [KD]\narms: {arms}")
    found = load_arms(tmp_path / "arms.yaml")
    assert found == load_arms(tmp_path / "table.yaml")
    assert found["soft"] == Arm("temperature:2", options={"BENCH.CKD": True})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{arms: []}", "holds no arms"),
        ("{odd: {befor: identity}}", "give what stands before the teacher, or a mapping"),
        ("{odd: {options: {KD.TEMPERATURE: 2}}}", "sets KD.TEMPERATURE, which the table varies"),
    ],
)
def test_a_file_of_arms_that_is_wrong_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "arms.yaml").write_text(text)
    with pytest.raises(DJIPError, match=message):
        load_arms(tmp_path / "arms.yaml", {"KD.TEMPERATURE": ()})
