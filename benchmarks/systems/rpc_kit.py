"""Ours: one interface class, a device that implements it, a client generated from it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import zmq

from benchmarks.system import Listener, frame, paced
from benchmarks.ways import TCP, go_by
from rpc_kit import RegistryClient, RPCClient, RPCServer, RPCSignal


class Bench(ABC):
    ticked = RPCSignal(int, float)

    @RPCServer.register_method_json
    @abstractmethod
    def echo(self, text: str) -> str: ...

    @RPCServer.register_method_json(timeout=None)
    @abstractmethod
    def slow(self, seconds: float) -> None: ...

    @RPCServer.register_method_json(timeout=None)
    @abstractmethod
    def emit(self, count: int, per_second: float) -> None: ...

    @RPCServer.register_method_buffer
    @abstractmethod
    def image(self, size: int) -> tuple[memoryview, dict[str, int]]: ...


class Device(Bench, RPCServer):
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], url: str, alive_timeout: float = 60) -> None:
        super().__init__(context, url, alive_timeout)

    def echo(self, text: str) -> str:
        return text

    def slow(self, seconds: float) -> None:
        time.sleep(seconds)

    def emit(self, count: int, per_second: float) -> None:
        for index in paced(count, per_second):
            self.ticked.emit(index, time.monotonic())

    def image(self, size: int) -> tuple[memoryview, dict[str, int]]:
        return memoryview(frame(size)), {"size": size}


@RPCClient.register_interface(Bench)
class Client(Bench, RPCClient):
    pass


class RpcKit:
    def serve(self, announce: Callable[[int], None]) -> None:
        device = Device(zmq.Context(), "tcp://127.0.0.1:0")
        assert device.port is not None
        announce(device.port)
        device.serve_forever()

    def connect(self, port: int) -> RpcKitConnection:
        return RpcKitConnection(port)


class RpcKitConnection:
    thread_safe = True

    def __init__(self, port: int) -> None:
        self.client = Client(zmq.Context.instance(), f"tcp://127.0.0.1:{port}", timeout=5000)
        go_by(self.client, TCP)  # as the others do; on one host it would go by ipc, as the empty calls of the cameras
        self.echo = self.client.echo
        self.slow = self.client.slow
        self.emit = self.client.emit
        self.close = self.client.close

    def image(self, size: int) -> memoryview:
        image, _ = self.client.image(size)
        return image

    def finder(self, registry: str) -> Callable[[str], object]:
        return RegistryClient(registry, zmq.Context.instance()).find

    def subscribe(self, listener: Listener) -> None:
        self.client.ticked.connect(listener)

    def reported_lost(self) -> int:
        return self.client.events_lost
