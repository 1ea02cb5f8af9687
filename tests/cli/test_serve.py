"""`dualcaps serve` as a user runs it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from .messages import assert_one_line


def get(url: str, data: bytes | None = None, token: str = "") -> tuple[int, str]:
    request = urllib.request.Request(url, data, {"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once there")
def test_a_run_is_served_until_it_is_told_to_stop(run: Path, shapes: Path, tmp_path: Path):
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "token").write_text("secret\n")
    command = [sys.executable, "-m", "dualcaps", "serve", run, "--port", port, "--token-file", tmp_path / "token"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (tmp_path / "errors").open("w") as errors,
        subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(f"{run}: http://127.0.0.1:{port}/predict")
            address = f"http://127.0.0.1:{port}"
            for _ in range(100):
                try:
                    if get(f"{address}/readyz")[0] == 200:
                        break
                except OSError:
                    time.sleep(0.2)
            image = (shapes / "down" / "00.png").read_bytes()
            assert get(f"{address}/predict", image)[0] == 401
            code, text = get(f"{address}/predict", image, "secret")
            assert code == 200
            (answer,) = json.loads(text)
            assert answer["class"] in ("across", "down", "slanted")
            assert 1 / 3 < answer["probability"] < 1
            for _ in range(20):
                send_nonsense(port)
            assert get(f"{address}/predict", image, "secret") == (code, text)
            assert 'dualcaps_requests_total{code="499"} 20.0' in get(f"{address}/metrics")[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in (0, -signal.SIGTERM)
        finally:
            process.kill()
    assert "Traceback" not in (tmp_path / "errors").read_text()


def send_nonsense(port: int) -> None:
    """A client that sends no HTTP, one that sends a damaged form, and one that vanishes within its request."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
    form = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 4\r\n\r\n--y\n"
    for content, status in ((b"nonsense\r\n\r\n", b"400"), (head + form, b"400")):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(content)
            assert connection.recv(1_000).split()[1] == status
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"Content-Length: 1000\r\n\r\nhalf an image")


def test_mistakes_are_one_line(run_cli: Callable, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert_one_line(run_cli("serve", run, "--port", 0), "--port must be from 1 to 65535")
    assert_one_line(run_cli("serve", run, "--timeout", 0), "--timeout must be above 0")
    assert_one_line(run_cli("serve", run, "--queue", 3), "--queue must be at least --max-images")
    assert_one_line(run_cli("serve", run, "--token-file", tmp_path / "none"), "--token-file")
    (tmp_path / "empty").touch()
    assert_one_line(run_cli("serve", run, "--token-file", tmp_path / "empty"), "must hold one token")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert_one_line(run_cli("serve", run), "pip install 'dualcaps[serve]'")
