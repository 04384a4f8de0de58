"""The processes that a demo starts, and always ends."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Self

START_LIMIT = 30.0
END_LIMIT = 10.0
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PROJECT = Path(__file__).parents[1]


class ServiceError(RuntimeError):
    """A service did not start, or did not end as it should."""


class Service:
    """A Python program in a process of its own, which prints one line when it is ready."""

    def __init__(self, name: str, command: tuple[str, ...]) -> None:
        self.name = name
        # A session of its own: Ctrl-C reaches the demo alone, which then ends its services in order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            start_new_session=True,
        )
        self._lines: Queue[str] = Queue()
        # All the time, or a full pipe would hold it up.
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> str:
        """The line that the service prints when it is ready."""
        try:
            line = self._lines.get(timeout=START_LIMIT)
        except Empty:
            raise ServiceError(f"the {self.name} is not ready after {START_LIMIT:.0f} s") from None
        if not line:
            raise ServiceError(f"the {self.name} ended before it was ready")
        return line.strip()

    def terminate(self) -> None:
        """Ask it to end, with SIGTERM."""
        self._process.terminate()

    def wait_until_ended(self, limit: float = END_LIMIT) -> None:
        """Wait for an end with exit status 0, so many seconds."""
        try:
            status = self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"the {self.name} is still running after {limit:.0f} s") from None
        if status != 0:
            raise ServiceError(f"the {self.name} ended with exit status {status}")

    def last_line(self) -> str:
        """The last line that it has printed after the first one, when it has ended; empty when there was none."""
        self._reader.join(END_LIMIT)
        lines = [line for line in self._lines.queue if line]
        return lines[-1].strip() if lines else ""

    def end(self) -> None:
        """End it if it still runs: politely, then by force."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(END_LIMIT)

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put("")


class Services:
    """Starts services, and ends those that still run when the `with` block is left, however it is left."""

    def __init__(self) -> None:
        self._started: list[Service] = []

    def start(self, name: str, *command: str) -> Service:
        """Run a module.

        Parameters
        ----------
        name
            What it is called in messages.
        *command
            The module, and its arguments.
        """
        # Else a Ctrl-C between the start of the process and its entry in the list would leave it behind.
        with interrupts_deferred():
            service = Service(name, command)
            self._started.append(service)
        return service

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with interrupts_deferred():
            for service in reversed(self._started):
                service.end()


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP take effect after the block."""
    pending: list[int] = []
    before = {number: signal.signal(number, lambda number, _: pending.append(number)) for number in INTERRUPTS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
