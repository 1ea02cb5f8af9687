"""Signals are noted or become exceptions, and the caller's handlers come back."""

import contextlib
import os
import signal
import sys
import threading

import pytest

from dualcaps.errors import Terminated
from dualcaps.signals import noted_signals, signals_as_exceptions

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends signals")


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_is_noted_and_a_second_one_interrupts(number: signal.Signals, raised: type[BaseException]):
    before = signal.getsignal(number)
    with noted_signals() as request:
        assert not request
        os.kill(os.getpid(), number)
        assert request
        assert type(request.exception()) is raised
        with pytest.raises(raised):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_becomes_an_exception_also_where_a_library_hides_it(
    number: signal.Signals, raised: type[BaseException]
):
    def hide() -> None:
        try:
            os.kill(os.getpid(), number)
        except raised:
            raise RecursionError("import failed") from None

    before = signal.getsignal(number)
    with pytest.raises(raised), signals_as_exceptions():
        os.kill(os.getpid(), number)
    with pytest.raises(raised), signals_as_exceptions():
        hide()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_training_does_not_begin_after_a_signal_that_a_library_caught(
    number: signal.Signals, raised: type[BaseException]
):
    def train() -> None:
        with contextlib.suppress(raised):
            os.kill(os.getpid(), number)
        with noted_signals():
            pytest.fail("begun")

    with pytest.raises(raised), signals_as_exceptions():
        train()


def test_an_error_without_a_signal_stays_what_it_is():
    with pytest.raises(RecursionError), signals_as_exceptions():
        raise RecursionError


def test_in_another_thread_the_handlers_stay():
    before, during = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with noted_signals() as request, signals_as_exceptions():
            during.extend([signal.getsignal(signal.SIGINT), bool(request)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before, False]
