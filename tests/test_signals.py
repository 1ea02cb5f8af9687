"""Signals are noted or become exceptions, and the caller's handlers come back."""

import os
import signal
import sys
import threading

import pytest

from dualcaps.errors import Terminated
from dualcaps.signals import noted_signals, sigterm_as_exception

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


def test_sigterm_becomes_an_exception():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), sigterm_as_exception():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_the_handlers_stay():
    before, during = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with noted_signals() as request, sigterm_as_exception():
            during.extend([signal.getsignal(signal.SIGINT), bool(request)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before, False]
