"""The HTTP service under load and attack, beside LitServe with the same run. Needs `wrk` (Debian has it).

    python benchmarks/service.py RUN [--seconds 10] [--connections 1 32]

Each service answers single test images, PNG files in multipart forms, from as many connections as wanted; the client
runs on the same cores. Then our service is sent malformed requests, slow clients and clients that vanish, with correct
ones between them whose answers are compared; and the memory of its process is read before and after 20,000 requests.
"""

import argparse
import contextlib
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from common import ROOT, Results, environment, png_of, served

from dualcaps import load_model, predict
from dualcaps.inference import choose_precision, run_data
from dualcaps.runs.run import Run

BATCH, PEER_WAIT = 64, 0.002
IMAGES = 100
MALFORMED, SLOW, VANISHING = 1_000, 50, 200
REQUESTS, WARMED_UP = 20_000, 2_000
BOUNDARY = "dualcaps-benchmark"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
TOLERANCE = 0.01  # of lengths, which a batch of another size may round differently in bfloat16


def main() -> None:
    """Load, attack, watch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks")
    options = parser.parse_args()
    run = Run.open(options.run)
    model = load_model(run, "cpu")
    images = run_data(run).test.images[:IMAGES]
    wanted = predict(model, images, precision=choose_precision("auto", torch.device("cpu"))).numpy()
    files = [png_of(image) for image in images]
    results = Results("service", options.out, torch.device("cpu"))
    case = f"{run.model.name} on {run.data.source}"
    peer = environment("litserve", ["--editable", f"{ROOT}[serve]", "litserve"])
    ours = (sys.executable, "-m", "dualcaps", "serve", options.run, "--batch-size")
    litserve = (peer, Path(__file__).with_name("peer_litserve.py"), options.run)
    services = {
        "dualcaps, batches": lambda port: [*ours, BATCH, "--port", port],
        "dualcaps, one by one": lambda port: [*ours, 1, "--port", port],
        "LitServe, batches": lambda port: [*litserve, port, BATCH, PEER_WAIT],
        "LitServe, one by one": lambda port: [*litserve, port, 1, 0],
    }
    for connections in options.connections:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in services}
        for _ in range(options.rounds):
            for name, command in services.items():
                with served(command, _answers) as (_, port):
                    _check(port, files, wanted)
                    found[name].append(_load(port, files, connections, options.seconds))
        for name, rounds in found.items():
            for measure, unit in (("requests", "/s"), ("p50", "ms"), ("p99", "ms")):
                values = sorted(one[measure] for one in rounds)
                spread = {"slowest": values[0], "fastest": values[-1], "n": len(values)}
                place = f"{case}, {connections} connections"
                results.add(place, name, measure, values[len(values) // 2], unit, **spread)
    with served(services["dualcaps, batches"], _answers) as (_, port):
        counts = _attack(port, files, wanted)
        for name, count in counts.items():
            results.add(f"{case}, attacked", "dualcaps, batches", name, count, "requests")
    with served(services["dualcaps, batches"], _answers) as (process, port):
        for name, size in _memory(process, port, files).items():
            results.add(f"{case}, {REQUESTS:,} requests", "dualcaps, batches", name, size, "MB")


def _form(file: bytes) -> bytes:
    heading = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="request"; filename="image.png"\r\n'
    return f"{heading}Content-Type: image/png\r\n\r\n".encode() + file + f"\r\n--{BOUNDARY}--\r\n".encode()


def _answers(port: int) -> bool:
    return _post(port, b"")[0] in (400, 422, 500)


def _post(port: int, body: bytes, kind: str = FORM, seconds: float = 30) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request("POST", "/predict", body, {"Content-Type": kind})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _right(answer: tuple[int, bytes], lengths: np.ndarray) -> bool:
    if answer[0] != 200:
        return False
    (found,) = json.loads(answer[1])
    return float(np.abs(np.array(list(found["lengths"].values())) - lengths).max()) < TOLERANCE


def _check(port: int, files: Sequence[bytes], wanted: np.ndarray) -> None:
    for file, lengths in zip(files, wanted, strict=True):
        answer = _post(port, _form(file))
        if not _right(answer, lengths):
            sys.exit(f"a wrong answer, no speed told: {answer}")


def _load(port: int, files: Sequence[bytes], connections: int, seconds: int) -> dict[str, float]:
    """Requests a second and the latencies that half and 99 % of them keep, by wrk."""
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            Path(folder, str(number)).write_bytes(_form(file))
        script = Path(folder, "post.lua")
        script.write_text(f"""
local bodies, turn = {{}}, 0
for number = 0, {len(files) - 1} do
  local file = io.open("{folder}/" .. number, "rb")
  bodies[number] = file:read("*a")
  file:close()
end
request = function()
  turn = (turn + 1) % {len(files)}
  return wrk.format("POST", "/predict", {{["Content-Type"] = "{FORM}"}}, bodies[turn])
end
""")
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--latency", "--script", str(script)]
        said = subprocess.run(
            [*command, "--duration", f"{seconds}s", f"http://127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"requests failed, no speed told:\n{said}")

    def milliseconds(share: str) -> float:
        number, unit = re.findall(rf"{share}%\s+([\d.]+)(us|ms|s)", said)[0]
        return float(number) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit]

    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    return {"requests": rate, "p50": milliseconds("50"), "p99": milliseconds("99")}


def _attack(port: int, files: Sequence[bytes], wanted: np.ndarray) -> dict[str, int]:
    """Send malformed requests with slow and vanishing clients beside them; counts of what happened."""
    drawn = random.Random(0)
    counts = {"malformed, refused": 0, "malformed, answered 200": 0, "server errors": 0, "closed without answer": 0}
    right = wrong = 0
    done = threading.Event()
    slow = [threading.Thread(target=_send_slowly, args=(port, _form(files[0]), done)) for _ in range(SLOW)]
    for thread in slow:
        thread.start()
    for number in range(MALFORMED):
        if number % (MALFORMED // VANISHING) == 0:
            _vanish(port, _form(drawn.choice(files)), drawn)
        status = _raw(port, _malformed(drawn, files))
        kind = (
            "closed without answer"
            if status is None
            else "server errors"
            if status >= 500
            else "malformed, answered 200"
            if status < 300
            else "malformed, refused"
        )
        counts[kind] += 1
        place = drawn.randrange(len(files))
        if _right(_post(port, _form(files[place])), wanted[place]):
            right += 1
        else:
            wrong += 1
    done.set()
    for thread in slow:
        thread.join()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
        assert answer.status == 200
    return {**counts, "correct between, right": right, "correct between, wrong": wrong}


def _malformed(drawn: random.Random, files: Sequence[bytes]) -> bytes:
    """A request that is wrong in one of several ways, as the bytes to send."""
    file, head = drawn.choice(files), b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    noise = drawn.randbytes(drawn.randrange(1, 2_000))

    def sent(body: bytes, kind: bytes = FORM.encode(), length: bytes | None = None) -> bytes:
        length = str(len(body)).encode() if length is None else length
        return head + b"Content-Type: " + kind + b"\r\nContent-Length: " + length + b"\r\n\r\n" + body

    return drawn.choice(
        [
            lambda: noise + b"\r\n\r\n",
            lambda: sent(noise, b"image/png"),
            lambda: sent(file[: drawn.randrange(len(file) // 2)], b"image/png"),
            lambda: sent(_form(noise)),
            lambda: sent(_form(file)[: drawn.randrange(60)]),
            lambda: sent(_form(file), b"multipart/form-data"),
            lambda: sent(_form(file), b"multipart/form-data; boundary=other"),
            lambda: sent(file, b"image/png", b"99999999999"),
            lambda: sent(file, b"image/png", b"-1"),
            lambda: sent(file, b"image/png", b"nonsense"),
            lambda: sent(b"", b"image/png"),
            lambda: sent(json.dumps({"image": "x"}).encode(), b"application/json"),
            lambda: head.replace(b"POST", b"PUT") + b"Content-Length: 0\r\n\r\n",
            lambda: head.replace(b"/predict", b"/" + b"a" * 70_000) + b"\r\n",
        ]
    )()


def _raw(port: int, content: bytes) -> int | None:
    """The status code of the answer to some bytes; None if the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(content)
        try:
            first = connection.recv(20).split()
        except TimeoutError:  # it waits for the rest of the request
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(30)
            first = connection.recv(20).split()
        return int(first[1]) if len(first) > 1 else None
    return None


def _send_slowly(port: int, body: bytes, done: threading.Event) -> None:
    """Send a request byte by byte until told to stop."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
        for place in range(len(head) + len(body)):
            if done.wait(0.5):
                return
            connection.send((head + body)[place : place + 1])


def _vanish(port: int, body: bytes, drawn: random.Random) -> None:
    """Close the connection within the request or before its answer."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.send((head + body)[: drawn.choice([10, len(head), len(head) + len(body) // 2, len(head + body)])])
        reset = b"\x01\x00\x00\x00\x00\x00\x00\x00"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)


def _memory(process: psutil.Process, port: int, files: Sequence[bytes]) -> dict[str, float]:
    """The resident memory of the service after some requests and after many more."""
    sizes = {}
    for name, count in (("memory before", WARMED_UP), ("memory after", REQUESTS)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in range(count):
            connection.request("POST", "/predict", _form(files[number % len(files)]), {"Content-Type": FORM})
            connection.getresponse().read()
        sizes[name] = process.memory_info().rss / 1e6
    return sizes


if __name__ == "__main__":
    main()
