"""The pack cache: the second load maps what the first read, whatever happened in between."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dualcaps.data import cache as pack
from dualcaps.data.cache import Content, Source


def make_source(file: Path, calls: list[int] | None = None, value: int = 7) -> Source:
    def read() -> Content:
        if calls is not None:
            calls.append(1)
        images = np.full((50, 1, 4, 4), value, np.uint8)
        return Content({"train": (images, np.arange(50) % 2)}, ("a", "b"), False)

    return Source([file], {"size": [4, 4]}, read)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"content")
    return tmp_path / "file"


def same(content: Content, value: int = 7) -> bool:
    images, labels = content.parts["train"]
    return bool((images == value).all()) and labels.tolist() == [0, 1] * 25 and content.classes == ("a", "b")


def test_what_was_packed_is_mapped_and_not_read_again(file: Path, tmp_path: Path):
    calls: list[int] = []
    source, cache = make_source(file, calls), tmp_path / "packs here"
    assert pack.peek(source, cache) is None
    first, digest = pack.load_packed(source, cache)
    second, digest_again = pack.load_packed(source, cache)
    assert len(calls) == 1
    assert same(first)
    assert same(second)
    assert digest == digest_again
    assert isinstance(second.parts["train"][0], np.memmap)
    second.parts["train"][0][:] = 0  # a caller's writing does not reach the file
    assert same(pack.load_packed(source, cache)[0])
    assert pack.peek(source, cache) is not None


def test_files_that_moved_are_hashed_but_not_read(file: Path, tmp_path: Path):
    calls: list[int] = []
    pack.load_packed(make_source(file, calls), tmp_path / "cache")
    os.utime(file, (1, 1))
    pack.load_packed(make_source(file, calls), tmp_path / "cache")
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "file")
    pack.load_packed(make_source(moved, calls), tmp_path / "cache")
    assert len(calls) == 1


def test_changed_content_and_other_options_are_read(file: Path, tmp_path: Path):
    calls: list[int] = []
    source = make_source(file, calls)
    pack.load_packed(source, tmp_path / "cache")
    pack.load_packed(Source(source.files, {"size": [5, 5]}, source.read), tmp_path / "cache")
    file.write_bytes(b"other")
    content, _ = pack.load_packed(make_source(file, calls, value=9), tmp_path / "cache")
    assert len(calls) == 3
    assert same(content, value=9)


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "meta", "index"])
def test_a_damaged_pack_is_made_anew(file: Path, tmp_path: Path, damage: str):
    cache, calls = tmp_path / "cache", []
    source = make_source(file, calls)
    pack.load_packed(source, cache)
    images = next(cache.glob("packs/*/train-images.npy"))
    match damage:
        case "cut":
            images.write_bytes(images.read_bytes()[:-10])
        case "empty":
            images.write_bytes(b"")
        case "gone":
            images.unlink()
        case "meta":
            (images.parent / "meta.json").write_text("{")
        case "index":
            next(cache.glob("index/*.json")).write_text('{"pack": 3}')
    assert same(pack.load_packed(source, cache)[0])
    assert same(pack.load_packed(source, cache)[0])
    assert len(calls) == (1 if damage == "index" else 2)


def test_a_cache_that_cannot_be_written_is_done_without(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    assert same(pack.load_packed(make_source(file), blocked)[0])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack.os, "fsync", full)
    assert same(pack.load_packed(make_source(file), tmp_path / "cache")[0])
    assert not [path for path in (tmp_path / "cache" / "packs").iterdir() if path.is_dir()]


def test_unused_packs_are_removed_when_another_is_made(file: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    sources = [Source([file], {"n": n}, make_source(file).read) for n in range(4)]
    for source in sources[:3]:
        pack.load_packed(source, cache)
    long_ago = time.time() - 100 * 24 * 3600
    for path in cache.glob("*/*"):
        os.utime(path, (long_ago, long_ago))
    pack.load_packed(sources[2], cache)  # opened, so in use
    pack.load_packed(sources[3], cache)
    assert [pack.peek(source, cache) is not None for source in sources] == [False, False, True, True]
    assert len(list(cache.glob("packs/[!.]*"))) == len(list(cache.glob("index/*"))) == 2


PROGRAM = """
import sys, hashlib
from dualcaps import load_data
data = load_data(sys.argv[1])
print(len(data.train), hashlib.sha256(data.train.images.numpy().tobytes()).hexdigest())
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_killed_while_packing_the_next_load_is_right(shapes_folder: Path, tmp_path: Path):
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "dualcaps"
    expected = start(shapes_folder).communicate(timeout=60)[0]
    assert expected.startswith("27 ")
    dice = random.Random(0)
    for _ in range(3):
        shutil.rmtree(cache)
        process = start(shapes_folder)
        while not list(cache.glob("packs/.*.draft")) and process.poll() is None:
            time.sleep(0.0005)
        time.sleep(dice.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert start(shapes_folder).communicate(timeout=60)[0] == expected


@pytest.mark.slow
def test_two_processes_packing_at_once_both_read_right(shapes_folder: Path):
    both = [start(shapes_folder) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in both}
    assert len(answers) == 1
    assert answers.pop().startswith("27 ")
    assert len(list((Path(os.environ["XDG_CACHE_HOME"]) / "dualcaps" / "packs").glob("[!.]*"))) == 1


def test_the_common_folder_of_many_files_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = Source([tmp_path / "a" / f"{number}.png" for number in range(50)], {}, lambda: None)
    calls: list[int] = []
    original = os.path.commonpath
    monkeypatch.setattr(os.path, "commonpath", lambda paths: calls.append(1) or original(paths))
    assert {source.folder for _ in range(50)} == {str(tmp_path / "a")}
    assert calls == [1]
