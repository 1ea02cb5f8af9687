"""Small whole files of every format that is read, and ways to damage them.

`python tests/data/corpus.py [--count N] [FORMAT …]` attacks the readers at length, each format in
a process of its own; the tests run a short version.
"""

import argparse
import functools
import gzip
import io
import logging
import pickle
import random
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import torch
from PIL import Image

from dualcaps import (
    DataConfig,
    DataError,
    DualcapsError,
    ImageDataset,
    TrainConfig,
    create_model,
    fit,
    load_data,
    load_model,
)
from dualcaps.data.images import inspect_images, read_image
from dualcaps.data.pack import pack
from dualcaps.data.sources import cifar10, coil20, mnist, npz, parquet, smallnorb, svhn
from dualcaps.data.sources.cifar10 import CIFAR_BINARY, CIFAR_PYTHON
from dualcaps.data.tars import read_tar, write_tars
from dualcaps.export.onnx import export_onnx, load_graph
from dualcaps.hub import from_pretrained, save_pretrained
from dualcaps.models import build_model
from dualcaps.runs.run import Run
from dualcaps.training.callbacks import TrainingState, restore
from dualcaps.training.optimizers import build_optimizer

MOST_SECONDS = 2.0
MOST_MEGABYTES = 200


class Seed(NamedTuple):
    """A whole file: what is inside, how it is packed, what it is called and what reads it."""

    content: bytes
    pack: Callable[[bytes], bytes]
    file: str
    read: Callable[[Path], object]


def read_npz(path: Path) -> object:
    return npz.npz_source(path, DataConfig(str(path))).read()


def plain(content: bytes) -> bytes:
    return content


def among(whole: Path, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Reads a folder of which one file is replaced by another; messages name that file as if it were in place."""

    def read_with(path: Path) -> object:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "whole"
            shutil.copytree(whole, folder)
            (folder / path.name).write_bytes(path.read_bytes())
            try:
                return read(folder)
            except DualcapsError as error:
                if str(folder) not in str(error):
                    raise AssertionError(f"does not name the folder: {error}") from error
                raise DataError(f"{path}: {error}") from error

    return read_with


def read_packed(folder: Path) -> None:
    data = load_data(folder)
    for split in (data.train, data.validation, data.test):
        for _ in split.pieces():
            pass


def read_run(folder: Path) -> None:
    load_model(Run.open(folder), "cpu")


def read_checkpoint_of(folder: Path) -> None:
    run = Run.open(folder)
    model = build_model(run.model)
    optimizer = build_optimizer(model, run.training, 1e-3)
    restore(
        TrainingState(
            model=model,
            data=_run_data(),
            config=run.training,
            run=folder,
            precision="float32",
            optimizer=optimizer,
            selection=_run_data().validation,
            selected_on="validation",
            training_images=len(_run_data().train),
        )
    )


def read_onnx(path: Path) -> None:
    try:
        load_graph(path)([np.zeros((2, 1, 12, 12), np.uint8)])
    except DualcapsError as error:
        raise DataError(str(error)) from error


class RequestReader:
    """Sends the bytes of a file to `dualcaps serve`'s application, which runs in a thread of this process."""

    def __init__(self) -> None:
        import uvicorn

        from dualcaps.serve.http import Limits, build_service

        torch.manual_seed(0)
        model = create_model("capsnet", (1, 12, 12), 3, width=4).eval()
        app = build_service(model, limits=Limits(bytes=10**6, images=3))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        threading.Thread(target=server.run, daemon=True).start()
        while not server.started:
            time.sleep(0.01)
        self.address = server.servers[0].sockets[0].getsockname()

    def __call__(self, path: Path) -> None:
        """Fails on a status of 500 or above, or where the service answers nothing more."""
        answer = self._answer(path.read_bytes(), 0.2)
        status = int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else None
        assert status is None or status < 500, answer
        health = self._answer(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 10)
        assert health.startswith(b"HTTP/1.1 200")
        if status is None or status >= 400:
            raise DataError(f"{path}: refused with {status}")

    def _answer(self, sent: bytes, seconds: float) -> bytes:
        """The start of the answer; nothing if the connection is closed without one, or waits longer for more."""
        with socket.create_connection(self.address, timeout=1) as connection:
            try:
                connection.sendall(sent)
                connection.settimeout(seconds)
                return connection.recv(1000)
            except (ConnectionError, TimeoutError):
                return b""


def http_request(body: bytes, kind: str) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _run_data() -> ImageDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 12, 12), np.uint8)
    return ImageDataset.from_arrays(pixels, [0, 1, 2] * 20)


def folders(where: Path) -> dict[str, Path]:
    """A packed data set, a tar file, a finished run with its checkpoint, an exported folder and an ONNX file."""
    for label in ("a", "b"):
        (where / "images" / label).mkdir(parents=True)
        for number in range(6):
            (where / "images" / label / f"{number}.png").write_bytes(picture("PNG"))
    pack([where / "images"], where / "packed")
    tar = Path(next(iter(write_tars(load_data(where / "packed"), str(where / "tars")))))
    data = _run_data()
    torch.manual_seed(0)
    model = create_model("capsnet", data.image_shape, 3, width=4)
    fit(model, data, TrainConfig(epochs=1, precision="float32"), out=where / "run", quiet=True, pictures=False)
    save_pretrained(model, where / "exported")
    export_onnx(model, where / "x.onnx", data.test.images[:4], metadata={})
    return {name: where / name for name in ("packed", "run", "exported")} | {"tar": tar, "onnx": where / "x.onnx"}


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def norb_bytes(array: np.ndarray) -> bytes:
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    return struct.pack(f"<2i{len(sizes)}i", magic, array.ndim, *sizes) + array.tobytes()


def cifar_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return values, np.arange(count) % 10


def cifar_record(count: int = 3) -> bytes:
    images, labels = cifar_images(count)
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels.tolist(), strict=True))


def cifar_pickle(count: int = 3, protocol: int = 2) -> bytes:
    """As Python 2 wrote it: byte strings for text, in protocol 2."""
    images, labels = cifar_images(count)
    batch = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": images.reshape(count, -1), b"filenames": [b"a"]}
    return pickle.dumps(batch, protocol=protocol)


def tar_gz(files: dict[str, bytes], folder: str = "batches/") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def mat_bytes(*, compressed: bool, count: int = 4, **changed: Any) -> bytes:
    images, labels = cifar_images(count)
    out = io.BytesIO()
    content = {"X": images.transpose(2, 3, 1, 0), "y": (labels + 1)[:, None].astype(np.uint8)} | changed
    scipy.io.savemat(out, content, do_compression=compressed)
    return out.getvalue()


def picture(kind: str, mode: str = "L", side: int = 8) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(out, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
    return out.getvalue()


COIL_PICTURE = picture("PNG", side=128)


def coil_zip(content: bytes | None = None, views: int = 72) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for view in range(views):
            archive.writestr(f"coil-20-proc/obj1__{view}.png", content if content and view == 5 else COIL_PICTURE)
    return out.getvalue()


def npz_bytes(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def parquet_bytes(count: int = 4) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": picture("PNG"), "path": f"{n}.png"} for n in range(count)]
    table = pa.table({"image": images, "label": pa.array(np.arange(count) % 2)})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _zip_of_x(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", npy_bytes(np.arange(5)))
    return out.getvalue()


def read_picture(path: Path) -> None:
    if unread := inspect_images([path]).unread:
        raise DataError(unread[0])
    read_image(path, (3, 8, 8))


def seeds() -> dict[str, list[Seed]]:
    """Whole files by format; where files are packed, damage is done inside too."""
    random_bytes = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    pairs = np.random.default_rng(0).integers(0, 256, (2, 2, 96, 96), dtype=np.uint8)
    binary = dict.fromkeys(CIFAR_BINARY, cifar_record(2))
    python = dict.fromkeys(CIFAR_PYTHON, cifar_pickle(2))

    def read_dat(path: Path) -> object:
        return smallnorb.read_norb_images(path, (0, 1), (4, 4))

    def read_bin(path: Path) -> object:
        return cifar10.parse_cifar_binary(path.read_bytes(), str(path))

    def read_py(path: Path) -> object:
        return cifar10.parse_cifar_pickle(path.read_bytes(), str(path))

    def read_archive(path: Path) -> object:
        found = cifar10.read_tar(path, (*CIFAR_BINARY, *CIFAR_PYTHON))
        return [
            (cifar10.parse_cifar_binary if name.endswith(".bin") else cifar10.parse_cifar_pickle)(content, str(path))
            for name, content in found.items()
        ]

    def read_coil(path: Path) -> object:
        return coil20.read_coil(path, 1, (4, 4))

    return {
        "idx": [
            Seed(idx_bytes(random_bytes), plain, "images", mnist.read_idx),
            Seed(idx_bytes(random_bytes), gzip.compress, "images.gz", mnist.read_idx),
        ],
        "cifar-binary": [
            Seed(cifar_record(), plain, "data_batch_1.bin", read_bin),
            Seed(cifar_record(2), lambda c: tar_gz(binary | {"data_batch_3.bin": c}), "cifar.tar.gz", read_archive),
            Seed(gzip.decompress(tar_gz(binary)), gzip.compress, "cifar.tar.gz", read_archive),
        ],
        "cifar-python": [
            Seed(cifar_pickle(), plain, "data_batch_1", read_py),
            Seed(cifar_pickle(protocol=4), plain, "data_batch_1", read_py),
            Seed(cifar_pickle(2), lambda c: tar_gz(python | {"data_batch_3": c}), "cifar.tar.gz", read_archive),
            Seed(cifar_pickle(2)[:200], plain, "data_batch_1", read_py),
        ],
        "svhn": [
            Seed(mat_bytes(compressed=False), plain, "train_32x32.mat", svhn.read_svhn),
            Seed(mat_bytes(compressed=True), plain, "train_32x32.mat", svhn.read_svhn),
        ],
        "smallnorb": [
            Seed(norb_bytes(pairs), plain, "x-dat.mat", read_dat),
            Seed(norb_bytes(pairs), gzip.compress, "x-dat.mat.gz", read_dat),
            Seed(norb_bytes(np.arange(20, dtype=np.int32).reshape(5, 4)), plain, "x-info.mat", smallnorb.read_norb),
        ],
        "coil-20": [
            Seed(coil_zip(), plain, "coil-20-proc.zip", read_coil),
            Seed(COIL_PICTURE, coil_zip, "coil-20-proc.zip", read_coil),
        ],
        "npz": [
            Seed(npz_bytes(x=random_bytes, y=np.arange(5)), plain, "x.npz", read_npz),
            Seed(npy_bytes(random_bytes), _zip_of_x, "x.npz", read_npz),
            Seed(npy_bytes(random_bytes)[:128], _zip_of_x, "x.npz", read_npz),
        ],
        "parquet": [Seed(parquet_bytes(), plain, "train.parquet", parquet.read_parquet)],
        "images": [
            Seed(picture(kind, mode), plain, f"x.{kind.lower()}", read_picture)
            for kind, mode in (
                *(("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK")),
                *(("WEBP", "RGBA"), ("BMP", "RGB"), ("TIFF", "RGB"), ("GIF", "P")),
            )
        ],
    }


IN_FOLDERS = ("packed", "tar", "run", "checkpoint", "exported", "onnx")
"""What this package writes itself, damaged too; see `seeds_in_folders`."""


def seeds_in_folders() -> dict[str, list[Seed]]:
    """Whole files of packed data sets, runs and exports; made by training, which takes some seconds."""
    whole = folders(Path(tempfile.mkdtemp(prefix="corpus-")))
    return {
        "packed": [
            Seed((whole["packed"] / name).read_bytes(), plain, name, among(whole["packed"], read_packed))
            for name in ("index.json", "images.npy", "labels.npy")
        ],
        "tar": [Seed(whole["tar"].read_bytes(), plain, "train-0.tar", lambda path: list(read_tar(str(path))))],
        "run": [
            Seed((whole["run"] / name).read_bytes(), plain, name, among(whole["run"], read_run))
            for name in ("config.json", "provenance.json", "metrics.jsonl", "result.json", "model.safetensors")
        ],
        "checkpoint": [
            Seed(
                (whole["run"] / "checkpoint.safetensors").read_bytes(),
                plain,
                "checkpoint.safetensors",
                among(whole["run"], read_checkpoint_of),
            )
        ],
        "exported": [
            Seed((whole["exported"] / name).read_bytes(), plain, name, among(whole["exported"], from_pretrained))
            for name in ("config.json", "model.safetensors")
        ],
        "onnx": [Seed(whole["onnx"].read_bytes(), plain, "x.onnx", read_onnx)],
    }


def seeds_of_requests() -> dict[str, list[Seed]]:
    """Requests to the service: damaged as a whole, and with a damaged body of the length that it says."""
    image, form = picture("PNG"), "multipart/form-data; boundary=corpus"
    files = [(f"{number}.png", picture(kind)) for number, kind in enumerate(("PNG", "JPEG"))]
    parts = b"".join(
        f'--corpus\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    )
    read = RequestReader()
    bodies = {"image/png": image, form: parts + b"--corpus--\r\n"}
    return {
        "requests": [
            Seed(body, functools.partial(http_request, kind=kind), "request", read) for kind, body in bodies.items()
        ]
    }


EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 2**62, 10**6, 10**9)


def damaged(content: bytes, dice: random.Random) -> bytes:
    """The content cut, changed, repeated or with sizes put to extremes."""
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        # Headers are where the damage tells most.
        place = dice.randrange(min(len(changed), dice.choice((16, 64, 256, 1 << 30))))
        match dice.randrange(7):
            case 0:
                del changed[place:]
            case 1:
                changed[place] = dice.randrange(256)
            case 2:
                changed[place] ^= 1 << dice.randrange(8)
            case 3:
                width = dice.choice((1, 2, 4, 8))
                number = dice.choice(EXTREMES) % (1 << (8 * width))
                changed[place : place + width] = number.to_bytes(width, dice.choice(("little", "big")))
            case 4:
                changed[place:place] = changed[place : place + dice.randrange(64)]
            case 5:
                del changed[place : place + dice.randrange(1, 64)]
            case 6:
                changed += dice.randbytes(dice.randrange(1, 64))
    return bytes(changed)


def attack(seed: Seed, dice: random.Random, folder: Path) -> tuple[bool, float]:
    """Read a damaged file; fails on anything but data or the one-line error.

    Whether it was refused, and how many megabytes over the file's size it took at most.
    """
    inside = dice.random() < 0.5
    content = seed.pack(damaged(seed.content, dice)) if inside else damaged(seed.pack(seed.content), dice)
    path = folder / seed.file
    path.write_bytes(content)
    before, started = reset_peak(), time.monotonic()
    said = None
    try:
        seed.read(path)
    except DataError as error:
        said = str(error)
    if said is not None:
        assert "\n" not in said, f"more than a line: {said}"
        assert str(path) in said, f"does not name the file: {said}"
    assert time.monotonic() - started < MOST_SECONDS, "took too long"
    taken = peak_megabytes() - before - len(content) / 1e6
    assert taken < MOST_MEGABYTES, "took too much memory"
    assert [file.name for file in folder.iterdir()] == [seed.file], "wrote a file"
    path.unlink()
    return said is not None, taken


def reset_peak() -> float:
    """Start measuring the peak anew where the system can; the megabytes held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return peak_megabytes()


def peak_megabytes() -> float:
    """The most that this process held since `reset_peak`, or ever where that could not start anew."""
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def attack_often(kind: str, count: int, first: int) -> None:
    """Attack one format; print how it went."""
    refused, slowest, most = 0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + count):
            dice = random.Random(f"{kind} {number}")
            started = time.monotonic()
            try:
                was_refused, taken = attack(dice.choice(seeds_of(kind)), dice, Path(folder))
            except Exception as error:
                error.add_note(f"{kind}, attack {number}")
                raise
            refused, most = refused + was_refused, max(most, taken)
            slowest = max(slowest, time.monotonic() - started)
    print(f"{kind:<13} {count} files, {refused} refused, the rest read; slowest {slowest:.2f} s, memory +{most:.0f} MB")


_seeds: dict[str, list[Seed]] = {}


def seeds_of(kind: str) -> list[Seed]:
    if kind not in _seeds:
        build = seeds_of_requests if kind == "requests" else seeds_in_folders if kind in IN_FOLDERS else seeds
        _seeds.update(build())
    return _seeds[kind]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", default=[*seeds(), *IN_FOLDERS, "requests"])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process")
    chosen = parser.parse_args()
    if chosen.here:
        for kind in chosen.formats:
            attack_often(kind, chosen.count, chosen.first)
    else:
        for kind in chosen.formats:
            command = [
                sys.executable,
                "-W",
                "ignore",
                __file__,
                kind,
                "--here",
                f"--count={chosen.count}",
                f"--first={chosen.first}",
            ]
            if code := subprocess.run(command, check=False).returncode:
                sys.exit(f"{kind}: the reader's process ended with {code}")
