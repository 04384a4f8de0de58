"""Pyro5 with its default serializer and with msgpack; the client chooses."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import ClassVar

import Pyro5.api

from benchmarks.system import Device


class Pyro5Serpent:
    serializer: ClassVar[str] = "serpent"

    def serve(self, announce: Callable[[int], None]) -> None:
        daemon = Pyro5.api.Daemon(host="127.0.0.1")
        daemon.register(Pyro5.api.expose(Device), objectId="bench")
        announce(int(daemon.locationStr.rpartition(":")[2]))
        daemon.requestLoop()

    def connect(self, port: int) -> Pyro5Connection:
        return Pyro5Connection(port, self.serializer)


class Pyro5Msgpack(Pyro5Serpent):
    serializer = "msgpack"


class Pyro5Connection:
    thread_safe = False

    def __init__(self, port: int, serializer: str) -> None:
        Pyro5.api.config.SERIALIZER = serializer
        self.proxy = Pyro5.api.Proxy(f"PYRO:bench@127.0.0.1:{port}")

    def echo(self, text: str) -> str:
        result: str = self.proxy.echo(text)
        return result

    def image(self, size: int) -> bytes:
        result: bytes | dict[str, str] = self.proxy.image(size)
        # serpent has no bytes: they arrive as base64 in a dict.
        return base64.b64decode(result["data"]) if isinstance(result, dict) else result

    def close(self) -> None:
        self.proxy._pyroRelease()
