"""`python -m dualcaps`, and the command `dualcaps`."""

import os
import signal


def _leave(number: int, _: object) -> None:
    """End at once without a traceback, as nothing has been done yet."""
    os.write(2, b"dualcaps: interrupted before it began\n")
    os._exit(128 + number)


def main() -> None:
    """Run the command line; a signal while it is still being imported ends it in one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from dualcaps.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run()


if __name__ == "__main__":
    main()
