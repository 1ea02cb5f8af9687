"""The compiled kernels."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dualcaps import kernels


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kernels are loaded from a new folder, which is returned."""
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        kernels.load()
        yield folder
