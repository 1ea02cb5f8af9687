"""What a caller can mend: a wrong option, a bad file, an unusable run folder."""


class DualcapsError(ValueError):
    """A mistake that the caller can mend.

    The message is one line: it names the file or option, says what is wrong and what to do.
    The command line prints it and exits with code 2.
    """


class DataError(DualcapsError):
    """A data set, file or image that cannot be found, read or used."""


class ModelError(DualcapsError):
    """A network that does not exist, or that cannot be built for these images."""


class RunError(DualcapsError):
    """A run folder that cannot be created, read or resumed."""


class ConfigError(DualcapsError):
    """A training option outside its range."""


def in_one_line(error: OSError) -> str:
    """What the operating system refused, and for which file."""
    return f"{error.filename or 'input or output'}: {error.strerror or error}"
