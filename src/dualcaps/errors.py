"""Exceptions for invalid user input."""

import difflib
import os
from collections.abc import Iterable


class DualcapsError(ValueError):
    """Invalid user input.

    The message is one line that names the file or option, says what is wrong and what to do. The
    command line prints it and exits with code 2.
    """


class DataError(DualcapsError):
    """A data set, file or image cannot be found, read or used."""


class ModelError(DualcapsError):
    """A network does not exist, or cannot be built or used for these images."""


class RunError(DualcapsError):
    """A run folder cannot be created, read or resumed."""


class FolderInUseError(RunError):
    """Another process works in a run folder."""


class ConfigError(DualcapsError):
    """An option has an invalid type or value."""


def describe_os_error(error: OSError) -> str:
    """The failed operation of an `OSError` in one line: file and reason."""
    return f"{error.filename or 'input or output'}: {error.strerror or error}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for a message about it; its type if it has no text."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def one_line(error: BaseException, most: int = 200) -> str:
    """An error's text in one line of at most so many characters; its type if it has no text."""
    return " ".join(str(error).split())[:most] or type(error).__name__


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Message for a name that is not registered, with the nearest known name if there is one.

    Example:
        >>> unknown_name("model", "da-capsnt", ["capsnet", "da-capsnet"])
        "unknown model 'da-capsnt': did you mean 'da-capsnet'? Known: capsnet, da-capsnet"
    """
    names = list(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}? Known: " if near else "choose one of "
    return f"unknown {kind} {name!r}: {hint}{', '.join(names)}"


def display_path(path: str | os.PathLike[str]) -> str:
    """A path for a message: bytes of its name that are no UTF-8 are escaped, so that printing cannot fail."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
