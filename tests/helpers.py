"""What the tests with real sockets and processes share: limited waits, plain peers, processes, a lossy relay."""

import contextlib
import json
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import zmq

from tests.devices import LIMIT

PROJECT = Path(__file__).parents[1]


def wait_until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """Poll until the condition holds; fails after `limit` seconds."""
    deadline, pause = time.monotonic() + limit, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit} s"
        pause.wait(0.003)


class FakeClock:
    """Time passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def request(event: str, **keys: Any) -> bytes:
    """A request in JSON."""
    return json.dumps({"event": event, **keys}).encode()


def call(method: str, *args: Any, **keys: Any) -> bytes:
    """A METHOD_CALL; `keys` are those of the request, such as id."""
    return request("METHOD_CALL", method=method, params={"args": args}, **keys)


class Peer:
    """A plain ZeroMQ client of any kind, without rpc_kit."""

    def __init__(self, context: Any, url: str, kind: int = zmq.DEALER) -> None:
        self.socket = context.socket(kind)
        self.socket.linger = 0
        if "[" in url:
            self.socket.ipv6 = True
        self.socket.connect(url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def receive(self) -> list[bytes]:
        assert self.socket.poll(int(LIMIT * 1000)), "nothing came"
        received: list[bytes] = self.socket.recv_multipart()
        return received

    def reply(self) -> Any:
        """The next message, without its delimiter."""
        frames = self.receive()
        assert 1 == len(frames[frames[0] == b"" :])
        return json.loads(frames[-1])

    def ask(self, *frames: bytes) -> Any:
        """Send a request, get its reply."""
        self.send(*([b""] if self.socket.type == zmq.DEALER else []), *frames)
        return self.reply()


def raw_connection(port: int, kind: bytes = b"DEALER") -> socket.socket:
    """A raw TCP connection after the handshake of ZeroMQ (ZMTP 3.0, NULL)."""
    made = socket.create_connection(("127.0.0.1", port), LIMIT)
    made.sendall(b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32)
    properties = b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    made.sendall(b"\x04" + bytes([6 + len(properties)]) + b"\x05READY" + properties)
    received = b""
    while len(received) < 66 or len(received) < 66 + received[65]:  # the greeting, and READY with its length
        received += made.recv(1000)
    return made


class Program:
    """A Python module as a process; `line` is the first that it printed, `prefix` the command that runs it."""

    def __init__(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-u", "-m", *arguments],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.line = self.output.readline().strip()

    @property
    def pid(self) -> int:
        return self.process.pid

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Wait for the end; exit status and what was said on standard error."""
        _, errors = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, errors

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=LIMIT)


class Relay:
    """Passes TCP on to a server; connections can be cut, and once what passes can get lost."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.lose = ""  # "request" or "reply": the next one goes down with its connection
        self.seconds_per_byte = 0.0
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.own_port = self._listener.getsockname()[1]
        self.url = f"tcp://127.0.0.1:{self.own_port}"
        self._selector = selectors.DefaultSelector()
        self._orders, self._commander = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._orders, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._commander.send(b"q")
        self._thread.join(LIMIT)
        for each in (self._listener, self._orders, self._commander, self._selector):
            each.close()

    def cut(self) -> None:
        """Close all connections."""
        self._commander.send(b"c")
        assert b"c" == self._commander.recv(1)

    def redirect(self, port: int) -> None:
        """Close all connections, and wait until clients have come again, who then reach another server."""
        self.port, before = port, self.accepted
        self.cut()
        wait_until(lambda: self.accepted >= 2 * before)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._orders:
                    order = self._orders.recv(1)
                    for other in [each.fileobj for each in self._selector.get_map().values() if each.data]:
                        self._drop(other)
                    if order == b"q":
                        return
                    self._orders.send(order)
                elif key.fd in self._selector.get_map():
                    self._pass_on(key.fileobj, *key.data)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.port))
        except OSError:
            client.close()
            return
        self.accepted += 1
        self._selector.register(client, selectors.EVENT_READ, ("request", server))
        self._selector.register(server, selectors.EVENT_READ, ("reply", client))

    def _pass_on(self, source: Any, what: str, target: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
        except OSError:
            data = b""
        if data and what != self.lose:
            if self.seconds_per_byte:
                threading.Event().wait(len(data) * self.seconds_per_byte)
            with contextlib.suppress(OSError):
                target.sendall(data)
            return
        if data:
            self.lose = ""
        for each in (source, target):
            self._drop(each)

    def _drop(self, each: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(each)
        each.close()


@contextlib.contextmanager
def in_thread(function: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run on a thread meanwhile; at the end the list holds what was returned or raised."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield outcome
    finally:
        thread.join(2 * LIMIT)
        assert not thread.is_alive()
