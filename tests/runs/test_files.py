"""Atomic writing: the old content or the new, never a part."""

import json
import os
from pathlib import Path

import pytest

from dualcaps.runs import files
from dualcaps.runs.files import new_folder, remove_drafts, write_bytes, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "x.json"
    write_json(file, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space.*x\.json"):
        write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    with new_folder(tmp_path / "deep" / "a") as draft:
        write_bytes(draft / "x", b"1")
        assert not (tmp_path / "deep" / "a").exists()
    assert (tmp_path / "deep" / "a" / "x").read_bytes() == b"1"
    for path in (tmp_path / "deep" / "b", tmp_path / "new" / "c"):
        with pytest.raises(OSError, match="No space"), new_folder(path) as draft:
            raise OSError(28, "No space left on device", str(draft))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a"]
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_is_not_replaced(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("kept")
    with pytest.raises(OSError, match="a"), new_folder(tmp_path / "a") as draft:
        write_bytes(draft / "x", b"new")
    assert (tmp_path / "a" / "x").read_text() == "kept"


def test_names_that_are_no_utf_8_survive(tmp_path: Path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "a.json", [name])
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == [name]
    write_text(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_bytes() == b"caf\xe9"


def test_drafts_of_killed_processes_are_removed(tmp_path: Path):
    (tmp_path / ".x.json.123.draft").write_text("half")
    (tmp_path / "x.json").write_text("{}")
    remove_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.json"]
