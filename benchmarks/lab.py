"""A lab of typical devices, and the messages by which they are registered and renewed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import msgspec
import zmq

from benchmarks.processes import ProcessFailed
from rpc_kit.messages import EventType, Registration
from rpc_kit.wire import registry_frame

LEASE = 3600.0
TYPES = 20
PER_HOST = 10
UNDER_WAY = 100
REPLY_LIMIT_MS = 10_000


def name_of(number: int) -> str:
    return f"device-{number:06}"


def device(number: int) -> Registration:
    """What a server of ours that listens on all addresses of a host with two networks tells the registry."""
    host, port = divmod(number, PER_HOST)
    high, low = divmod(host, 250)
    return Registration(
        f"Type{number % TYPES}",
        f"tcp://192.168.{high}.{low + 1}:{10_000 + port}",
        name_of(number),
        True,
        [f"tcp://10.1.{high}.{low + 1}:{10_000 + port}"],
        f"Interface{number % TYPES}",
        f"{number % TYPES:016x}",
        f"{number:016x}",
        {"host": f"lab-host-{host:05}", "pid": 1000 + number % 30_000, "version": "0.1.0"},
        LEASE,
    )


def messages_of(event: EventType, payloads: Iterable[msgspec.Struct]) -> Iterator[bytes]:
    """As our library sends them."""
    return (registry_frame(event, msgspec.to_builtins(payload)) for payload in payloads)


class Pipeline:
    """A connection to a registry with many requests under way, as if of many devices."""

    def __init__(self, url: str) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvtimeo = REPLY_LIMIT_MS
        self._socket.connect(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def register(self, numbers: Iterable[int]) -> list[str]:
        """Register devices; their uuids."""
        replies = self.exchange(messages_of(EventType.REGISTER, map(device, numbers)), UNDER_WAY)
        return [json.loads(reply)["payload"]["uuid"] for reply in replies]

    def rate(self, messages: Iterable[bytes], under_way: int) -> float:
        """Messages per second that are answered with success."""
        before = time.perf_counter()
        answers = Counter(self.exchange(messages, under_way))
        seconds = time.perf_counter() - before
        for answer in answers:
            if not json.loads(answer)["payload"]["success"]:
                raise ProcessFailed(f"the registry refuses: {answer!r}")
        return answers.total() / seconds

    def exchange(self, messages: Iterable[bytes], under_way: int) -> Iterator[bytes]:
        """The replies, in the order of the messages."""
        waiting = 0
        for message in messages:
            if waiting == under_way:
                yield self._answer()
                waiting -= 1
            # As REQ does it, but without waiting for the reply.
            self._socket.send(b"", zmq.SNDMORE)
            self._socket.send(message)
            waiting += 1
        for _ in range(waiting):
            yield self._answer()

    def _answer(self) -> bytes:
        self._socket.recv()
        return self._socket.recv()
