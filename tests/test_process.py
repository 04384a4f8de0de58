"""What a server changes in its process, and puts back."""

import os
import signal
import socket
import sys
import threading

import pytest

from rpc_kit import process
from rpc_kit.process import shorter_switch_interval, stopped_by_signals


def test_signal_stops_and_wakes() -> None:
    """SIGTERM calls `stop` and writes a byte for a thread that may be about to block; then all is as before."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    stops: list[int] = []
    with reader, writer:
        with stopped_by_signals(stops.append, writer.fileno()):
            os.kill(os.getpid(), signal.SIGTERM)
            woke = reader.recv(16)

        assert ([signal.SIGTERM], bytes([signal.SIGTERM])) == (stops, woke)
        assert -1 == signal.set_wakeup_fd(-1)
    assert signal.SIG_DFL is signal.getsignal(signal.SIGTERM)
    assert signal.default_int_handler is signal.getsignal(signal.SIGINT)


def test_handlers_of_the_program_stay() -> None:
    """A program with a handler of its own keeps it."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with reader, writer, stopped_by_signals(lambda number: None, writer.fileno()):
            during = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert signal.SIG_IGN is during


def test_other_threads_change_nothing() -> None:
    """Only the main thread can have signal handlers."""
    seen: list[object] = []

    def look() -> None:
        with stopped_by_signals(lambda number: None, -1):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(5)

    assert [signal.SIG_DFL] == seen


def test_shortest_switch_interval_holds() -> None:
    """Two servers in one process have the shorter interval, until the last of them ends."""
    usual = sys.getswitchinterval()
    first, second = shorter_switch_interval(0.001), shorter_switch_interval(0.002)
    with first:
        with second, shorter_switch_interval(None):
            assert 0.001 == round(sys.getswitchinterval(), 6)
        assert 0.001 == round(sys.getswitchinterval(), 6)

    assert usual == sys.getswitchinterval()


def test_signal_whose_handler_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is certain after a while; not when the handler has run, and not of handlers of the program."""
    monkeypatch.setattr(process, "HANDLER_TIME", 0.0)
    heard, unheard, foreign = (process.UnheardSignal() for _ in range(3))
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    with reader, writer, stopped_by_signals(lambda number: None, writer.fileno()):
        for each in (heard, unheard):
            each.note(bytes([signal.SIGUSR1, signal.SIGTERM]))
        foreign.note(bytes([signal.SIGUSR1]))
        assert (True, False) == (unheard.is_certain(), foreign.is_certain())
        os.kill(os.getpid(), signal.SIGTERM)
        assert bytes([signal.SIGTERM]) == reader.recv(16)

        assert not heard.is_certain()
    assert signal.SIGTERM == unheard.number
