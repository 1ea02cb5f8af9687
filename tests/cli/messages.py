"""What the tests of the commands have in common."""

from typing import Any

FAST = ("--epochs", 2, "--precision", "float32", "--device", "cpu")


def assert_one_line(said: Any, *wanted: str) -> None:
    """Invalid input: exit code 2, nothing printed but one line that names what is wrong."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("dualcaps: ")
    assert said.err.count("\n") == 1, said.err
    assert "Traceback" not in said.err
    for text in wanted:
        assert text in said.err
