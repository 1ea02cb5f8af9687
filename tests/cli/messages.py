"""What the tests of the commands have in common."""

from typing import Any

FAST = ("--epochs", 2, "--precision", "float32", "--device", "cpu")


def assert_one_line(said: Any, *wanted: str) -> None:
    """Invalid input: exit code 2, nothing printed but one line that names what is wrong, perhaps after notes."""
    assert said.code == 2, said
    assert said.out == ""
    err = "".join(line for line in said.err.splitlines(keepends=True) if not line.startswith("note: "))
    assert err.startswith("dualcaps: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for text in wanted:
        assert text in err


def assert_one_line_at_end(said: Any, *wanted: str) -> None:
    """A fault in the middle: exit code 2, and after the progress one line that names what is wrong."""
    assert said.code == 2, said
    assert said.err.count("dualcaps: ") == 1, said.err
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("dualcaps: ")
    for text in wanted:
        assert text in last
