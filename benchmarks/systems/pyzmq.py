"""The reference: what an experienced user writes with pyzmq and the standard json module."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import zmq

from benchmarks.system import Buffer, Listener, frame, paced

Context = zmq.Context[zmq.Socket[bytes]]
LOCALHOST = "tcp://127.0.0.1"


class JsonMethods:
    """What is answered with JSON; an image is answered by the loop itself."""

    def __init__(self, context: Context) -> None:
        self.publisher = context.socket(zmq.PUB)
        self.port = self.publisher.bind_to_random_port(LOCALHOST)

    def echo(self, text: str) -> str:
        return text

    def signal_port(self) -> int:
        return self.port

    def emit(self, count: int, per_second: float) -> None:
        for index in paced(count, per_second):
            event = {"signal": "ticked", "args": [index, time.monotonic()]}
            self.publisher.send(json.dumps(event).encode())


class Pyzmq:
    """REQ/REP and PUB/SUB; images as a second frame that is not copied."""

    def serve(self, announce: Callable[[int], None]) -> None:
        context: Context = zmq.Context()
        socket = context.socket(zmq.REP)
        announce(socket.bind_to_random_port(LOCALHOST))
        device = JsonMethods(context)
        methods: dict[str, Callable[..., Any]] = {
            "echo": device.echo,
            "emit": device.emit,
            "signal_port": device.signal_port,
        }
        while True:
            request = json.loads(socket.recv())
            args = request["params"]["args"]
            if request["method"] == "image":
                socket.send(json.dumps({"size": args[0]}).encode(), zmq.SNDMORE)
                socket.send(frame(args[0]), copy=False)
            elif request["method"] == "store":
                stored = socket.recv(copy=False)
                socket.send(json.dumps({"success": True, "result": len(stored.buffer)}).encode())
            else:
                result = methods[request["method"]](*args)
                socket.send(json.dumps({"success": True, "result": result}).encode())

    def connect(self, port: int) -> PyzmqConnection:
        return PyzmqConnection(port)


class PyzmqConnection:
    """One REQ socket, and one SUB socket with its thread after `subscribe`."""

    thread_safe = False

    def __init__(self, port: int) -> None:
        self.context: Context = zmq.Context.instance()
        self.socket = self.context.socket(zmq.REQ)
        self.socket.linger = 0
        self.socket.connect(f"{LOCALHOST}:{port}")

    def request(self, method: str, *args: object) -> bytes:
        call = {"event": "METHOD_CALL", "method": method, "params": {"args": args, "kwargs": {}}}
        self.socket.send(json.dumps(call).encode())
        return self.socket.recv()

    def echo(self, text: str) -> str:
        result: str = json.loads(self.request("echo", text))["result"]
        return result

    def image(self, size: int) -> memoryview:
        json.loads(self.request("image", size))
        return self.socket.recv(copy=False).buffer

    def store(self, image: Buffer) -> int:
        call = {"event": "METHOD_CALL", "method": "store", "params": {"args": [], "kwargs": {}}}
        self.socket.send(json.dumps(call).encode(), zmq.SNDMORE)
        self.socket.send(image, copy=False)
        size: int = json.loads(self.socket.recv())["result"]
        return size

    def emit(self, count: int, per_second: float) -> None:
        self.request("emit", count, per_second)

    def subscribe(self, listener: Listener) -> None:
        port = json.loads(self.request("signal_port"))["result"]
        threading.Thread(target=self.receive, args=(port, listener), daemon=True).start()

    def receive(self, port: int, listener: Listener) -> None:
        with self.context.socket(zmq.SUB) as socket:
            socket.subscribe(b"")
            socket.connect(f"{LOCALHOST}:{port}")
            while True:
                listener(*json.loads(socket.recv())["args"])

    def reported_lost(self) -> int:
        return 0

    def close(self) -> None:
        self.socket.close()
