"""What a client process can be asked to do; times are seconds."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from statistics import median, quantiles
from typing import Any

import zmq

from benchmarks.system import (
    BusyConnection,
    Connection,
    LookupConnection,
    SignalConnection,
    StoringConnection,
    System,
    frame,
)

TEXT = "a short text"
WARM_UP = 20
QUIET = 0.5  # without an event for so long, no more are expected
PING_PAUSE = 0.005
REPLY_LIMIT_MS = 5000


def times_of(call: Callable[[str], object], arguments: Iterable[str], seconds: float) -> list[float]:
    """Times of calls, one after the other, with one argument each."""
    clock = time.perf_counter
    times = []
    end = clock() + seconds
    for argument in arguments:
        before = clock()
        call(argument)
        after = clock()
        times.append(after - before)
        if after > end:
            break
    return times


class Tasks:
    """One connection and what was heard on it; every public method is a task."""

    def __init__(self, system: System, port: int) -> None:
        self._system = system
        self._port = port
        self._connection: Connection = system.connect(port)
        self._heard: list[tuple[float, float]] = []
        self._reported_before = 0

    def echo(self, seconds: float) -> float:
        """Median time of one call."""
        return median(self._echoes(seconds))

    def echo_tail(self, seconds: float) -> tuple[float, float]:
        """Median and 99th percentile of the time of one call."""
        times = self._echoes(seconds)
        return median(times), quantiles(times, n=100)[98]

    def _echoes(self, seconds: float) -> list[float]:
        self.warm_up()
        return times_of(self._connection.echo, itertools.repeat(TEXT), seconds)

    def find(self, registry: str, names: list[str], seconds: float) -> float:
        """Median time of one look-up."""
        if not isinstance(self._connection, LookupConnection):
            raise TypeError("no look-up here")
        find = self._connection.finder(registry)
        for name in names[:WARM_UP]:
            find(name)
        return median(times_of(find, itertools.cycle(names), seconds))

    def warm_up(self) -> None:
        """Some calls that nobody counts, and that are right."""
        for _ in range(WARM_UP):
            if self._connection.echo(TEXT) != TEXT:
                raise ValueError("wrong echo")

    def calls(self, start: float, end: float, threads: int) -> int:
        """Calls answered between two times, by threads that share the connection."""
        lock: AbstractContextManager[Any] = nullcontext()
        if threads > 1 and not self._connection.thread_safe:
            lock = threading.Lock()
        counts = [0] * threads

        def call(index: int) -> None:
            time.sleep(max(0.0, start - time.monotonic()))
            count = 0
            while time.monotonic() < end:
                with lock:
                    self._connection.echo(TEXT)
                count += 1
            counts[index] = count

        if threads == 1:
            call(0)
            return counts[0]
        callers = [threading.Thread(target=call, args=(index,)) for index in range(threads)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        return sum(counts)

    def image(self, size: int, seconds: float) -> float:
        """Median time of one image; at least one is got."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            before = time.perf_counter()
            image = self._connection.image(size)
            times.append(time.perf_counter() - before)
            if memoryview(image).nbytes != size:
                raise ValueError(f"not {size} bytes")
            del image  # or the next one could not reuse its memory
        return median(times)

    def store(self, size: int, seconds: float) -> float:
        """Median time of giving one image away; at least one is given."""
        if not isinstance(self._connection, StoringConnection):
            raise TypeError("nothing is stored here")
        image = frame(size)
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            before = time.perf_counter()
            stored = self._connection.store(image)
            times.append(time.perf_counter() - before)
            if stored != size:
                raise ValueError(f"not {size} bytes")
        return median(times)

    def first_call(self) -> float:
        """Time of a new connection and its first call."""
        before = time.perf_counter()
        connection = self._system.connect(self._port)
        connection.echo(TEXT)
        after = time.perf_counter()
        connection.close()
        return after - before

    def ping(self, seconds: float) -> list[float]:
        """Times of pings from a plain REQ socket."""
        times = []
        message = json.dumps({"event": "PING"}).encode()
        end = time.monotonic() + seconds
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        with context.socket(zmq.REQ) as socket:
            socket.linger = 0
            socket.rcvtimeo = REPLY_LIMIT_MS
            socket.connect(f"tcp://127.0.0.1:{self._port}")
            while time.monotonic() < end:
                before = time.perf_counter()
                socket.send(message)
                reply = socket.recv()
                times.append(time.perf_counter() - before)
                if not json.loads(reply)["success"]:
                    raise ValueError(f"no pong: {reply!r}")
                time.sleep(PING_PAUSE)
        return times

    def slow(self, seconds: float) -> None:
        """Keep the device busy."""
        if not isinstance(self._connection, BusyConnection):
            raise TypeError("no slow method here")
        self._connection.slow(seconds)

    @property
    def _signals(self) -> SignalConnection:
        if not isinstance(self._connection, SignalConnection):
            raise TypeError("no signals here")
        return self._connection

    def subscribe(self) -> None:
        """Hear events; return when one has come."""
        heard = self._heard
        self._signals.subscribe(lambda index, sent: heard.append((sent, time.monotonic())))
        while not heard:
            self._signals.emit(1, 1.0)
            time.sleep(PING_PAUSE)

    def emit(self, count: int, per_second: float) -> None:
        """Let the device emit."""
        self._signals.emit(count, per_second)

    def forget(self) -> None:
        """Forget what was heard."""
        self._heard.clear()
        self._reported_before = self._signals.reported_lost()

    def heard(self, expected: int) -> dict[str, float]:
        """What was heard, when all of it or nothing more came: how many, how fast, how late."""
        seen, since = -1, time.monotonic()
        while len(self._heard) < expected and time.monotonic() - since < QUIET:
            if len(self._heard) != seen:
                seen, since = len(self._heard), time.monotonic()
            time.sleep(PING_PAUSE)
        heard = self._heard[:]
        return {
            "lost": expected - len(heard),
            "reported": self._signals.reported_lost() - self._reported_before,
            "per_second": len(heard) / (heard[-1][1] - heard[0][0]) if heard else 0.0,
            "delay": median(received - sent for sent, received in heard) if heard else float("inf"),
        }
