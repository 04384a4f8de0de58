"""What systemd is told, over a real notification socket."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpc_kit.systemd import Notifier, watchdog_interval

LIMIT = 10.0


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

    assert ["READY=1", "STOPPING=1"] == systemd.waiting()


def test_watchdog_is_fed_while_healthy(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A healthy service feeds the watchdog again and again, at twice the rate that is asked for."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    notifier = Notifier(lambda: True)
    notifier.ready()

    assert ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"] == [systemd.receive() for _ in range(4)]
    notifier.stopping()
    assert {"STOPPING=1"} == {*systemd.waiting()} - {"WATCHDOG=1"}


def test_watchdog_is_not_fed_while_hung(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that is not healthy does not feed, and feeds again when it recovers."""
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    health = Health(True, False, False, False)
    notifier = Notifier(health)
    notifier.ready()
    assert health.asked.wait(LIMIT)
    notifier.stopping()

    assert ["READY=1", "WATCHDOG=1", "STOPPING=1"] == systemd.waiting()


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
