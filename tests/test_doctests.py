"""The examples in docstrings give the results that stand beside them."""

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch

import dualcaps

# Triton's kernels are read as source, and the module of the command line runs it.
LEFT_OUT = {"dualcaps.__main__", "dualcaps.routing.dynamic.triton"}
MODULES = [m.name for m in pkgutil.walk_packages(dualcaps.__path__, "dualcaps.") if m.name not in LEFT_OUT]


@pytest.mark.usefixtures("no_pictures", "own_registry")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name: str):
    module = importlib.import_module(name)
    names = {public: getattr(dualcaps, public) for public in dualcaps.__all__}
    results = doctest.testmod(module, extraglobs={**names, "np": np, "torch": torch, "nn": torch.nn})
    assert results.failed == 0


def test_public_functions_have_examples():
    without = {
        public
        for public in dualcaps.__all__
        if callable(value := getattr(dualcaps, public))
        and not isinstance(value, type)
        and ">>>" not in (value.__doc__ or "")
    }
    assert not without
