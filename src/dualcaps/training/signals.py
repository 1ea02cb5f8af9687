"""Signals during training: the present step is finished and kept before the program ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dualcaps.errors import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """The first SIGINT or SIGTERM received, if any."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __bool__(self) -> bool:
        return self.received is not None

    def exception(self) -> KeyboardInterrupt:
        """What the signal would have raised at once."""
        return Terminated() if self.received == signal.SIGTERM else KeyboardInterrupt()


@contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of interrupting; a second one interrupts at once.

    Outside the main thread, where Python receives no signals, nothing is changed.
    """
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request:
            raise request.exception()
        request.received = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
