"""A failing write leaves what was there, and nothing else."""

import errno
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image

from djip_ext import DJIPError
from djip_ext.errors import Busy
from djip_ext.lens.jpeg_file import write_jpeg
from djip_ext.utils import files
from djip_ext.utils.files import atomic_write, claimed, taking_turns, write_csv, write_json

FULL = Path("/dev/full")


def test_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "record.json"
    write_json(path, {"n": 1})
    write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 2} and os.listdir(path.parent) == ["record.json"]


def picture(path: Path, grey: int) -> Path:
    return write_jpeg(Image.new("RGB", (8, 8), (grey,) * 3), torch.ones(2, 8, 8), path, "none")


@pytest.mark.parametrize(
    "write",
    [
        lambda path, n: write_json(path, {"n": n}),
        lambda path, n: write_csv(path, [{"n": n}]),
        picture,
    ],
)
def test_refused_move_leaves_the_old_file_and_no_partial_one(
    write: Callable[[Path, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "record", 1)
    old = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DJIPError, match=f"cannot write {path}: Permission denied"):
        write(path, 200)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["record"]


@pytest.mark.parametrize("lock", [claimed, taking_turns])
def test_a_lock_that_cannot_be_made_is_one_line(lock: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DJIPError, match="cannot lock [^\n]+; choose another place$"),
        lock(tmp_path / "file" / "a.lock", "the run"),
    ):
        raise AssertionError("held")


def test_any_other_exception_passes_and_leaves_no_partial_file(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "record.json", write)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_full_disk_is_a_djip_error(tmp_path: Path) -> None:
    path = write_json(tmp_path / "record.json", {"n": 1})

    def write(temporary: Path) -> None:
        temporary.symlink_to(FULL)
        temporary.write_bytes(bytes(100_000))

    with pytest.raises(DJIPError, match="No space left"):
        atomic_write(path, write)
    assert json.loads(path.read_text()) == {"n": 1} and os.listdir(tmp_path) == ["record.json"]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_full_disk_under_torch_save_is_a_djip_error(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.symlink_to(FULL)
        torch.save(torch.zeros(100_000), temporary)

    with pytest.raises(DJIPError, match="cannot write .*state.pt"):
        atomic_write(tmp_path / "state.pt", write)


@pytest.mark.parametrize("name", ("file/record.json", "file/deeper/record.json", "n" * 300))
def test_impossible_place_is_a_djip_error_of_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DJIPError, match="cannot write") as caught:
        write_json(tmp_path / name, {})
    assert "\n" not in str(caught.value)


def test_lists_of_numbers_take_a_line_each_and_text_stays_as_it_is(tmp_path: Path) -> None:
    record = {
        "q": [[1.5, -2e-05], [3, 4]],
        "text": "a: [1,\n  2]",
        "names": ["a", "b"],
        "empty": [],
        "flags": [True, None],
    }
    text = write_json(tmp_path / "record.json", record).read_text()
    assert (
        json.loads(text) == record
        and "    [1.5, -2e-05],\n    [3, 4]\n" in text
        and '"flags": [true, null]' in text
    )


def test_a_lock_file_is_gone_when_its_work_is_done_or_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with claimed(path, "the run"):
        assert path.exists()
    assert not path.exists()
    with pytest.raises(KeyError), claimed(path, "the run"):
        raise KeyError
    assert not path.exists()


def test_a_lock_on_a_file_that_was_deleted_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.lock"
    acquire = FileLock.acquire
    tries = []

    def acquire_and_lose(lock: FileLock, *args: object, **kwargs: object) -> object:
        done = acquire(lock, *args, **kwargs)
        tries.append(1)
        if len(tries) == 1:  # as if the process before had deleted it just after we opened it
            path.unlink()
        return done

    monkeypatch.setattr(FileLock, "acquire", acquire_and_lose)
    with claimed(path, "the run"):
        assert len(tries) == 2 and path.exists()
        with pytest.raises(Busy), claimed(path, "the run"):
            pass


def test_a_lock_holds_for_processes_of_a_group_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ``torchrun djip train`` one process trains."""
    with claimed(tmp_path / "a.lock", "the run"):
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(Busy), claimed(tmp_path / "a.lock", "the run"):
            pass


def test_who_comes_second_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "answers/a.lock"
    order, said, waits = [], [], threading.Event()
    monkeypatch.setattr(files, "say", lambda text: (said.append(text), waits.set()))

    def second() -> None:
        with taking_turns(path, "the answers"):
            order.append("second")

    with taking_turns(path, "the answers"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60) and order == []
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert said == ["waiting for another process, which makes the answers"]
