"""Configurations: mdistiller's files load, and every mistake is one line that names it."""

from pathlib import Path

import pytest
import torch

from djip_ext.bench.engine.cfg import CFG, differing_settings, load_cfg, show_cfg
from djip_ext.bench.engine.record import used_config
from djip_ext.errors import DJIPError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert load_cfg(str(path)).EXPERIMENT.TAG


def test_a_file_in_mdistillers_layout_loads(tmp_path: Path) -> None:
    path = tmp_path / "dkd.yaml"
    path.write_text(
        "DISTILLER: {TYPE: DKD, TEACHER: resnet32x4, STUDENT: resnet8x4}\n"
        "SOLVER: {LR: 0.05}\nDKD: {BETA: 8.0}\n"
    )
    cfg = load_cfg(str(path), ["SOLVER.EPOCHS", "7"])
    assert (cfg.DISTILLER.TYPE, cfg.DKD.BETA, cfg.SOLVER.EPOCHS) == ("DKD", 8.0, 7)


def test_whole_numbers_are_taken_for_real_ones(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("DKD: {BETA: 6}\nITRD: {LOSS: {MUTUAL_WEIGHT: 0}}\n")
    cfg = load_cfg(
        str(tmp_path / "a.yaml"),
        ["WTTM.LOSS.KD_WEIGHT", "4", "KD.TEMPERATURE", 2, "SOLVER.EPOCHS", "7"],
    )
    values = (
        cfg.DKD.BETA,
        cfg.ITRD.LOSS.MUTUAL_WEIGHT,
        cfg.WTTM.LOSS.KD_WEIGHT,
        cfg.KD.TEMPERATURE,
        cfg.SOLVER.EPOCHS,
    )
    assert values == (6.0, 0.0, 4.0, 2.0, 7) and [type(value) for value in values] == [
        float
    ] * 4 + [int]
    assert (
        load_cfg(None, ["KD.TEMPERATURE", "2.5", "RKD.DISTANCE_WEIGHT", "12.5"]).KD.TEMPERATURE
        == 2.5
    )


@pytest.mark.parametrize(
    "text, options, names",
    [
        ("SOLVER: {EPOCH: 3}", [], "EPOCH"),
        ("SOLVER: {EPOCHS: many}", [], "EPOCHS"),
        ("SOLVER: [", [], "YAML"),
        ("just words", [], "cfg.yaml"),
        ("", ["SOLVER.EPOCH", "3"], "EPOCH"),
        ("", ["SOLVER.EPOCHS"], "SOLVER.EPOCHS"),
        ("", ["SOLVER.EPOCHS", "x"], "SOLVER.EPOCHS"),
        ("SOLVER: {BATCH_SIZE: 0}", [], "SOLVER.BATCH_SIZE is 0; it must be at least 1"),
        ("", ["DATASET.TEST.BATCH_SIZE", "0"], "DATASET.TEST.BATCH_SIZE is 0"),
        ("", ["DATASET.NUM_WORKERS", "-1"], "DATASET.NUM_WORKERS is -1; it must be at least 0"),
        ("", ["BENCH.VIEWS", "-2"], "BENCH.VIEWS is -2; it must be at least 0"),
        ("", ["SOLVER.EPOCHS", "0"], "SOLVER.EPOCHS is 0; it must be at least 1"),
        ("", ["CRD.NCE.K", "0"], "CRD.NCE.K is 0; it must be at least 1"),
        ("", ["BENCH.SEED", "99999999999999999"], "BENCH.SEED is 9+; it must be at most 9"),
        ("", ["BENCH.SEED", "-99999999999999999"], "BENCH.SEED is -9+; it must be at least -9"),
        ("", ["WTTM.GAMMA", "0"], "WTTM.GAMMA is 0.0; it must be greater than 0"),
        ("", ["KD.TEMPERATURE", "-1"], "KD.TEMPERATURE is -1.0; it must be greater than 0"),
        ("LSKD: {TEMPERATURE: .nan}", [], "LSKD.TEMPERATURE is nan; it must be greater than 0"),
        ("DKD: {T: 0}", [], "DKD.T is 0.0; it must be greater than 0"),
        ("DIST: {TAU: 0}", [], "DIST.TAU is 0.0; it must be greater than 0"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    text: str, options: list[str], names: str, tmp_path: Path
) -> None:
    path = tmp_path / "cfg.yaml"
    path.write_text(text)
    with pytest.raises(DJIPError, match=names) as caught:
        load_cfg(str(path), options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [-9 * 10**12, 9 * 10**12])
def test_every_seed_that_is_taken_seeds_all_generators(seed: int) -> None:
    cfg = load_cfg(None, ["BENCH.SEED", str(seed)])
    for last in (0, 10**9):  # an epoch, and what CRD adds
        torch.Generator().manual_seed(1_000_003 * cfg.BENCH.SEED + last)


def test_the_nodes_that_are_shown_are_those_of_the_record(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg = load_cfg(None, ["DISTILLER.TYPE", "LSKD", "LSKD.BASE", "DKD", "BENCH.ADVERSARIAL", "BSS"])
    show_cfg(cfg)
    shown = capsys.readouterr().out
    assert used_config(cfg) in shown and "\nDKD:\n" in shown


def test_a_missing_file_is_named() -> None:
    with pytest.raises(DJIPError, match="nowhere.yaml"):
        load_cfg("nowhere.yaml")


def test_settings_differ_by_what_changes_numbers_and_a_missing_key_is_its_default() -> None:
    elsewhere = ["BENCH.DATA_ROOT", "/elsewhere", "LOG.PREFIX", "x", "DATASET.NUM_WORKERS", 7]
    ours = load_cfg(None, ["SOLVER.LR", 0.2, *elsewhere])
    assert differing_settings(ours.dump(), CFG.dump()) == {"SOLVER.LR": (0.2, 0.05)}
    older = CFG.clone()
    del older.BENCH["VIEWS"], older["FITNET"]
    older.BENCH["GONE"] = 3
    assert differing_settings(CFG.dump(), older.dump()) == {}
    assert differing_settings(load_cfg(None, ["BENCH.VIEWS", 4]).dump(), older.dump()) == {
        "BENCH.VIEWS": (4, 0)
    }
