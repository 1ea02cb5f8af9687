"""CIFAR-10: binary or Python version, as a folder or an archive; pickles are read without executing code."""

import io
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.limits import read_file, read_up_to, unpacked
from dualcaps.data.sources.card import DataSet, Labelled, Layout, bring_to, downloads
from dualcaps.errors import DataError
from dualcaps.registry import register_dataset

CIFAR_BINARY = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR_PYTHON = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_CIFAR_BINARY_SUMS = (
    "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
    "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
    "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
    "aab85764eb3584312d3c7f65fd2fd016e36a258e",
    "26e2849e66a845b7f1e4614ae70f4889ae604628",
    "67eb016db431130d61cd03c7ad570b013799c88c",
)
_CIFAR_PYTHON_SUMS = (
    "c99cafc152244af753f735de768cd75f",
    "d4bba439e000b95fd0a9bffe97cbabec",
    "54ebc095f3ab1f0389bbae665268c751",
    "634d18415352ddfa80567beed471001a",
    "482c414d41f54cd18b22e5b47cb7c3cb",
    "40351d587109b95175f43aff81a1287e",
)
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

    The pickle may contain numpy arrays of bytes, dictionaries, lists, strings and numbers; nothing that
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


# The opcodes of such batches in protocols 2 to 4. Others can exhaust memory or time with a few bytes.
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
    """Stand-in for numpy.ndarray in a pickle; keeps the state that numpy would receive."""

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
    """Stand-in for numpy.dtype in a pickle."""

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


# The unpickler written in Python: in the one written in C a single opcode can exhaust memory.
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
        if not isinstance(key, bytes | str):  # hashing nested tuples can take forever
            raise DataError("a pickle with names that are not text")
        self.stack[-1][key] = value

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch | {  # pyright: ignore[reportAttributeAccessIssue]
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }


_LARGEST_MEMBER = 60_000_000  # CIFAR-10's batches have 31 MB, up to 45 MB when pickled by Python 3
_LARGEST_TAR_HEADERS = 10_000_000


def read_tar(path: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Read some files of a .tar.gz, by name without folders; nothing is extracted to disk.

    Raises:
        DataError: the archive is damaged or contains too much.
    """
    found = {}
    with unpacked(path, small=_LARGEST_TAR_HEADERS) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if member.size > _LARGEST_MEMBER or member.issparse():
                        raise DataError(f"{path}: {name} claims {member.size:,} bytes: not a trustworthy file")
                    if member.isfile() and name in wanted:
                        opened = archive.extractfile(member)
                        found[name] = read_up_to(opened, member.size) if opened else b""
                        if len(found[name]) != member.size:
                            raise DataError(f"{path}: truncated in {name}: fetch it again")
        except (tarfile.TarError, ValueError, EOFError, zlib.error, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}: damaged archive ({error}): fetch it again") from error
    return found


def _read_cifar_binary(paths: Sequence[Path], config: DataConfig) -> Labelled:
    batches = [parse_cifar_binary(read_file(path), str(path)) for path in paths]
    return bring_to(_joined(batches), config)


def _read_cifar_python(paths: Sequence[Path], config: DataConfig) -> Labelled:
    return bring_to(_joined([parse_cifar_pickle(read_file(path), str(path)) for path in paths]), config)


def _cifar_archive(names: Sequence[str], parse: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]) -> Any:
    def read(paths: Sequence[Path], config: DataConfig) -> Labelled:
        (archive,) = paths
        contents = read_tar(archive, names)
        if missing := [name for name in names if name not in contents]:
            raise DataError(f"{archive}: {missing[0]} is missing: fetch it again")
        return bring_to(_joined([parse(contents[name], f"{archive}: {name}") for name in names]), config)

    return read


def _joined(batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> Labelled:
    """CIFAR-10's five training batches and its test batch."""
    *training, test = batches
    images, labels = zip(*training, strict=True)
    return {"train": (np.concatenate(images), np.concatenate(labels)), "test": test}


@register_dataset("cifar-10")
def cifar_10() -> DataSet:
    """The card of CIFAR-10 (Krizhevsky 2009)."""
    binary_archive = "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    return DataSet(
        "cifar-10",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        flip=True,
        size=(32, 32),
        channels=3,
        counts=lambda _: {"train": 50_000, "test": 10_000},
        folders=(
            *("cifar-10", "cifar-10/cifar-10-batches-bin", "cifar-10/cifar-10-batches-py"),
            *("cifar-10-batches-bin", "cifar-10-batches-py"),
        ),
        layouts=(
            Layout(CIFAR_BINARY, _read_cifar_binary),
            Layout(CIFAR_PYTHON, _read_cifar_python),
            Layout(("cifar-10-binary.tar.gz",), _cifar_archive(CIFAR_BINARY, parse_cifar_binary)),
            Layout(("cifar-10-python.tar.gz",), _cifar_archive(CIFAR_PYTHON, parse_cifar_pickle)),
        ),
        downloads=downloads(
            {"cifar-10-binary.tar.gz": binary_archive},
            "https://www.cs.toronto.edu/~kriz/",
            "https://cave.cs.toronto.edu/kriz/",
        ),
        official={
            **{file: f"sha1:{sum_}" for file, sum_ in zip(CIFAR_BINARY, _CIFAR_BINARY_SUMS, strict=True)},
            **{file: f"md5:{sum_}" for file, sum_ in zip(CIFAR_PYTHON, _CIFAR_PYTHON_SUMS, strict=True)},
            "cifar-10-binary.tar.gz": binary_archive,
            "cifar-10-python.tar.gz": "md5:c58f30108f718f92721af3b95e74349a",
        },
    )
