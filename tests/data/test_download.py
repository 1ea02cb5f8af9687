"""Fetching, against a server on this machine: the right file or one clear line, never half a file."""

import dataclasses
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dualcaps import DataError, load_data
from dualcaps.data import download
from dualcaps.data.sources import DataSet, Download
from dualcaps.data.sources import data_set as card_of
from dualcaps.data.sources import files as catalog

CONTENT = b"all of the data set" * 50_000


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path.startswith("/cut"):
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
            self.wfile.flush()
            self.connection.close()
        elif self.path.startswith("/wrong"):
            self.wfile.write(b"x" * len(CONTENT))
        else:
            self.wfile.write(CONTENT)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def data_set(*addresses: str) -> DataSet:
    checksum = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
    downloads = (Download("coil-20-proc.zip", tuple(f"{address}/coil-20-proc.zip" for address in addresses), checksum),)
    return dataclasses.replace(card_of("coil-20"), downloads=downloads)


@pytest.fixture
def folder() -> Path:
    return catalog.cache_folder() / "coil-20"


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("[!.]*")]


def test_a_whole_file_is_kept_and_not_fetched_twice(address: str, folder: Path):
    assert download.fetch(data_set(f"{address}/whole")) == folder
    assert (folder / "coil-20-proc.zip").read_bytes() == CONTENT
    assert files(folder) == ["coil-20-proc.zip"]
    assert download.fetch(data_set("http://127.0.0.1:1")) == folder
    (folder / "tmpabc").write_bytes(CONTENT[:100])  # what a kill leaves
    (folder / "coil-20-proc.zip").write_bytes(CONTENT[:100])  # half a file that somebody left there
    download.fetch(data_set(f"{address}/whole"))
    assert (folder / "coil-20-proc.zip").read_bytes() == CONTENT
    assert files(folder) == ["coil-20-proc.zip"]


@pytest.mark.parametrize(
    ("where", "said"),
    [("missing", "answer 404"), ("wrong", "another checksum"), ("cut", "broke off|another checksum")],
)
def test_what_went_wrong_is_said_and_nothing_is_kept(address: str, folder: Path, where: str, said: str):
    with pytest.raises(DataError, match=said) as caught:
        download.fetch(data_set(f"{address}/{where}"))
    assert "\n" not in str(caught.value)
    assert files(folder) == []


@pytest.mark.parametrize("first", ["missing", "wrong", "cut", ""])
def test_the_next_mirror_is_tried(address: str, folder: Path, first: str):
    broken = f"{address}/{first}" if first else "http://127.0.0.1:1"
    download.fetch(data_set(broken, f"{address}/whole"))
    assert (folder / "coil-20-proc.zip").read_bytes() == CONTENT
    assert files(folder) == ["coil-20-proc.zip"]


def test_without_a_network_one_line_says_what_to_put_where(folder: Path, monkeypatch: pytest.MonkeyPatch):
    unreachable = data_set("http://127.0.0.1:1")
    monkeypatch.setattr("dualcaps.data.load.data_set", lambda name: unreachable)
    monkeypatch.setattr("dualcaps.data.load.fetch", download.fetch)
    with pytest.raises(DataError) as caught:
        load_data("coil-20")
    message = str(caught.value)
    assert "\n" not in message
    for wanted in ("no connection", "coil-20-proc.zip", str(folder), "--data-dir"):
        assert wanted in message
