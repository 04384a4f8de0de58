"""What every compared system can do, and the device that all of them serve."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview
Listener = Callable[[int, float], None]
# Short enough for the scheduler's sleep to be exact, long enough not to spin.
BURST = 0.001


class Connection(Protocol):
    """One client, connected to the device of this benchmark."""

    thread_safe: bool

    def echo(self, text: str) -> str: ...

    def image(self, size: int) -> Buffer: ...

    def close(self) -> None: ...


@runtime_checkable
class SignalConnection(Connection, Protocol):
    """A client that also hears what the device emits."""

    def subscribe(self, listener: Listener) -> None: ...

    def emit(self, count: int, per_second: float) -> None: ...

    def reported_lost(self) -> int: ...


@runtime_checkable
class BusyConnection(Connection, Protocol):
    """A client that can keep the device busy."""

    def slow(self, seconds: float) -> None: ...


@runtime_checkable
class LookupConnection(Connection, Protocol):
    """A client that can also look devices up by their names."""

    def finder(self, registry: str) -> Callable[[str], object]: ...


@runtime_checkable
class StoringConnection(Connection, Protocol):
    """A client that can also give an image away."""

    def store(self, image: Buffer) -> int: ...


class System(Protocol):
    """A way to call a device in another process."""

    def serve(self, announce: Callable[[int], None]) -> None:
        """Serve on a free port of 127.0.0.1, announce it, and never return."""

    def connect(self, port: int) -> Connection: ...


@functools.cache
def frame(size: int) -> bytes:
    """An image of noise: nobody gains by compressing it."""
    return random.Random(size).randbytes(size)


class Device:
    """The device as a plain object, for systems that serve one."""

    def echo(self, text: str) -> str:
        return text

    def image(self, size: int) -> bytes:
        return frame(size)


def paced(count: int, per_second: float) -> Iterator[int]:
    """Count upwards at a mean rate, at most `BURST` ahead of the clock."""
    start = time.monotonic()
    for index in range(count):
        ahead = start + index / per_second - time.monotonic()
        if ahead > BURST:
            time.sleep(ahead)
        yield index
