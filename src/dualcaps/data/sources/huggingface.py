"""Rows of Hugging Face `datasets`, without importing that package."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dualcaps.errors import DataError

_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img", "images"), ("label", "labels", "fine_label", "target")
_PARTS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}


def read_huggingface(
    dataset: Any, image_column: str | None, label_column: str | None
) -> tuple[Mapping[str, Iterable[tuple[Any, Any]]], tuple[str, ...] | None]:
    """Read the rows of each part as pairs of image and label, and the class names if the label column has them.

    Args:
        dataset: a `datasets.Dataset`, or a `DatasetDict` of parts with a part "train".
        image_column, label_column: the columns' names; by default the usual ones.

    Raises:
        DataError: no such column, or parts without "train" or with other names.
    """
    parts = dict(dataset) if isinstance(dataset, Mapping) else {"train": dataset}
    named = {}
    for name, part in parts.items():
        if name not in _PARTS:
            raise DataError(f"part {name!r} is not one of train, validation, test: leave it out or rename it")
        named[_PARTS[name]] = part
    if "train" not in named:
        raise DataError(f"parts {', '.join(parts)} but no train: rename one")
    columns = list(named["train"].column_names)
    image = _choose("image", image_column, columns, _IMAGE_COLUMNS)
    label = _choose("label", label_column, columns, _LABEL_COLUMNS)
    names = getattr(getattr(named["train"], "features", {}).get(label), "names", None)
    rows = {part: _pairs(rows, image, label) for part, rows in named.items()}
    return rows, None if names is None else tuple(names)


def _pairs(rows: Iterable[Mapping[str, Any]], image: str, label: str) -> Iterator[tuple[Any, Any]]:
    for row in rows:
        yield row[image], row[label]


def _choose(what: str, asked: str | None, columns: list[str], usual: tuple[str, ...]) -> str:
    if asked is not None:
        if asked not in columns:
            raise DataError(f"no column {asked!r}: the columns are {', '.join(columns)}")
        return asked
    found = [column for column in usual if column in columns]
    if not found:
        raise DataError(
            f"none of the columns {', '.join(columns)} is called {' or '.join(usual)}: name the {what} column"
        )
    return found[0]
