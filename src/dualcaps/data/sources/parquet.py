"""Parquet files of images and labels, as Hugging Face stores data sets."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualcaps.config import DataConfig
from dualcaps.data.cache import Content, Source
from dualcaps.data.dataset import number_labels
from dualcaps.data.images import inspect_images
from dualcaps.data.limits import largest_content, raise_too_large
from dualcaps.data.sources.encoded import read_encoded, relevant_options
from dualcaps.errors import DataError

_LONGEST_NAME = 200


def parquet_source(parts: Mapping[str, Sequence[Path]], config: DataConfig) -> Source:
    """The Parquet files of each part, found but not read."""
    files = [file for found in parts.values() for file in found]

    def sizes() -> Counter[tuple[int, int]]:
        return inspect_images([image for file in files for image in read_parquet(file)[0]], str(files[0])).sizes

    return Source(files, {"own": True, **relevant_options(config)}, lambda: _read(parts, config), (), sizes)


def list_parquet(folder: Path) -> list[Path]:
    """The Parquet files of a folder and of its sub-folders, sorted."""
    return sorted(file for pattern in ("*.parquet", "*/*.parquet") for file in folder.glob(pattern))


def _read(parts: Mapping[str, Sequence[Path]], config: DataConfig) -> Content:
    encoded: dict[str, list[bytes]] = {}
    labels: dict[str, np.ndarray] = {}
    names = None
    for part, files in parts.items():
        tables = [read_parquet(file) for file in files]
        encoded[part] = [image for images, _, _ in tables for image in images]
        labels[part] = np.concatenate([numbers for _, numbers, _ in tables])
        names = tables[0][2] if names is None else names
    first = str(parts["train"][0])
    classes, numbers = number_labels(labels, names, first)
    notes = () if names is not None else (f"classes are the {len(classes)} distinct labels",)
    together = {part: (images, numbers[part]) for part, images in encoded.items()}
    read, value_range, found, _ = read_encoded(together, config, first)
    return Content(read, classes, None, notes + found, value_range)


def read_parquet(path: Path) -> tuple[list[bytes], np.ndarray, tuple[str, ...] | None]:
    """Encoded images, labels and, where the file names them, the class names, of a Parquet file.

    Raises:
        DataError: as `iterate_parquet`.
    """
    encoded: list[bytes] = []
    numbers: list[Any] = []
    names: tuple[str, ...] | None = None
    for images, labels, names in iterate_parquet(path):  # noqa: B007
        encoded += images
        numbers += labels
    return encoded, np.array(numbers), names


def iterate_parquet(path: Path) -> Iterator[tuple[list[bytes], list[Any], tuple[str, ...] | None]]:
    """Encoded images, labels and, where the file names them, the class names, of a Parquet file, some rows at a time.

    The layout of Hugging Face data sets: an image column of structures with `bytes` (or of plain
    bytes) and a label column of whole numbers or names.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or has no such columns or no rows.
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

    most = largest_content(path.stat().st_size)
    try:
        with pq.ParquetFile(path, thrift_string_size_limit=1 << 24, thrift_container_size_limit=1 << 20) as file:
            schema = file.schema_arrow
            columns = [choose("image", is_image, ("image", "img")), choose("label", is_label, ("label", "labels"))]
            groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > most or file.metadata.num_rows > most:
                raise_too_large(path, path.stat().st_size)
            hints = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            listed = hints.get("info", {}).get("features", {}).get(columns[1], {}).get("names")
            known = isinstance(listed, list) and all(isinstance(name, str) for name in listed) and bool(listed)
            names = tuple(listed) if known else None
            held = rows = 0
            for batch in file.iter_batches(batch_size=16, columns=columns):
                image_column, label_column = (batch.column(name) for name in columns)
                if pa.types.is_struct(image_column.type):
                    image_column = image_column.field("bytes")
                if pa.types.is_dictionary(label_column.type):
                    label_column = label_column.dictionary_decode()
                held += image_column.nbytes + label_column.nbytes  # one value repeated is written once
                if held > most:
                    raise_too_large(path, path.stat().st_size)
                encoded, numbers = image_column.to_pylist(), label_column.to_pylist()
                if any(isinstance(number, str) and len(number) > _LONGEST_NAME for number in numbers):
                    raise DataError(f"{path}: class names of more than {_LONGEST_NAME} characters")
                if any(image is None for image in encoded) or any(number is None for number in numbers):
                    raise _empty(path)
                rows += len(numbers)
                yield encoded, numbers, names
            if not rows:
                raise _empty(path)
    except DataError:
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        raise DataError(f"{path}: not a Parquet file that can be read ({type(error).__name__})") from error


def _empty(path: Path) -> DataError:
    return DataError(f"{path}: holds no images, or rows without an image or a label")
