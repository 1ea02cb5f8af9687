"""Cards of named data sets: files, classes, policies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualcaps.config import DataConfig, Split
from dualcaps.data.images import resize, to_grey

Labelled = dict[str, tuple[np.ndarray, np.ndarray]]
"""Images uint8 [N, C, H, W] and labels by part: "train", and optionally "test" and "validation"."""


Attributes = dict[str, dict[str, np.ndarray]]
"""Whole numbers [N] by part and name."""


class Download(NamedTuple):
    """A file as published by its authors, with its addresses and checksum.

    extra: whether it is needed only with `DataConfig.extra`.
    """

    file: str
    addresses: tuple[str, ...]
    checksum: str
    extra: bool = False


class Layout(NamedTuple):
    """One form of a data set's files in a folder.

    files: their names; any may be gzipped, with `.gz` appended.
    read: reads the files as labelled images.
    attributes: reads what else is known of the images, by part, see `ImageSplit.attributes`.
    notes: what a user should know about the files, see `ImageDataset.notes`.
    """

    files: tuple[str, ...]
    read: Callable[[Sequence[Path], DataConfig], Labelled]
    attributes: Callable[[Sequence[Path], DataConfig], Attributes] = lambda *_: {}
    notes: Callable[[Sequence[Path]], tuple[str, ...]] = lambda _: ()


@dataclass(frozen=True)
class DataSet:
    """The card of a named data set.

    Attributes:
        name: the name for `load_data`.
        classes: class names, in the order of the labels.
        flip: whether a mirrored image still belongs to its class.
        size: height and width of the networks' inputs, in pixels.
        channels: channels of the networks' inputs; grey images are repeated to three.
        counts: number of images in each part, for given options.
        batch_size: images per step in the paper's recipe.
        test: the share held out as test images if the files have no test part.
        folders: names of sub-folders that may contain the files.
        layouts: the forms in which the files are read.
        downloads: the published files.
        official: checksums of the official files by name; of gzipped files other than archives, of the content.
        splits: names of the possible splits, the default first.
        options: fields of `DataConfig` that are specific to this and some other data sets.
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
        """The classes of a configuration, which may select some of them."""
        return self.classes[: config.objects or 10] if "objects" in self.options else self.classes

    def channels_of(self, config: DataConfig) -> int:
        """The images' channels: a stereo pair has one for each camera."""
        return 2 if config.camera == "stereo" else config.channels or self.channels

    def flip_of(self, config: DataConfig) -> bool:
        """Whether a mirrored image still belongs to its class: in a stereo pair left and right camera are exchanged."""
        return self.flip and config.camera != "stereo"


def downloads(checksums: Mapping[str, str], *bases: str) -> tuple[Download, ...]:
    """Downloads of files, each available below several addresses."""
    return tuple(
        Download(file, tuple(base + file for base in bases), sum_, file.startswith("extra"))
        for file, sum_ in checksums.items()
    )


def bring_to(parts: Labelled, config: DataConfig) -> Labelled:
    """Resize images, and convert them to grey, if requested."""
    brought = {}
    for part, (images, labels) in parts.items():
        if config.image_size is not None and images.shape[2:] != config.image_size:
            images = np.stack([resize(image, config.image_size) for image in images])
        if config.channels == 1 and images.shape[1] == 3:
            images = to_grey(images)
        brought[part] = images, labels
    return brought
