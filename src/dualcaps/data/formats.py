"""Bytes to arrays: readers of data sets' own file formats.

Each is strict: what it returns is what the format promises, and anything else is a DataError of
one line that names the file. No reader runs code from a file, writes one, or takes much more
memory than the file and what it holds.
"""

import gzip
import io
import json
import math
import pickle
import pickletools
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar, NoReturn, Protocol

import numpy as np

from dualcaps.data.images import inspect_images, read_image, resize
from dualcaps.errors import DataError

_CHUNK = 1 << 22
_SMALL = 150_000_000
_MOST_EXPANSION = 20


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of unsigned bytes, the format of MNIST, gzipped or not.

    Raises:
        DataError: the file is not IDX, holds other numbers than unsigned bytes, or is shorter or
            longer than its header says.
    """
    with _unpacked(path) as stream:
        magic = stream.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or not 1 <= magic[3] <= 4:
            raise DataError(f"{path}: not an IDX file (it starts with {magic.hex() or 'nothing'})")
        if magic[2] != 0x08:
            raise DataError(f"{path}: IDX type 0x{magic[2]:02x} is not unsigned bytes (0x08)")
        shape = _sizes(stream, ">u4", magic[3], path)
        return _rest(stream, shape, np.dtype(np.uint8), path)


_NORB_TYPES = {0x1E3D4C54: np.dtype("<i4"), 0x1E3D4C55: np.dtype(np.uint8)}


def read_norb(path: Path) -> np.ndarray:
    """Read a matrix of smallNORB's format (integers or bytes), gzipped or not.

    Raises:
        DataError: the file is no such matrix, or is shorter or longer than its header says.
    """
    with _unpacked(path) as stream:
        dtype, shape = _norb_header(stream, path)
        return _rest(stream, shape, dtype, path)


def read_norb_images(path: Path, cameras: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Read smallNORB's stereo pairs as uint8 [pairs * cameras, 1, height, width].

    Args:
        path: the `-dat` matrix [pairs, 2, 96, 96], gzipped or not.
        cameras: 0 (left), 1 (right) or both; the cameras of a pair follow each other.
        size: height and width to resize to, pair by pair, so that memory holds no 96x96 set.

    Raises:
        DataError: as `read_norb`, or the matrix holds no stereo pairs.
    """
    with _unpacked(path) as stream:
        dtype, shape = _norb_header(stream, path)
        if dtype != np.uint8 or len(shape) != 4 or shape[1] != 2 or 0 in shape:
            raise DataError(f"{path}: a matrix of shape {shape}, not stereo pairs [pairs, 2, height, width]")
        if shape[2:] != (96, 96):
            raise DataError(f"{path}: images of {shape[2]}x{shape[3]} pixels are not smallNORB's, which have 96x96")
        pair_bytes = math.prod(shape[1:])
        images: list[np.ndarray] = []
        for _ in range(shape[0]):
            raw = _read_up_to(stream, pair_bytes)
            if len(raw) < pair_bytes:
                _wrong_length(path, math.prod(shape), "fewer")
            pair = np.frombuffer(raw, np.uint8).reshape(shape[1:])
            images += [resize(pair[camera][None], size) for camera in cameras]
        if stream.read(1):
            _wrong_length(path, math.prod(shape), "more")
    return np.stack(images)


def _norb_header(stream: _Stream, path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    magic, dimensions = _sizes(stream, "<i4", 2, path)
    if magic not in _NORB_TYPES:
        raise DataError(f"{path}: not a smallNORB matrix of bytes or integers (magic number {magic & 0xFFFFFFFF:#x})")
    if not 1 <= dimensions <= 4:
        raise DataError(f"{path}: a matrix of {dimensions} dimensions is not smallNORB's")
    # Sizes fill at least three places; those past the dimensions mean nothing.
    sizes = _sizes(stream, "<i4", max(dimensions, 3), path)[:dimensions]
    if min(sizes) < 0:
        raise DataError(f"{path}: a matrix with a negative size {sizes}")
    return _NORB_TYPES[magic], sizes


def read_file(path: Path) -> bytes:
    """The file's content, unpacked if it is gzipped; raises DataError as the readers do."""
    with _unpacked(path) as stream:
        return _read_up_to(stream, _most_held(path.stat().st_size))


CIFAR_RECORD = 1 + 3 * 32 * 32


def parse_cifar_binary(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32] and labels of a batch of CIFAR-10's binary version.

    Raises:
        DataError: the content is not a whole number of records.
    """
    if not content or len(content) % CIFAR_RECORD:
        raise DataError(f"{name}: {len(content)} bytes are no whole number of CIFAR-10 records of {CIFAR_RECORD}")
    records = np.frombuffer(content, np.uint8).reshape(-1, CIFAR_RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def parse_cifar_pickle(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32] and labels of a batch of CIFAR-10's Python version.

    The pickle may hold numpy arrays of bytes, dictionaries, lists, strings and numbers; nothing
    it names is ever called.

    Raises:
        DataError: the pickle holds anything else, or no batch.
    """
    try:
        _check_opcodes(content)
        batch = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        raise DataError(f"{name}: damaged pickle ({type(error).__name__}): fetch it again") from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= set(batch):
        raise DataError(f"{name}: a pickle without the data and labels of a CIFAR-10 batch")
    data, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(data, _PickledArray) or not isinstance(labels, list):
        raise DataError(f"{name}: the data is no array, or the labels are no list")
    if not labels or not all(type(label) is int and 0 <= label < 256 for label in labels):
        raise DataError(f"{name}: labels that are no class numbers")
    images = data.bytes_of_shape(name)
    if len(images) != len(labels):
        raise DataError(f"{name}: data of shape {images.shape} for {len(labels)} labels")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


# What protocols 2 to 4 write for such a batch. Others can fill memory or time with a few bytes.
_PICKLE_OPCODES = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2"),
        *("TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1"),
        *("BININT2", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    }
)
_MOST_CALLS = 32


def _check_opcodes(content: bytes) -> None:
    calls = 0
    try:
        for opcode, _, _ in pickletools.genops(content):
            calls += opcode.name == "REDUCE"
            if calls > _MOST_CALLS:
                raise DataError("a pickle that calls more than a batch of images does")
            if opcode.name not in _PICKLE_OPCODES:
                raise DataError(f"a pickle with {opcode.name}, which no batch of images needs: do not use this file")
    except DataError:
        raise
    except Exception as error:  # a damaged pickle can make the reader raise anything
        raise DataError(f"damaged pickle ({type(error).__name__}): fetch it again") from error


class _PickledArray:
    """Stands for numpy.ndarray in a pickle: keeps the state that numpy would be given."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def bytes_of_shape(self, name: str) -> np.ndarray:
        match self.state:
            case (_, (int(rows), int(columns)) as shape, _PickledType(code=b"u1" | "u1"), fortran, bytes(raw)) if (
                rows >= 0 and columns == CIFAR_RECORD - 1 and rows * columns == len(raw)
            ):
                return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
        raise DataError(f"{name}: an array that is not of bytes, or not of the shape of CIFAR-10's")


class _PickledType:
    """Stands for numpy.dtype in a pickle."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _reconstruct(*_: object) -> _PickledArray:
    return _PickledArray()


def _encode(text: object, *_: object) -> bytes:
    if not isinstance(text, str):
        raise DataError("a pickle that encodes something other than text")
    return text.encode("latin1")


# Python's own unpickler written in Python: the one in C can be made to fill memory by one opcode.
class _CifarUnpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def find_class(self, module: str, name: str) -> Any:
        stand_ins: dict[str, dict[str, Any]] = {
            "numpy.core.multiarray": {"_reconstruct": _reconstruct},
            "numpy._core.multiarray": {"_reconstruct": _reconstruct},
            "numpy": {"ndarray": _PickledArray, "dtype": _PickledType},
            "_codecs": {"encode": _encode},
        }
        if name not in stand_ins.get(module, {}):
            raise DataError(f"a pickle that asks for {module}.{name}, which no data needs: do not use this file")
        return stand_ins[module][name]

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set(key, value)

    def _set(self, key: object, value: object) -> None:
        if not isinstance(key, bytes | str):  # hashing a nest of tuples can take for ever
            raise DataError("a pickle with names that are no text")
        self.stack[-1][key] = value

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {  # pyright: ignore[reportAttributeAccessIssue]
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


_LARGEST_MEMBER = 60_000_000  # CIFAR-10's batches have 31 MB, pickled anew by Python 3 up to 45
_LARGEST_TAR_HEADERS = 10_000_000


def read_tar(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The wanted files of a .tar.gz, by name without folders; nothing is written.

    Raises:
        DataError: the archive is damaged or holds more than it should.
    """
    found = {}
    with _unpacked(path, small=_LARGEST_TAR_HEADERS) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.size > _LARGEST_MEMBER or member.issparse():
                        raise DataError(f"{path}: {name} claims {member.size:,} bytes: not a file to trust")
                    if member.isfile() and name in wanted:
                        opened = archive.extractfile(member)
                        found[name] = _read_up_to(opened, member.size) if opened else b""
                        if len(found[name]) != member.size:
                            raise DataError(f"{path}: truncated in {name}: fetch it again")
        except (tarfile.TarError, ValueError, EOFError, zlib.error, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: damaged archive ({error}): fetch it again") from error
    return found


def read_svhn(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32] and labels 0 to 9 of SVHN's cropped digits (`*_32x32.mat`).

    The file's label 10 is digit 0.

    Raises:
        DataError: no MATLAB file, or one without SVHN's X and y.
    """
    import scipy.io  # takes a while to import

    raw = read_file(path)
    _check_mat(raw, path)
    try:
        content = scipy.io.loadmat(io.BytesIO(raw), variable_names=["X", "y"])
    except Exception as error:  # a damaged file can make the reader raise anything
        raise DataError(f"{path}: not a MATLAB file that can be read ({type(error).__name__})") from error
    images, labels = content.get("X"), content.get("y")
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        raise DataError(f"{path}: holds no X and y, so it is not SVHN's")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
        raise DataError(f"{path}: X is {images.dtype} of shape {images.shape}, not uint8 [32, 32, 3, N]")
    if labels.dtype.kind not in "uif" or labels.size != images.shape[3] or labels.size == 0:
        raise DataError(f"{path}: {labels.size} labels of type {labels.dtype} for {images.shape[3]} images")
    numbers = labels.ravel()
    if not ((numbers >= 0) & (numbers <= 10) & (numbers == np.floor(numbers))).all():
        raise DataError(f"{path}: labels other than 1 to 10")
    return np.ascontiguousarray(images.transpose(3, 2, 0, 1)), numbers.astype(np.int64) % 10


def _check_mat(raw: bytes, path: Path) -> None:
    """Walk the elements of a MATLAB 5 file, so that scipy is given plain arrays of numbers of honest sizes only."""
    if len(raw) < 128 or raw[126:128] not in (b"IM", b"MI"):
        raise DataError(f"{path}: not a MATLAB 5 file")
    order = "<" if raw[126:128] == b"IM" else ">"
    place = 128
    while place < len(raw):
        kind, length = np.frombuffer(raw[place : place + 8].ljust(8, b"\0"), f"{order}u4").tolist()
        element = raw[place + 8 : place + 8 + length]
        if kind not in (14, 15) or len(element) < length:
            raise DataError(f"{path}: truncated or damaged: fetch it again")
        head = _inflate_head(element, len(raw), path)[8:] if kind == 15 else element
        # The array's flags come first: their type, their size, then the class, 6 to 15 for numbers.
        flags = np.frombuffer(head[:12].ljust(12, b"\0"), f"{order}u4").tolist()
        if flags[:2] != [6, 8] or not 6 <= flags[2] & 0xFF <= 15:
            raise DataError(f"{path}: holds something other than arrays of numbers, so it is not SVHN's")
        place += 8 + length


def _inflate_head(packed: bytes, file_size: int, path: Path) -> bytes:
    """The beginning of a packed element, all of which is unpacked once to see that it ends in time."""
    inflater, total, head = zlib.decompressobj(), 0, b""
    try:
        while not inflater.eof:
            piece = inflater.decompress(packed, _CHUNK)
            packed = inflater.unconsumed_tail
            head = head or piece[:64]
            total += len(piece)
            if total > _most_held(file_size):
                _bomb(path, file_size)
            if not piece and not packed:
                raise DataError(f"{path}: truncated or damaged: fetch it again")
    except zlib.error as error:
        raise DataError(f"{path}: damaged ({error}): fetch it again") from error
    return head


_COIL_NAME = re.compile(r"obj(\d{1,2})__(\d{1,2})\.png")
_COIL_VIEWS, _COIL_SIDE, _LARGEST_PICTURE = 72, 128, 1 << 16


def read_coil(path: Path, objects: int, size: tuple[int, int]) -> np.ndarray:
    """COIL-20's pictures as uint8 [objects, 72, 1, height, width], from its zip file or folder.

    Args:
        path: `coil-20-proc.zip`, or the folder that holds `obj1__0.png` to `obj20__71.png`.
        objects: how many objects, from the first.
        size: height and width to resize to.

    Raises:
        DataError: the archive is damaged, or a picture is missing, cannot be read, or is not of
            128x128 pixels.
    """
    images = np.empty((objects, _COIL_VIEWS, 1, *size), np.uint8)
    missing = {(number, view) for number in range(objects) for view in range(_COIL_VIEWS)}
    with _coil_files(path) as files:
        for name, read in files:
            match = _COIL_NAME.fullmatch(name)
            place = (int(match[1]) - 1, int(match[2])) if match else None
            if place not in missing:
                continue
            content = read()
            sizes, _ = inspect_images([content], f"{path}: {name}")
            if sizes != {(_COIL_SIDE, _COIL_SIDE)}:
                raise DataError(f"{path}: {name} has not the {_COIL_SIDE}x{_COIL_SIDE} pixels of COIL-20's pictures")
            images[place] = read_image(content, (1, *size), f"{path}: {name}")
            missing.remove(place)
    if missing:
        number, view = min(missing)
        raise DataError(f"{path}: obj{number + 1}__{view}.png is missing: fetch it again")
    return images


@contextmanager
def _coil_files(path: Path) -> Iterator[list[tuple[str, Callable[[], bytes]]]]:
    """The names of what there is, each with what reads it."""
    if path.is_dir():
        yield [(file.name, file.read_bytes) for file in sorted(path.iterdir())]
        return
    with _zip(path) as archive:
        yield [
            (PurePosixPath(member.filename).name, partial(_member, archive, member, _LARGEST_PICTURE, path))
            for member in archive.infolist()
        ]


_NPZ_KEYS = {"train": (("x", "y"), ("x_train", "y_train")), "test": (("x_test", "y_test"),)}


def read_npz(path: Path) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Images [N, C, H, W] and labels of a .npz file by part, and its class names.

    It holds `x` and `y` (or `x_train`, `y_train`), perhaps `x_test` and `y_test`, perhaps
    `classes`. Images are uint8 [N, H, W], or [N, H, W, C] with 1 or 3 channels; labels are
    numbers from 0, or names.

    Raises:
        DataError: a damaged file, or arrays that are not as above.
    """
    with _zip(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if sum(member.file_size for member in members.values()) > _most_held(path.stat().st_size):
            _bomb(path, path.stat().st_size)

        def array(key: str) -> np.ndarray:
            content = _member(archive, members[key], _most_held(path.stat().st_size), path)
            try:
                return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False, max_header_size=10_000)
            except Exception as error:  # a damaged header can make numpy raise anything
                raise DataError(f"{path}: {key} is no array that can be read ({type(error).__name__})") from error

        raw = {
            part: (array(x), array(y))
            for part, pairs in _NPZ_KEYS.items()
            for x, y in pairs
            if x in members and y in members
        }
        names = array("classes") if "classes" in members else None
    if "train" not in raw:
        raise DataError(
            f"{path}: holds no x and y (or x_train and y_train) but {', '.join(sorted(members)) or 'nothing'}"
        )
    for images, labels in raw.values():
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape:
            raise DataError(f"{path}: x is {images.dtype} of shape {images.shape}, not uint8 [N, H, W] or [N, H, W, C]")
        if images.ndim == 4 and images.shape[3] not in (1, 3):
            raise DataError(f"{path}: x has {images.shape[3]} channels where 1 or 3 are read")
        if labels.shape not in ((len(images),), (len(images), 1)):
            raise DataError(f"{path}: y of shape {labels.shape} for {len(images)} images")
    if len({images.shape[3:] for images, _ in raw.values()}) > 1:
        raise DataError(f"{path}: x and x_test have not the same number of channels")
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        raise DataError(f"{path}: classes is {names.dtype} of shape {names.shape}, not a list of names")
    classes, numbers = name_classes({part: labels.ravel() for part, (_, labels) in raw.items()}, names, path)
    parts = {
        part: ((images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)), numbers[part])
        for part, (images, _) in raw.items()
    }
    return parts, classes


def name_classes(
    labels: dict[str, np.ndarray], names: np.ndarray | None, path: Path
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names and class numbers for labels that are numbers, or the names themselves."""
    kinds = {array.dtype.kind for array in labels.values()}
    if kinds <= {"U", "S"}:
        texts = {part: array.astype(str) for part, array in labels.items()}
        known, numbers = np.unique(np.concatenate(list(texts.values())), return_inverse=True)
        ends = np.cumsum([len(array) for array in texts.values()])
        return tuple(known.tolist()), dict(zip(texts, np.split(numbers, ends[:-1]), strict=True))
    if not kinds <= {"i", "u"}:
        raise DataError(f"{path}: labels of type {', '.join(sorted(kinds))} are neither whole numbers nor names")
    largest = max(int(array.max()) for array in labels.values())
    count = len(names) if names is not None else largest + 1
    if min(int(array.min()) for array in labels.values()) < 0 or not largest < count <= 100_000:
        raise DataError(f"{path}: labels that are not class numbers from 0 to {count - 1}")
    if names is None:
        return tuple(str(number) for number in range(count)), {k: v.astype(np.int64) for k, v in labels.items()}
    return tuple(map(str, names)), {part: array.astype(np.int64) for part, array in labels.items()}


def read_parquet(path: Path) -> tuple[list[bytes], np.ndarray, np.ndarray | None]:
    """Encoded images, labels and, where the file names them, the class names, of a Parquet file.

    The layout of Hugging Face data sets: an image column of structures with `bytes` (or of plain
    bytes) and a label column of whole numbers or names.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or has no such columns.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet files needs pyarrow: pip install 'dualcaps[parquet]'") from error

    def is_image(column: Any) -> bool:
        kind = column.type
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and is_image(kind.field("bytes"))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def is_label(column: Any) -> bool:
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)

    def choose(what: str, fits: Callable[[Any], bool], usual: tuple[str, ...]) -> str:
        fitting = [column.name for column in schema if fits(column)]
        named = [name for name in fitting if name in usual] or fitting
        if len(named) != 1:
            raise DataError(
                f"{path}: {len(named) or 'none'} of the columns {', '.join(schema.names)} can be the {what}: "
                f"name one {usual[0]!r}"
            )
        return named[0]

    most = _most_held(path.stat().st_size)
    try:
        with pq.ParquetFile(path, thrift_string_size_limit=1 << 24, thrift_container_size_limit=1 << 20) as file:
            schema = file.schema_arrow
            columns = [choose("image", is_image, ("image", "img")), choose("label", is_label, ("label", "labels"))]
            groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > most or file.metadata.num_rows > most:
                _bomb(path, path.stat().st_size)
            encoded: list[bytes] = []
            numbers: list[Any] = []
            held = 0
            for batch in file.iter_batches(batch_size=16, columns=columns):
                image_column, label_column = (batch.column(name) for name in columns)
                if pa.types.is_struct(image_column.type):
                    image_column = image_column.field("bytes")
                if pa.types.is_dictionary(label_column.type):
                    label_column = label_column.dictionary_decode()
                held += image_column.nbytes + label_column.nbytes  # one value repeated is written once
                if held > most:
                    _bomb(path, path.stat().st_size)
                encoded += image_column.to_pylist()
                numbers += label_column.to_pylist()
                if any(isinstance(number, str) and len(number) > _LONGEST_NAME for number in numbers[-16:]):
                    raise DataError(f"{path}: class names of more than {_LONGEST_NAME} characters")
            hints = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            names = hints.get("info", {}).get("features", {}).get(columns[1], {}).get("names")
    except DataError:
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        raise DataError(f"{path}: not a Parquet file that can be read ({type(error).__name__})") from error
    if not numbers or any(image is None for image in encoded) or any(number is None for number in numbers):
        raise DataError(f"{path}: holds no images, or rows without an image or a label")
    known = isinstance(names, list) and all(isinstance(name, str) for name in names) and bool(names)
    return encoded, np.array(numbers), np.array(names) if known else None


_LONGEST_NAME = 200


@contextmanager
def _zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except DataError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError, KeyError),
        *(struct.error, OverflowError, MemoryError),
    ) as error:
        raise DataError(f"{path}: damaged archive ({' '.join(str(error).split())}): fetch it again") from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int, path: Path) -> bytes:
    if member.file_size > most:
        raise DataError(f"{path}: {member.filename} would take {member.file_size:,} bytes: not a file to trust")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{path}: {member.filename} is packed in a way that is not read: pack it with zip's own")
    with archive.open(member) as opened:
        return _read_up_to(opened, member.file_size)


@contextmanager
def _unpacked(path: Path, small: int = _SMALL) -> Iterator["_Limited"]:
    """The file's content, unpacked if it is gzipped, and never much more than it can rightly hold.

    `small` is how many bytes any file may hold, however small it is.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if packed:
                with gzip.open(raw) as unpacked:
                    yield _Limited(unpacked, path, small)
            else:
                yield _Limited(raw, path, small)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({error}): fetch it again") from error


class _Limited:
    """A stream that ends in a DataError where a small file unpacks to a huge one."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, path: Path, small: int) -> None:
        self.stream, self.path = stream, path
        self.size = path.stat().st_size
        self.left = _most_held(self.size, small)

    def read(self, size: int, /) -> bytes:
        if size > self.left:
            _bomb(self.path, self.size)
        content = self.stream.read(size)
        self.left -= len(content)
        return content


def _most_held(file_size: int, small: int = _SMALL) -> int:
    return max(small, _MOST_EXPANSION * file_size)


def _bomb(path: Path, size: int) -> NoReturn:
    raise DataError(f"{path}: its {size:,} bytes claim to hold far more: not a file to trust")


def _sizes(stream: _Stream, kind: str, count: int, path: Path) -> tuple[int, ...]:
    header = stream.read(4 * count)
    if len(header) < 4 * count:
        raise DataError(f"{path}: truncated in the header: fetch it again")
    return tuple(int(size) for size in np.frombuffer(header, kind))


def _rest(stream: _Stream, shape: tuple[int, ...], dtype: np.dtype, path: Path) -> np.ndarray:
    """The array of this shape that the rest of the stream must hold exactly."""
    expected = math.prod(shape) * dtype.itemsize
    body = _read_up_to(stream, expected)
    if len(body) < expected:
        _wrong_length(path, expected, "fewer")
    if stream.read(1):
        _wrong_length(path, expected, "more")
    return np.frombuffer(body, dtype).reshape(shape)


def _wrong_length(path: Path, expected: int, relation: str) -> NoReturn:
    raise DataError(f"{path}: holds {relation} than the {expected} bytes its header promises: fetch it again")


def _read_up_to(stream: Any, size: int) -> bytes:
    """`size` bytes or what there is; in pieces, so that a size that lies costs no memory."""
    body = bytearray()
    while len(body) < size and (piece := stream.read(min(_CHUNK, size - len(body)))):
        body += piece
    return bytes(body)
