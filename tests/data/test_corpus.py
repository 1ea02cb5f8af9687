"""Damaged files of every format: the data, or one line that names the file; never anything else."""

import gzip
import io
import pickle
import random
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import corpus
import numpy as np
import pytest
from PIL import Image

from dualcaps import DataError
from dualcaps.data.sources import cifar10, coil20, mnist, parquet, smallnorb, svhn
from dualcaps.data.sources.cifar10 import CIFAR_BINARY, CIFAR_PYTHON


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [*corpus.seeds(), *corpus.IN_FOLDERS, "requests"])
def test_damaged_files_are_refused_or_read(kind: str, tmp_path: Path):
    if kind == "requests":
        pytest.importorskip("fastapi")
    (tmp_path / "attacked").mkdir()
    refused = 0
    for number in range(150):
        dice = random.Random(f"{kind} {number}")
        refused += corpus.attack(dice.choice(corpus.seeds_of(kind)), dice, tmp_path / "attacked")[0]
    assert refused > (20 if kind in ("onnx", "run") else 75)  # many changes of numbers and texts are no damage


@pytest.mark.parametrize(
    ("kind", "number"), [(kind, n) for kind, found in corpus.seeds().items() for n in range(len(found))]
)
def test_the_whole_files_are_read(kind: str, number: int, tmp_path: Path):
    seed = corpus.seeds_of(kind)[number]
    path = tmp_path / seed.file
    path.write_bytes(seed.pack(seed.content))
    if (kind, number) in (("cifar-python", 3), ("npz", 2)):  # cut on purpose, to be damaged further
        with pytest.raises(DataError):
            seed.read(path)
    else:
        seed.read(path)


class Bad:
    """Runs a command when it is unpickled by anything careless."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (exec, (f"open({str(self.file)!r}, 'w')",))


def test_a_pickle_that_calls_code_is_refused_without_calling_it(tmp_path: Path):
    for content in (pickle.dumps(Bad(tmp_path / "called")), pickle.dumps({b"data": Bad(tmp_path / "called")}, 2)):
        with pytest.raises(DataError, match=r"asks for (builtins|__builtin__)\.exec"):
            cifar10.parse_cifar_pickle(content, "data_batch_1")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "names", [("os", "system"), ("numpy.core.multiarray", "array"), ("numpy", "load"), ("builtins", "getattr")]
)
def test_nothing_but_the_stand_ins_can_be_named(names: tuple[str, str]):
    content = b"c" + "\n".join(names).encode() + b"\n."
    with pytest.raises(DataError, match=f"asks for {names[0]}.{names[1]}"):
        cifar10.parse_cifar_pickle(content, "data_batch_1")


def test_archive_members_with_wandering_names_and_links_write_nothing(tmp_path: Path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in ("../../data_batch_1.bin", "/etc/data_batch_2.bin"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("data_batch_3.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(out.getvalue())
    found = cifar10.read_tar(path, CIFAR_BINARY)
    assert found == {"data_batch_1.bin": b"evil", "data_batch_2.bin": b"evil"}
    assert set(tmp_path.glob("*")) == {path, tmp_path / "cwd"}


def bomb(read_as: str) -> bytes:
    """A small file that would unpack to a quarter of a gigabyte."""
    zeros = bytes(1 << 20)
    if read_as == "idx":
        return gzip.compress(struct.pack(">HBB1I", 0, 8, 1, 1 << 28) + zeros * 256)
    if read_as == "smallnorb":
        return gzip.compress(struct.pack("<6i", 0x1E3D4C54, 2, 1 << 13, 1 << 13, 1, 0)[:20] + zeros * 256)
    if read_as == "tar":
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            member = tarfile.TarInfo("data_batch_1.bin")
            member.size = 1 << 28
            with gzip.open(io.BytesIO(gzip.compress(zeros * 256))) as content:
                archive.addfile(member, content)  # pyright: ignore[reportArgumentType]
        return out.getvalue()
    if read_as == "npz":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1, 1 << 28)})
            for _ in range(256):
                file.write(zeros)
        with zipfile.ZipFile(out, "a") as archive:
            archive.writestr("y.npy", corpus.npy_bytes(np.zeros(1, np.uint8)))
        return out.getvalue()
    return corpus.mat_bytes(compressed=True, X=np.zeros((32, 32, 3, 70_000), np.uint8))


@pytest.mark.parametrize(
    ("read_as", "read"),
    [
        ("idx", mnist.read_idx),
        ("smallnorb", smallnorb.read_norb),
        ("tar", lambda path: cifar10.read_tar(path, CIFAR_BINARY)),
        ("npz", corpus.read_npz),
        ("svhn", svhn.read_svhn),
    ],
)
def test_bombs_are_refused_unopened(read_as: str, read, tmp_path: Path):
    path = tmp_path / "bomb"
    path.write_bytes(bomb(read_as))
    assert path.stat().st_size < 5_000_000
    before = corpus.peak_megabytes()
    with pytest.raises(DataError, match="not a trustworthy file"):
        read(path)
    assert corpus.peak_megabytes() - before < corpus.MOST_MEGABYTES


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (struct.pack("<5i", 0x1E3D4C55, 2, -3, 4, 1), "negative size"),
        (struct.pack("<5i", 0x1E3D4C55, 2, 2**30, 2**30, 1), "not a trustworthy file|fewer than"),
        (struct.pack("<2i", 0x1E3D4C55, 9), "9 dimensions"),
        (struct.pack("<2i", 0x1E3D4C51, 2), "not a smallNORB matrix"),
        (struct.pack("<i", 0x1E3D4C55), "truncated in the header"),
        (corpus.norb_bytes(np.zeros((2, 3), np.int32))[:-1], "fewer than the 24 bytes"),
        (corpus.norb_bytes(np.zeros((2, 3), np.int32)) + b"\0", "more than the 24 bytes"),
    ],
)
def test_what_is_wrong_with_a_smallnorb_matrix_is_said(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "x-cat.mat"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        smallnorb.read_norb(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no whole number of CIFAR-10 records"),
        (bytes(3074), "no whole number of CIFAR-10 records"),
    ],
)
def test_what_is_wrong_with_a_cifar_batch_is_said(content: bytes, said: str):
    with pytest.raises(DataError, match=said):
        cifar10.parse_cifar_binary(content, "data_batch_1.bin")


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([], "without the data and labels"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "without the data and labels"),
        ({b"data": [1, 2], b"labels": [1, 2]}, "the data is no array"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2, 3]}, r"data of shape \(2, 3072\) for 3 labels"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -2]}, "labels that are no class numbers"),
        ({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}, "an array that is not of bytes|which no batch"),
        ({b"data": np.zeros((2, 6144), np.uint8), b"labels": [1, 2]}, "not of the shape of CIFAR-10's"),
        ({b"data": np.zeros((1,) * 30, np.uint8), b"labels": [1, 2]}, "not of the shape of CIFAR-10's"),
    ],
)
def test_what_is_wrong_with_a_cifar_pickle_is_said(batch: object, said: str):
    with pytest.raises(DataError, match=said):
        cifar10.parse_cifar_pickle(pickle.dumps(batch, 2), "data_batch_1")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"X": np.zeros((28, 28, 3, 4), np.uint8)}, r"not uint8 \[32, 32, 3, N\]"),
        ({"X": np.zeros((32, 32, 3, 4))}, "X is float64"),
        ({"y": np.ones((3, 1))}, "3 labels"),
        ({"y": np.full((4, 1), 11)}, "labels other than 1 to 10"),
        ({"y": np.full((4, 1), 1.5)}, "labels other than 1 to 10"),
    ],
)
def test_what_is_wrong_with_an_svhn_file_is_said(tmp_path: Path, changed: dict, said: str):
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(corpus.mat_bytes(compressed=True, **changed))
    with pytest.raises(DataError, match=said):
        svhn.read_svhn(path)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": np.zeros(3)}, "holds no x and y"),
        ({"x": np.zeros((3, 4, 4), complex), "y": np.arange(3)}, "x is complex128"),
        ({"x": np.zeros((3, 4, 4, 2), np.uint8), "y": np.arange(3)}, "neither 1 nor 3 channels"),
        ({"x": np.zeros((3, 4, 4), np.uint8), "y": np.arange(4)}, r"y of shape \(4,\) for 3 images"),
        ({"x": np.zeros((3, 4, 4), np.uint8), "y": np.array([0, -1, 1])}, "label -1 is below 0"),
        ({"x": np.zeros((3, 4, 4), np.uint8), "y": np.array([0.5, 1, 1])}, "must be whole numbers or names"),
        (
            {"x": np.zeros((3, 4, 4), np.uint8), "y": np.arange(3), "classes": np.array(["a"])},
            "label 1 is not one of the 1 classes",
        ),
        ({"x": np.array([{}]), "y": np.arange(1)}, "x is no array that can be read"),
    ],
)
def test_what_is_wrong_with_an_npz_file_is_said(tmp_path: Path, arrays: dict, said: str):
    path = tmp_path / "x.npz"
    path.write_bytes(corpus.npz_bytes(**arrays))
    with pytest.raises(DataError, match=said):
        corpus.read_npz(path)


def test_cifar_is_the_same_in_all_its_forms(tmp_path: Path):
    images, labels = corpus.cifar_images(3)
    for parsed in (
        cifar10.parse_cifar_binary(corpus.cifar_record(), "x"),
        *(cifar10.parse_cifar_pickle(corpus.cifar_pickle(protocol=protocol), "x") for protocol in (2, 3, 4)),
    ):
        np.testing.assert_array_equal(parsed[0], images)
        np.testing.assert_array_equal(parsed[1], labels)
    path = tmp_path / "x.tar.gz"
    path.write_bytes(corpus.tar_gz(dict.fromkeys((*CIFAR_PYTHON, "readme.html"), b"content")))
    assert cifar10.read_tar(path, CIFAR_PYTHON) == dict.fromkeys(CIFAR_PYTHON, b"content")


def test_svhn_label_ten_is_zero_and_images_keep_their_orientation(tmp_path: Path):
    path = tmp_path / "train_32x32.mat"
    for compressed in (False, True):
        path.write_bytes(corpus.mat_bytes(compressed=compressed, y=np.array([[1], [10], [9], [2]], np.uint8)))
        images, labels = svhn.read_svhn(path)
        assert labels.tolist() == [1, 0, 9, 2]
        np.testing.assert_array_equal(images, corpus.cifar_images(4)[0])


def test_cameras_of_smallnorb_alternate(tmp_path: Path):
    pairs = np.random.default_rng(0).integers(0, 256, (5, 2, 96, 96), dtype=np.uint8)
    path = tmp_path / "x-dat.mat.gz"
    path.write_bytes(gzip.compress(corpus.norb_bytes(pairs)))
    np.testing.assert_array_equal(smallnorb.read_norb_images(path, (0,), (96, 96)), pairs[:, :1])
    np.testing.assert_array_equal(smallnorb.read_norb_images(path, (0, 1), (96, 96)), pairs.reshape(10, 1, 96, 96))
    small = smallnorb.read_norb_images(path, (1,), (32, 32))
    by_area = pairs[:, 1].reshape(5, 32, 3, 32, 3).mean(axis=(2, 4))
    assert np.abs(small[:, 0] - by_area).max() < 0.7


def test_coil_is_read_from_its_archive_and_its_folder(tmp_path: Path):
    path = tmp_path / "coil-20-proc.zip"
    other = io.BytesIO()
    Image.new("L", (128, 128), 77).save(other, "PNG")
    path.write_bytes(corpus.coil_zip(other.getvalue()))
    from_archive = coil20.read_coil(path, 1, (8, 8))
    assert from_archive.shape == (1, 72, 1, 8, 8)
    assert (from_archive[0, 5] != from_archive[0, 4]).any()
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    np.testing.assert_array_equal(coil20.read_coil(tmp_path / "coil-20-proc", 1, (8, 8)), from_archive)
    (tmp_path / "coil-20-proc" / "obj1__33.png").unlink()
    with pytest.raises(DataError, match=r"obj1__33\.png is missing"):
        coil20.read_coil(tmp_path / "coil-20-proc", 1, (8, 8))


def nested_mat() -> bytes:
    """A cell in a cell in a cell …, on which a careless reader recurses until it crashes."""
    inner = b""
    for _ in range(3000):
        body = struct.pack("<4I", 6, 8, 1, 0) + struct.pack("<4i", 5, 8, 1, 1) + struct.pack("<2I", 1, 0) + inner
        inner = struct.pack("<2I", 14, len(body)) + body
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    packed = zlib.compress(inner)
    return header + struct.pack("<2I", 15, len(packed)) + packed


def sparse_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("data_batch_1.bin")
        member.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1"}
        member.pax_headers |= {"GNU.sparse.size": str(600 << 20), "GNU.sparse.realsize": str(600 << 20)}
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    return out.getvalue()


def repeated_parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array([bytes(1 << 20)] * 400)
    out = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": pa.array(np.arange(400) % 2)}), out)
    return out.getvalue()


def read_pickle(path: Path) -> object:
    return cifar10.parse_cifar_pickle(path.read_bytes(), str(path))


CRAFTED = {
    "cells in cells": (nested_mat, svhn.read_svhn),
    "holes": (sparse_tar, lambda path: cifar10.read_tar(path, CIFAR_BINARY)),
    "one picture many times": (repeated_parquet, parquet.read_parquet),
    "many tiny pictures": (
        lambda: gzip.compress(corpus.norb_bytes(np.zeros((300_000, 2, 1, 1), np.uint8))),
        lambda path: smallnorb.read_norb_images(path, (0,), (32, 32)),
    ),
    "a huge array of bytes": (lambda: b"\x80\x05\x96" + (3 << 30).to_bytes(8, "little") + b".", read_pickle),
    "a key that doubles": (lambda: b"\x80\x02})" + b"q\x01h\x01\x86" * 40 + b"K\x01s.", read_pickle),
    "a program": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", corpus.read_picture),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_files_made_to_hurt_are_refused_at_once(kind: str, tmp_path: Path):
    make, read = CRAFTED[kind]
    path = tmp_path / "crafted"
    path.write_bytes(make())
    started, before = time.monotonic(), corpus.reset_peak()
    with pytest.raises(DataError, match="crafted"):
        read(path)
    assert time.monotonic() - started < corpus.MOST_SECONDS
    assert corpus.peak_megabytes() - before < corpus.MOST_MEGABYTES
