"""The examples in docstrings do what they say."""

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import dualcaps

GIVEN = {"np": np, "torch": torch, "nn": nn, **{name: getattr(dualcaps, name) for name in dualcaps.__all__}}
"""What an example may use beside the names of its module."""


def modules() -> Iterator[str]:
    yield "dualcaps"
    for module in pkgutil.walk_packages(dualcaps.__path__, "dualcaps."):
        if module.name != "dualcaps.__main__":
            yield module.name


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for name in modules():
        module = importlib.import_module(name)
        found += [test for test in finder.find(module, extraglobs=GIVEN | vars(module)) if test.examples]
    return found


EXAMPLES = examples()


def test_examples_are_found_in_functions_and_methods():
    names = {example.name for example in EXAMPLES}
    assert {"dualcaps.models.wrap_module", "dualcaps.data.dataset.ImageDataset.from_arrays"} <= names
    assert len(names) == len(EXAMPLES) >= 15


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_does_what_it_says(example: doctest.DocTest):
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert tried
    assert not failed, "".join(said)
