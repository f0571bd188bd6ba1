"""A lens file carries a digest of what it holds; files from before there was one load as ever."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from djip_ext import DJIPError, JPEGLens, load_lens
from djip_ext.lens.io import lens_id, settings_of


def lens() -> JPEGLens:
    lens = JPEGLens(1 + 9 * torch.rand(2, 8, 8), kappa=5.0)
    lens.metadata = {"mean": (0.5, 0.25, 0.125), "teacher": "résumé", "after": {"cmi": 0.1}, "n": 3}
    return lens


def test_one_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lens.safetensors"
    whole = lens()
    whole.save(path)
    content = bytearray(path.read_bytes())
    refused = 0
    for position in range(8, len(content), 1):
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        content[position] ^= 1 << position % 8
        try:
            found = load_lens(path)
        except DJIPError as error:
            refused += 1
            assert "\n" not in str(error)
            continue
        assert torch.equal(found.q, whole.q) and settings_of(found) == settings_of(whole)
        assert found.metadata == json.loads(json.dumps(whole.metadata))
    tables = 2 * 64 * 4
    assert refused > tables + 0.9 * (len(content) - 8 - tables)


@pytest.mark.parametrize("bit", [0, 7, 12, 22, 23, 30])
def test_a_bit_flipped_in_a_step_is_refused_with_the_cure(tmp_path: Path, bit: int) -> None:
    path = tmp_path / "lens.safetensors"
    lens().save(path)
    content = bytearray(path.read_bytes())
    content[-512 + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    with pytest.raises(DJIPError, match="is damaged: .* copy it again"):
        load_lens(path)


def test_a_file_without_a_digest_loads_with_the_same_id(tmp_path: Path) -> None:
    path, older = tmp_path / "lens.safetensors", tmp_path / "older.safetensors"
    whole = lens()
    whole.save(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["djip"])
    assert len(header.pop("digest")) == 64
    save_file({"q": whole.q.detach()}, older, metadata={"djip": json.dumps(header)})
    assert lens_id(load_lens(older)) == lens_id(load_lens(path)) == lens_id(whole)
    assert load_lens(older).metadata == load_lens(path).metadata


def test_writing_what_was_read_changes_no_byte(tmp_path: Path) -> None:
    path, again = tmp_path / "lens.safetensors", tmp_path / "again.safetensors"
    lens().save(path)
    load_lens(path).save(again)
    assert path.read_bytes() == again.read_bytes()
