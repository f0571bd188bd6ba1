"""The flags of every command: each has help and shows its default, as the fit's settings do."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from djip_ext.cli import train_lens
from djip_ext.cli.main import COMMANDS, command_parser, run_command
from djip_ext.cli.options import benchmark_cfg, fit_settings
from djip_ext.fit.settings import FitSettings
from djip_ext.hosts.activation import add_flags

CONFIG = Path(__file__).parents[2] / "configs/cifar100/kd/res32x4_res8x4.yaml"


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.help is not argparse.SUPPRESS]


def command(name: str) -> argparse.ArgumentParser:
    parser, _ = command_parser(name)
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices[name]


def hosts_parsers() -> Iterator[argparse.ArgumentParser]:
    for prefix in ("", "djip-"):
        parser = argparse.ArgumentParser()
        add_flags(parser, prefix)
        yield parser


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_of_every_command_has_help_and_shows_its_default(name: str) -> None:
    for action in arguments(command(name)):
        assert action.help, action
        switched = isinstance(action.default, bool) or action.default in (
            None,
            "",
            [],
            "==SUPPRESS==",
        )
        assert switched or not action.option_strings or "(default:" in action.help, action
        assert action.help % {"default": action.default, "prog": "djip"}


def test_every_flag_of_launcher_and_added_line_has_help() -> None:
    for parser in hosts_parsers():
        assert all(action.help for action in arguments(parser))


def test_every_setting_is_a_flag_with_the_fields_default_in_its_help() -> None:
    flags = {action.dest: action for action in command("fit")._actions}
    for field in dataclasses.fields(FitSettings):
        shown = field.default
        if isinstance(shown, tuple):
            shown = " ".join(map(str, shown))
        shown = {"lam": "none", "precision": "BENCH.PRECISION"}.get(field.name, shown)
        assert f"(default: {shown})" in flags[field.name].help, field.name


def test_flags_that_are_not_given_leave_the_settings_alone() -> None:
    args = command("fit").parse_args(["--out", "a.safetensors"])
    assert fit_settings(args, "float32") == FitSettings()
    assert fit_settings(args, "bfloat16").precision == "bfloat16"
    words = [
        "--rounds",
        "3",
        "--lam",
        "0.5",
        "--cmi-gain",
        "0.1",
        "0.3",
        "--variant",
        "fixed",
        "--precision",
        "float32",
    ]
    settings = fit_settings(command("fit").parse_args(["--out", "a", *words]), "bfloat16")
    assert settings == FitSettings(rounds=3, lam=0.5, cmi_gain=(0.1, 0.3), variant="fixed")


@pytest.mark.parametrize(
    "flag, value", [("--variant", "stale"), ("--tables", "three"), ("--rounds", "1.5")]
)
def test_a_wrong_value_is_refused_before_anything_is_read(
    flag: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_lens, "read_task", lambda *_: pytest.fail("read the task"))
    with pytest.raises(SystemExit) as stopped:
        run_command(["fit", "--out", "a.safetensors", flag, value])
    assert stopped.value.code == 2 and f"argument {flag}: invalid" in capsys.readouterr().err


def test_a_setting_out_of_range_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train_lens, "read_task", lambda *_: pytest.fail("read the task"))
    with pytest.raises(ValueError, match="rounds is -1"):
        run_command(["fit", "--out", str(tmp_path / "a.safetensors"), "--rounds", "-1"])


@pytest.mark.parametrize("name", ["reproduce", "tune"])
@pytest.mark.parametrize("number", ["0", "-1", "two"])
def test_less_than_one_worker_is_refused(
    name: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        command(name).parse_args(["x.yaml", "--workers", number])
    assert caught.value.code == 2 and "--workers" in capsys.readouterr().err


def test_pairs_are_stronger_than_flags() -> None:
    words = ["--cfg", str(CONFIG), "--data-root", "a", "--seed", "1"]
    train = command("train")
    cfg = benchmark_cfg(train.parse_args(words))
    assert (cfg.BENCH.DATA_ROOT, cfg.BENCH.SEED) == ("a", 1)
    cfg = benchmark_cfg(train.parse_args([*words, "BENCH.DATA_ROOT", "b", "BENCH.SEED", "2"]))
    assert (cfg.BENCH.DATA_ROOT, cfg.BENCH.SEED) == ("b", 2)
