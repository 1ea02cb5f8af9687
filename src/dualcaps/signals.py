"""SIGINT and SIGTERM: as exceptions, or noted so that a training's step is finished before the program ends."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from dualcaps.errors import Terminated


class StopRequest:
    """The first SIGINT or SIGTERM received, if any."""

    def __init__(self) -> None:
        self.received: int | None = None

    def __bool__(self) -> bool:
        return self.received is not None

    def exception(self) -> KeyboardInterrupt:
        """What the signal would have raised at once."""
        return Terminated() if self.received == signal.SIGTERM else KeyboardInterrupt()


class _Interruption(StopRequest):
    """The handler of a signal that raises it as an exception."""

    def __call__(self, number: int, _: object) -> None:
        self.received = number
        raise self.exception()


@contextlib.contextmanager
def noted_signals() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM instead of interrupting; a second one interrupts at once.

    So does one received in `signals_as_exceptions` before, whose exception a library caught.
    """
    earlier = signal.getsignal(signal.SIGINT)
    if isinstance(earlier, _Interruption) and earlier:
        raise earlier.exception()
    request = StopRequest()

    def note(number: int, _: object) -> None:
        if request:
            raise request.exception()
        request.received = number

    with _handled(note, signal.SIGINT, signal.SIGTERM):
        yield request


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM and KeyboardInterrupt on SIGINT, so that files are left whole and the user is told.

    An error that follows a signal is taken for its result: some libraries, interrupted while they are imported, go on
    and fail later.
    """
    request = _Interruption()
    with _handled(request, signal.SIGINT, signal.SIGTERM):
        try:
            yield
        except Exception as error:
            if request:
                raise request.exception() from error
            raise


@contextlib.contextmanager
def _handled(handler: Callable[[int, object], None], *signals: int) -> Iterator[None]:
    """Handle signals; outside the main thread, where Python receives none, nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)
