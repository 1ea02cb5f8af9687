"""What describes a named data set: files, classes, policies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualcaps.config import DataConfig, Split
from dualcaps.data.images import resize, to_grey

Labelled = dict[str, tuple[np.ndarray, np.ndarray]]
"""For each part that a source has ("train", perhaps "test", "validation"): uint8 [N, C, H, W] and labels."""


class Download(NamedTuple):
    """A file as its authors publish it: addresses, and the checksum of what they send.

    extra: whether it is needed only where `DataConfig.extra` asks for it.
    """

    file: str
    addresses: tuple[str, ...]
    checksum: str
    extra: bool = False


class Layout(NamedTuple):
    """One form in which a data set's files may lie in a folder.

    files: their names; any may be gzipped, with `.gz` appended.
    read: from the files to labelled images.
    """

    files: tuple[str, ...]
    read: Callable[[Sequence[Path], DataConfig], Labelled]


@dataclass(frozen=True)
class DataSet:
    """One data set by name.

    Attributes:
        name: what `load_data` is asked for.
        classes: class names, in the order of the labels.
        flip: whether a mirrored image still belongs to its class.
        size: height and width that its networks take, in pixels.
        channels: channels that its networks take; grey images are repeated to three.
        counts: images in each part of the files, for the given options.
        batch_size: images per step in the paper's recipe.
        test: the share held out as test images where the files have none.
        folders: sub-folders of a data folder in which the files may lie.
        layouts: the forms in which the files may lie there.
        downloads: where the files come from.
        official: checksums of the official files by name; of gzipped ones, but for archives, of what they unpack to.
        splits: the ways to tell training and test images apart, the default first.
        options: fields of `DataConfig` that only some data sets have and this one does.
    """

    name: str
    classes: tuple[str, ...]
    flip: bool
    size: tuple[int, int]
    channels: int
    counts: Callable[[DataConfig], dict[str, int]]
    batch_size: int = 128
    test: float = 0.2
    folders: tuple[str, ...] = ()
    layouts: tuple[Layout, ...] = ()
    downloads: tuple[Download, ...] = ()
    official: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[Split, ...] = ("official",)
    options: frozenset[str] = field(default_factory=frozenset)

    def classes_of(self, config: DataConfig) -> tuple[str, ...]:
        """The classes that a configuration asks for, where it asks for some of them only."""
        return self.classes[: config.objects or 10] if "objects" in self.options else self.classes


def downloads(checksums: Mapping[str, str], *bases: str) -> tuple[Download, ...]:
    """Files with their checksums, each to be found below any of some addresses."""
    return tuple(
        Download(file, tuple(base + file for base in bases), sum_, file.startswith("extra"))
        for file, sum_ in checksums.items()
    )


def bring_to(parts: Labelled, config: DataConfig) -> Labelled:
    """Images at the size asked for, and in grey if that is asked for."""
    brought = {}
    for part, (images, labels) in parts.items():
        if config.image_size is not None and images.shape[2:] != config.image_size:
            images = np.stack([resize(image, config.image_size) for image in images])
        if config.channels == 1 and images.shape[1] == 3:
            images = to_grey(images)
        brought[part] = images, labels
    return brought
