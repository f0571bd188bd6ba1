"""A lens on disk: what goes in comes out, and anything else found there is refused in one line."""

import errno
import json
import math
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from djip_ext import DJIPError, JPEGLens, load_lens
from djip_ext.lens.io import (
    FORMAT,
    SETTINGS,
    check_belongs,
    lens_id,
    save_lens,
    settings_of,
    weight_hash,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


@pytest.fixture
def lens() -> JPEGLens:
    lens = JPEGLens(torch.rand(2, 8, 8) * 20 + 0.1, alpha=3.25, max_index=127, window=5, kappa=0.7)
    lens.metadata = {
        "teacher": "resnet56",
        "mean": [0.5, 0.4, 0.3],
        "after": {"cmi": 0.31},
        "note": "Königsberg",
    }
    return lens


def write(path: Path, of: JPEGLens, **changes: Any) -> Path:
    """A lens file with entries of its header replaced (or, with ..., removed)."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "lens": settings_of(of),
        "about": {},
    } | changes
    header = {key: value for key, value in header.items() if value is not ...}
    save_file({"q": of.q.detach()}, path, metadata={"djip": json.dumps(header)})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DJIPError) as caught:
        load_lens(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def test_tables_settings_and_metadata_survive(tmp_path: Path, lens: JPEGLens) -> None:
    save_lens(lens, tmp_path / "a.lens")
    loaded = load_lens(tmp_path / "a.lens")
    assert torch.equal(loaded.q, lens.q)
    assert {name: getattr(loaded, name) for name in SETTINGS} == {
        name: getattr(lens, name) for name in SETTINGS
    }
    assert loaded.metadata == lens.metadata


def test_loaded_lens_sees_what_the_saved_one_saw(tmp_path: Path, lens: JPEGLens) -> None:
    lens.save(tmp_path / "a.lens")
    image = torch.rand(1, 3, 16, 16) * 255
    assert torch.equal(load_lens(tmp_path / "a.lens")(image), lens(image))


def test_frozen_lens_can_be_saved(tmp_path: Path, lens: JPEGLens) -> None:
    tables = lens.q.detach().clone()
    lens.freeze().save(tmp_path / "a.lens")
    assert torch.equal(load_lens(tmp_path / "a.lens").q, tables)


def test_file_is_plain_safetensors_of_about_a_kilobyte(tmp_path: Path, lens: JPEGLens) -> None:
    lens.save(tmp_path / "a.lens")
    with safe_open(tmp_path / "a.lens", framework="pt") as file:
        assert (
            file.get_tensor("q").shape == (2, 8, 8)
            and json.loads(file.metadata()["djip"])["format"] == FORMAT
        )
    assert (tmp_path / "a.lens").stat().st_size < 2048


def test_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    assert "djip fit" in refusal(tmp_path / "none.lens")


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "there is no lens" in refusal(tmp_path)


@pytest.mark.parametrize("keep", (0, 1, 7, 8, 100, -1))
def test_truncated_file_is_refused(tmp_path: Path, lens: JPEGLens, keep: int) -> None:
    path = tmp_path / "a.lens"
    lens.save(path)
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    "content", (b"\x89PNG\r\n\x1a\n" + bytes(600), b"PK\x03\x04" + bytes(100), b"{}", bytes(1000))
)
def test_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.lens").write_bytes(content)
    refusal(tmp_path / "a.lens")


def test_safetensors_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "a.lens")
    assert "not a lens" in refusal(tmp_path / "a.lens")


def test_lens_header_without_tables_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "a.lens", metadata={"djip": "{}"})
    assert "not a lens" in refusal(tmp_path / "a.lens")


def test_newer_format_asks_for_an_upgrade(tmp_path: Path, lens: JPEGLens) -> None:
    assert "upgrade djip_ext" in refusal(write(tmp_path / "a.lens", lens, format=FORMAT + 1))


@pytest.mark.parametrize(
    "changes",
    (
        {"format": ...},
        {"lens": ...},
        {"about": ...},
        {"lens": {}},
        {"lens": 3},
        {"format": "x"},
        {"about": 1},
    ),
)
def test_damaged_header_is_refused(tmp_path: Path, lens: JPEGLens, changes: dict[str, Any]) -> None:
    assert "fit the lens again" in refusal(write(tmp_path / "a.lens", lens, **changes))


@pytest.mark.parametrize("text", ("", "{", "[]", "3", "null"))
def test_header_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    save_file({"q": torch.ones(2, 8, 8)}, tmp_path / "a.lens", metadata={"djip": text})
    assert "fit the lens again" in refusal(tmp_path / "a.lens")


@pytest.mark.parametrize(
    "setting, value", (("max_index", 0), ("alpha", -1), ("window", 4), ("alpha", "five"))
)
def test_impossible_setting_is_refused(
    tmp_path: Path, lens: JPEGLens, setting: str, value: Any
) -> None:
    settings = {name: getattr(lens, name) for name in SETTINGS} | {"kappa": None, setting: value}
    refusal(write(tmp_path / "a.lens", lens, lens=settings))


@pytest.mark.parametrize(
    "q",
    (torch.ones(64), torch.ones(3, 8, 8), torch.full((2, 8, 8), math.nan), torch.zeros(2, 8, 8)),
)
def test_impossible_tables_are_refused(tmp_path: Path, q: torch.Tensor) -> None:
    header = {
        "format": FORMAT,
        "lens": {name: getattr(JPEGLens(), name) for name in SETTINGS},
        "about": {},
    }
    save_file({"q": q}, tmp_path / "a.lens", metadata={"djip": json.dumps(header)})
    refusal(tmp_path / "a.lens")


def test_failing_move_leaves_the_old_lens_and_no_partial_file(
    tmp_path: Path, lens: JPEGLens, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_lens(lens, tmp_path / "a.lens")
    old = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DJIPError, match=f"cannot write {path}: No space left"):
        save_lens(JPEGLens(9.0), path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.lens"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_leaves_the_old_lens_and_no_partial_file(tmp_path: Path, lens: JPEGLens) -> None:
    path = save_lens(lens, tmp_path / "a.lens")
    old = path.read_bytes()
    own = f"{socket.gethostname()}.{os.getpid()}"
    (tmp_path / f".a.lens.{own}.partial").symlink_to("/dev/full")
    with pytest.raises(DJIPError, match="No space left"):
        save_lens(JPEGLens(9.0), path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["a.lens"]


def test_identity_of_a_lens_changes_with_any_step_and_any_setting(lens: JPEGLens) -> None:
    tables = lens.q.detach().clone()
    nudged = tables.clone()
    nudged[1, 7, 7] += 1e-5
    others = [
        JPEGLens(tables),
        JPEGLens(nudged),
        JPEGLens(tables, alpha=5.5),
        JPEGLens(tables, window=5),
        JPEGLens(tables, hard=True),
    ]
    assert len({lens_id(other) for other in others}) == 5
    assert lens_id(JPEGLens(tables)) == lens_id(JPEGLens(tables.clone()))


def test_identity_of_a_lens_does_not_depend_on_metadata_freezing_or_the_file(
    tmp_path: Path, lens: JPEGLens
) -> None:
    before = lens_id(lens)
    lens.save(tmp_path / "a.lens")
    lens.metadata = {}
    assert lens_id(lens.freeze()) == before == lens_id(load_lens(tmp_path / "a.lens"))


def teacher() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)
    ).eval()


@pytest.fixture
def network() -> nn.Module:
    network = teacher()
    network(torch.zeros(1, 3, 8, 8))
    return network


def test_weight_hash_changes_with_one_weight_and_with_one_statistic(network: nn.Module) -> None:
    hashes = {weight_hash(network)}
    network[0].weight.data.view(-1)[5] += 1e-6
    hashes.add(weight_hash(network))
    network[1].num_batches_tracked += 1
    hashes.add(weight_hash(network))
    assert len(hashes) == 3


def test_weight_hash_does_not_depend_on_mode_or_gradients(network: nn.Module) -> None:
    before = weight_hash(network)
    assert weight_hash(network.train().requires_grad_(False)) == before


def test_weight_hash_tells_layers_of_the_same_values_apart() -> None:
    a, b = nn.ModuleDict({"first": nn.Linear(2, 2)}), nn.ModuleDict({"second": nn.Linear(2, 2)})
    b["second"].load_state_dict(a["first"].state_dict())
    assert weight_hash(a) != weight_hash(b)


def test_weight_hash_takes_half_precision(network: nn.Module) -> None:
    assert weight_hash(network.bfloat16()) != weight_hash(network.float().half())


def test_lens_belongs_to_the_weights_it_was_fitted_for(lens: JPEGLens, network: nn.Module) -> None:
    lens.metadata = {
        "teacher_hash": weight_hash(network),
        "teacher": "resnet56",
        "mean": list(MEAN),
        "std": list(STD),
    }
    check_belongs(lens, network, MEAN, STD)
    network[0].weight.data.view(-1)[0] += 1
    with pytest.raises(DJIPError, match="fitted for resnet56 .*any_teacher=True"):
        check_belongs(lens, network, MEAN, STD)


@pytest.mark.parametrize(
    "mean, std, name", (((0.5, 0.4, 0.31), STD, "mean"), (MEAN, (0.25, 0.2, 0.2), "std"))
)
def test_lens_belongs_to_its_normalisation(
    lens: JPEGLens, network: nn.Module, mean: tuple, std: tuple, name: str
) -> None:
    lens.metadata = {"mean": list(MEAN), "std": list(STD)}
    with pytest.raises(DJIPError, match=f"fitted with {name}"):
        check_belongs(lens, network, mean, std)


def test_normalisation_may_differ_in_the_last_digits(lens: JPEGLens, network: nn.Module) -> None:
    lens.metadata = {"mean": [0.50001, 0.4, 0.3]}
    check_belongs(lens, network, MEAN, STD)


def test_lens_that_names_no_teacher_fits_any(lens: JPEGLens, network: nn.Module) -> None:
    lens.metadata = {}
    check_belongs(lens, network, MEAN, STD)


# ---- what the last version wrote


def old_settings(**changes: Any) -> dict[str, Any]:
    """The settings in a file or record of version 0.1.0, which had the option ``clamp``."""
    settings = {"alpha": 5.0, "kappa": 5.0, "max_index": 1023, "window": None, "hard": False}
    return settings | {"clamp": False} | changes


def test_a_lens_file_of_the_last_version_loads_with_its_id(tmp_path: Path) -> None:
    q = torch.arange(128.0).view(2, 8, 8) + 1
    header = {"format": 1, "lens": old_settings(), "about": {"teacher": "resnet56"}}
    save_file({"q": q}, tmp_path / "a.lens", metadata={"djip": json.dumps(header)})
    lens = load_lens(tmp_path / "a.lens")
    assert torch.equal(lens.q, q) and lens.metadata == header["about"]
    assert lens_id(lens) == "864f8750"
    lens.save(tmp_path / "b.lens")
    with safe_open(tmp_path / "b.lens", framework="pt") as file:
        saved = json.loads(file.metadata()["djip"])
    assert saved | header == saved  # so that the last version can read it


def test_a_lens_that_clamps_is_refused(tmp_path: Path, lens: JPEGLens) -> None:
    text = refusal(write(tmp_path / "a.lens", lens, lens=old_settings(clamp=True)))
    assert "clamp is True, which a lens no longer has" in text


@pytest.mark.parametrize(
    "settings, known",
    (
        ({"kappa": 5.0}, "864f8750"),
        ({"alpha": 3.25, "max_index": 127, "window": 5}, "1d2aa4b6"),
        ({"hard": True}, "a25af9a4"),
    ),
)
def test_ids_are_those_that_the_last_version_computed(settings: dict[str, Any], known: str) -> None:
    """Folders of runs are named by them."""
    assert lens_id(JPEGLens(torch.arange(128.0).view(2, 8, 8) + 1, **settings)) == known
