"""`make quick` runs the tests of what was changed."""

import pytest
from changed import select_tests


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["src/dualcaps/losses.py"], ["tests/test_losses.py"]),
        (["src/dualcaps/routing/em.py"], ["tests/routing"]),
        (["src/dualcaps/data/sources/coil20.py"], ["tests/data/sources"]),
        (["src/dualcaps/study/report/tables.py"], ["tests/study"]),
        (["tests/test_losses.py", "src/dualcaps/losses.py", "README.md"], ["tests/test_losses.py"]),
        (["tests/conftest.py", "src/dualcaps/losses.py"], []),
        (["src/dualcaps/__main__.py"], []),
        ([], []),
    ],
)
def test_a_module_is_tested_by_its_file_or_its_folder(changed: list[str], expected: list[str]):
    assert select_tests(changed) == expected
