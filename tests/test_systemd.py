"""What systemd is told, over a real notification socket."""

import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc_kit import systemd as module
from rpc_kit.systemd import Notifier, watchdog_interval

LIMIT = 10.0
END = "STOPPING=1\nSTATUS=stopping"


class Systemd:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(LIMIT)

    def receive(self) -> str:
        return self._socket.recv(1000).decode()

    def waiting(self) -> list[str]:
        """What has come by now."""
        self._socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self.receive())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(LIMIT)

    def close(self) -> None:
        self._socket.close()


class Health:
    """Answers the question for health, and tells when it was asked."""

    def __init__(self, *answers: bool) -> None:
        self._answers = list(answers)
        self.asked = threading.Event()

    def __call__(self) -> bool:
        answer = self._answers.pop(0)
        if not self._answers:
            self._answers = [answer]
            self.asked.set()
        return answer


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """A service manager, without watchdog; its socket has a path or an abstract name."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@rpc-kit-{tmp_path}"
    made = Systemd(name.replace("@", "\0"))
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    yield made
    made.close()


def test_ready_and_stopping(systemd: Systemd) -> None:
    """systemd hears once that the service is ready, and once that it stops."""
    notifier = Notifier(lambda: True)
    notifier.ready()
    notifier.stopping()
    notifier.stopping()

    assert ["READY=1", END] == systemd.waiting()


def test_watchdog_is_fed_while_healthy(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy service feeds the watchdog again and again, at twice the rate that is asked for."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    notifier = Notifier(lambda: True)
    notifier.ready()

    assert ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"] == [systemd.receive() for _ in range(4)]
    notifier.stopping()
    assert {END} == {*systemd.waiting()} - {"WATCHDOG=1"}


def test_watchdog_is_not_fed_while_hung(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is not healthy does not feed, and feeds again when it recovers."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    health = Health(True, False, False, False)
    notifier = Notifier(health)
    notifier.ready()
    assert health.asked.wait(LIMIT)
    notifier.stopping()

    assert ["READY=1", "WATCHDOG=1", END] == systemd.waiting()


def test_status_comes_with_ready(systemd: Systemd) -> None:
    """What the service does is told together with its readiness, and when it stops."""
    notifier = Notifier(lambda: True, lambda: "2 clients")
    notifier.ready()
    notifier.stopping()

    assert ["READY=1\nSTATUS=2 clients", END] == systemd.waiting()


def test_status_is_told_when_it_changes(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a watchdog a status is told again when it differs from the one before, and only then."""
    monkeypatch.setattr(module, "STATUS_PAUSE", 0.001)
    texts = ["idle", "idle", "exposing", "exposing", "", "idle"]
    notifier = Notifier(lambda: True, lambda: texts.pop(0) if len(texts) > 1 else texts[0])
    notifier.ready()
    expected = ["READY=1\nSTATUS=idle", "STATUS=exposing", "STATUS=", "STATUS=idle"]

    assert expected == [systemd.receive() for _ in expected]
    notifier.stopping()
    assert [END] == systemd.waiting()


def test_status_is_not_told_too_often(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status that changes all the time is not told more often than the pause allows, however often the dog is fed."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setattr(module, "STATUS_PAUSE", 3600.0)
    numbers = itertools.count()
    notifier = Notifier(lambda: True, lambda: str(next(numbers)))
    notifier.ready()

    assert ["READY=1\nSTATUS=0", *["WATCHDOG=1"] * 5] == [systemd.receive() for _ in range(6)]
    notifier.stopping()
    assert {END} == {*systemd.waiting()} - {"WATCHDOG=1"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 µm, 5 Ω", "10 µm, 5 Ω"),
        (" two\nlines\r\n\tand\u2028more ", "two lines and more"),
        ("\x1b[31mred\x1b[0m \0\ud800", "[31mred[0m "),
        ("x" * 1000, "x" * 200),
    ],
)
def test_status_is_one_clean_line(systemd: Systemd, text: str, expected: str) -> None:
    """Whatever the status holds, systemd gets one line of 200 characters at most, in UTF-8."""
    notifier = Notifier(lambda: True, lambda: text)
    notifier.ready()
    notifier.stopping()

    assert [f"READY=1\nSTATUS={expected}", END] == systemd.waiting()


@pytest.mark.parametrize(("status", "expected"), [(lambda: 1 / 0, "ZeroDivisionError"), (lambda: None, "AttributeErr")])
def test_status_that_fails(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, status: Callable[[], Any], expected: str
) -> None:
    """A status that cannot be made is told as such, and the watchdog is fed on."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.setattr(module, "STATUS_PAUSE", 0.001)
    notifier = Notifier(lambda: True, status)
    notifier.ready()

    assert systemd.receive().startswith(f"READY=1\nSTATUS=no status: {expected}")
    assert ["WATCHDOG=1"] * 5 == [systemd.receive() for _ in range(5)]
    notifier.stopping()


def test_watchdog_thread_ends(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread and no file descriptor is left after stopping, which does not wait for the interval."""
    monkeypatch.setenv("WATCHDOG_USEC", str(3600 * 10**6))
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    notifier = Notifier(lambda: True)
    notifier.ready()
    assert threads + 1 == threading.active_count()
    notifier.stopping()

    assert (threads, descriptors) == (threading.active_count(), len(os.listdir("/proc/self/fd")))


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NOTIFY_SOCKET there is no thread, though a watchdog is set."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    threads = threading.active_count()
    notifier = Notifier(lambda: True)
    notifier.ready()

    assert threads == threading.active_count()
    notifier.stopping()


# sdnotify leaves the socket that it cannot connect to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["/no/such/socket", "@rpc-kit-nobody-listens", "relative"])
def test_systemd_that_does_not_listen(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A service starts and stops though nobody hears it."""
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notifier = Notifier(lambda: True)
    notifier.ready()
    notifier.stopping()


@pytest.mark.parametrize(
    ("text", "expected"), [("30000000", 30.0), ("1", 1e-6), ("0", None), ("-5", None), ("", None), ("soon", None)]
)
def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch, text: str, expected: float | None) -> None:
    """WatchdogSec is read in seconds; what is no positive number is none."""
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", text)

    assert expected == watchdog_interval()


@pytest.mark.parametrize(("pid", "expected"), [(os.getpid(), 30.0), (os.getpid() + 1, None)])
def test_watchdog_of_another_process(monkeypatch: pytest.MonkeyPatch, pid: int, expected: float | None) -> None:
    """A watchdog that is meant for another process is not fed."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(pid))

    assert expected == watchdog_interval()
