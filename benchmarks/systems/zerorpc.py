"""zerorpc: msgpack over ZeroMQ on gevent."""

from __future__ import annotations

from collections.abc import Callable

import zerorpc

from benchmarks.system import Device


class Zerorpc:
    def serve(self, announce: Callable[[int], None]) -> None:
        server = zerorpc.Server(Device())
        bound = server.bind("tcp://127.0.0.1:*")[0]
        announce(int(bound.addr.rpartition(":")[2]))
        server.run()

    def connect(self, port: int) -> ZerorpcConnection:
        return ZerorpcConnection(port)


class ZerorpcConnection:
    thread_safe = False

    def __init__(self, port: int) -> None:
        self.client = zerorpc.Client(f"tcp://127.0.0.1:{port}")

    def echo(self, text: str) -> str:
        result: str = self.client.echo(text)
        return result

    def image(self, size: int) -> bytes:
        result: bytes = self.client.image(size)
        return result

    def close(self) -> None:
        self.client.close()
