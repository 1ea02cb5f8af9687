"""Readers of file formats: what is right is read to the bit, what is wrong is one line that names the file."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dualcaps import DataError
from dualcaps.data.sources.mnist import read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@given(array=hnp.arrays(np.uint8, hnp.array_shapes(max_dims=4, max_side=6)), packed=st.booleans())
def test_idx_comes_back_to_the_bit(tmp_path_factory, array: np.ndarray, packed: bool):
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if packed else idx_bytes(array))
    np.testing.assert_array_equal(read_idx(path), array)


@given(data=st.data())
def test_a_cut_or_changed_idx_file_is_refused_or_reads_as_an_array(tmp_path_factory, data: st.DataObject):
    content = bytearray(idx_bytes(np.arange(60, dtype=np.uint8).reshape(3, 4, 5)))
    if data.draw(st.booleans()):
        content = bytearray(gzip.compress(bytes(content)))
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("idx") / "file"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        array = read_idx(path)
    except DataError as error:
        said = str(error)
    else:
        said = str(path)
        assert array.dtype == np.uint8
    assert str(path) in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an IDX file"),
        (b"<html>", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not unsigned bytes"),
        (b"\0\0\x08\x03\0\0\0\x01", "truncated in the header"),
        (b"\0\0\x08\x01\0\0\0\x05abc", "fewer than the 5 bytes"),
        (b"\0\0\x08\x01\0\0\0\x02abc", "more than the 2 bytes"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "fewer than"),
        (gzip.compress(idx_bytes(np.zeros(10000, np.uint8)), mtime=0)[:-20], "damaged gzip"),
    ],
)
def test_what_is_wrong_with_an_idx_file_is_said(tmp_path: Path, content: bytes, said: str):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
