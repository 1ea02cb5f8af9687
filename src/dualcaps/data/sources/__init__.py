"""Sources of images: one file for each named data set and each form of own images."""

import functools

from dualcaps.data.sources import cifar10 as cifar10
from dualcaps.data.sources import coil20 as coil20
from dualcaps.data.sources import digits as digits
from dualcaps.data.sources import mnist as mnist
from dualcaps.data.sources import smallnorb as smallnorb
from dualcaps.data.sources import svhn as svhn
from dualcaps.data.sources.card import DataSet as DataSet
from dualcaps.data.sources.card import Download as Download
from dualcaps.data.sources.card import Layout as Layout
from dualcaps.registry import DATASETS, lookup


@functools.cache
def data_set(name: str) -> DataSet | None:
    """The card of a named data set; None for a data set that a plug-in loads itself.

    Raises:
        DataError: an unknown name.
    """
    registered = lookup(DATASETS, "data set", name).value
    if registered.__code__.co_argcount:
        return None
    return registered()
