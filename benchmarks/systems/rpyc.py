"""RPyC in its natural form, ``connection.root.method()``."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

import rpyc
from rpyc.core.channel import Channel
from rpyc.utils.server import ThreadedServer

from benchmarks.system import frame

# Compressing noise would only cost it time.
Channel.COMPRESSION_THRESHOLD = sys.maxsize


class Service(rpyc.Service):  # type: ignore[misc]
    def exposed_echo(self, text: str) -> str:
        return text

    def exposed_image(self, size: int) -> bytes:
        return frame(size)


class Rpyc:
    def serve(self, announce: Callable[[int], None]) -> None:
        server = ThreadedServer(Service(), hostname="127.0.0.1", port=0)
        # Accepted sockets inherit it; without it each image waits 40 ms for a delayed acknowledgement.
        server.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        announce(server.port)
        server.start()

    def connect(self, port: int) -> RpycConnection:
        return RpycConnection(port)


class RpycConnection:
    thread_safe = False

    def __init__(self, port: int) -> None:
        self.connection = rpyc.connect("127.0.0.1", port)

    def echo(self, text: str) -> str:
        result: str = self.connection.root.echo(text)
        return result

    def image(self, size: int) -> bytes:
        result: bytes = self.connection.root.image(size)
        return result

    def close(self) -> None:
        self.connection.close()
