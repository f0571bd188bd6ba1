"""Where the records of lenses are looked for."""

from pathlib import Path

import pytest

from djip_ext import JPEGLens
from djip_ext.fit.record import describe, read_records
from djip_ext.lens.io import lens_id
from djip_ext.utils.files import write_json


def test_records_are_found_in_a_folder_lenses_at_or_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = JPEGLens(8.0)
    folder = tmp_path / "out" / "lenses"
    folder.mkdir(parents=True)
    write_json(folder / "a.json", describe(lens))
    write_json(folder.parent / "b.json", describe(lens))  # lies in no folder lenses
    monkeypatch.chdir(folder)
    for where in (tmp_path, folder.parent, folder, Path(".")):
        assert [record.id for record in read_records(where)] == [lens_id(lens)]
