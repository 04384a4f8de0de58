"""A camera for the tests of arrays and streams: its interface, its device, its client; and as programs.

Each picture is of one number throughout, so that whoever has another one in any place has seen it change.
"""

import argparse
import importlib
import json
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from rpc_kit import RPCClient, RPCProperty, RPCServer, RPCSignal
from tests.devices import LIMIT

Array = NDArray[Any]

SMALL, LARGE = 1000, 300_000
"""Numbers of items whose bytes go through sockets in any case, and through shared memory if there is any."""
KINDS = ("loan", "copied", "read-only", "strided", "fortran")


def picture(number: int, size: int = LARGE) -> NDArray[np.uint32]:
    """A picture of one number."""
    return np.full(size, number, np.uint32)


def number_of(image: Array) -> int:
    """The number of a picture; −1 when it has several."""
    number = int(image.flat[0])
    return number if bool((image == number).all()) else -1


@dataclass
class Shot:
    """A picture with what belongs to it."""

    number: int
    image: Array
    thumbnails: dict[str, list[Array]]
    note: str | None = None


def shot(number: int, size: int = LARGE) -> Shot:
    return Shot(number, picture(number, size), {"small": [picture(number, 10), picture(number, size)]}, "noted")


def numbers_of(made: Shot) -> list[int]:
    """The number of a shot, and those of its pictures."""
    return [made.number, *map(number_of, (made.image, *made.thumbnails["small"]))]


class Camera(ABC):
    """A camera with an array in a member of every kind."""

    frames = RPCSignal(NDArray[np.uint32])
    marked = RPCSignal(np.ndarray, dict[str, Any])
    reports = RPCSignal(dict[str, Any])
    counted = RPCSignal(int)
    mask_changed = RPCSignal(NDArray[np.uint32])

    @RPCProperty(notify=mask_changed, auto_notify=True)
    @abstractmethod
    def mask(self) -> NDArray[np.uint32]:
        """What is left out."""

    @mask.setter
    @abstractmethod
    def _set_mask(self, value: NDArray[np.uint32]) -> None: ...

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def image(self, number: int, size: int = LARGE, kind: str = "loan") -> NDArray[np.uint32]:
        """A picture."""

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def echo(self, value: Any) -> Any: ...

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def number(self, image: np.ndarray, *more: np.ndarray, **named: np.ndarray) -> list[int]:
        """The numbers of pictures."""

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def keep(self, image: NDArray[np.uint32]) -> int:
        """Keep a picture; how many are kept."""

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def kept(self) -> list[int]:
        """The numbers of all pictures that are kept."""

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def take(self, made: Shot) -> Shot:
        """The shot itself, with its number counted up."""

    @RPCServer.register_method_buffer(timeout=10_000)
    @abstractmethod
    def raw(self, number: int, size: int) -> tuple[memoryview, dict[str, Any]]:
        """The bytes of a picture, with the picture and a smaller one."""

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def emit(self, first: int, last: int, size: int = LARGE, kind: str = "loan") -> None:
        """Emit frames with each number from `first` to `last`."""

    @RPCServer.register_method_json(timeout=300)
    @abstractmethod
    def hesitate(self, number: int) -> NDArray[np.uint32]:
        """A picture that comes when the device is released: too late for its caller."""

    @RPCServer.register_method_json
    @abstractmethod
    def fail(self, image: np.ndarray) -> None:
        """Raise an exception."""


class CameraServer(Camera, RPCServer):
    """The camera; `last` is the last picture that came."""

    def __init__(self, context: Any, url: str, **options: Any) -> None:
        self.last: Any = None
        self.entered = threading.Event()
        self.released = threading.Event()
        self._mask = picture(0)
        self._kept: list[Array] = []
        super().__init__(context, url, **options)

    @RPCProperty(notify=Camera.mask_changed, auto_notify=True)
    def mask(self) -> NDArray[np.uint32]:
        return self._mask

    @mask.setter
    def _set_mask(self, value: NDArray[np.uint32]) -> None:
        self._mask = value

    def made(self, number: int, size: int, kind: str) -> Array:
        """A picture in memory of that kind."""
        image: Array = self.loan(size, np.uint32) if kind == "loan" else np.empty(size, np.uint32)
        if kind == "strided":
            image = np.empty(2 * size, np.uint32)[::2]
        elif kind == "fortran":
            image = np.empty((size // 10, 10), np.uint32, order="F")
        image[...] = number
        image.flags.writeable = kind != "read-only"
        return image

    def image(self, number: int, size: int = LARGE, kind: str = "loan") -> NDArray[np.uint32]:
        return self.made(number, size, kind)

    def echo(self, value: Any) -> Any:
        self.last = value
        return value

    def number(self, image: np.ndarray, *more: np.ndarray, **named: np.ndarray) -> list[int]:
        self.last = image
        return [number_of(each) for each in (image, *more, *named.values())]

    def keep(self, image: NDArray[np.uint32]) -> int:
        self._kept.append(image)
        return len(self._kept)

    def kept(self) -> list[int]:
        return list(map(number_of, self._kept))

    def take(self, made: Shot) -> Shot:
        return Shot(made.number + 1, made.image, made.thumbnails, made.note)

    def raw(self, number: int, size: int) -> tuple[memoryview, dict[str, Any]]:
        return picture(number, size).data, {"image": picture(number, size), "more": [picture(number, 10)]}

    def emit(self, first: int, last: int, size: int = LARGE, kind: str = "loan") -> None:
        for number in range(first, last + 1):
            self.frames.emit(self.made(number, size, kind))

    def hesitate(self, number: int) -> NDArray[np.uint32]:
        self.entered.set()
        self.released.wait(3 * LIMIT)
        return self.made(number, LARGE, "loan")

    def fail(self, image: np.ndarray) -> None:
        raise ValueError("as wanted")


@RPCClient.register_interface(Camera)
class CameraClient(Camera, RPCClient):
    """The client of the camera."""


def serve(context: Any, options: argparse.Namespace) -> None:
    given = {} if options.memory is None else {"shared_memory": options.memory}
    with CameraServer(context, options.url, **given) as device:
        print(device.url, flush=True)
        device.serve_forever()


class User:
    """What a client in a process of its own can be told to do."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.held: list[Array] = []
        self.streams: list[Any] = []

    def image(self, number: int, size: int = LARGE) -> int:
        """Get a picture, and hold it."""
        self.held.append(self.client.image(number, size))
        return number_of(self.held[-1])

    def numbers(self) -> list[int]:
        """What is held."""
        return list(map(number_of, self.held))

    def send(self, number: int, size: int = LARGE) -> Any:
        return self.client.number(picture(number, size))

    def mask(self, number: int) -> int:
        self.client.mask = picture(number)
        return number_of(self.client.mask)

    def stream(self, policy: str) -> None:
        self.streams.append(self.client.frames.stream(policy, timeout=LIMIT))

    def next(self) -> int:
        """Get an event of each stream, and hold it; the number of the last one."""
        for each in self.streams:
            self.held.append(next(each))
        return number_of(self.held[-1])

    def drop(self) -> None:
        self.held.clear()

    def emit(self, first: int, last: int) -> None:
        self.client.emit(first, last)

    def paths(self) -> Any:
        return self.client.stats().paths

    def fork(self) -> list[int]:
        """What a forked child sees, and how it ends."""
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writable, json.dumps(self.numbers()).encode())
            self.drop()
            sys.exit(7)
        os.close(writable)
        with os.fdopen(readable) as answers:
            return [*json.loads(answers.read()), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


def use(context: Any, options: argparse.Namespace) -> None:
    """Do what each line says, in JSON: the name of a method of `User`, and its arguments."""
    with CameraClient(context, options.url, codec=options.codec) as client:
        user = User(client)
        print("connected", flush=True)
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            try:
                outcome = getattr(user, name)(*arguments)
            except Exception as exc:
                outcome = repr(exc)
            print(json.dumps(outcome), flush=True)


def tell(program: Any, name: str, *arguments: Any) -> Any:
    """Have a program do something; what comes of it."""
    program.process.stdin.write(json.dumps([name, *arguments]) + "\n")
    program.process.stdin.flush()
    return json.loads(program.output.readline())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "use"])
    parser.add_argument("url")
    parser.add_argument("--memory", type=int)
    parser.add_argument("--codec")
    parser.add_argument("--user", type=int, help="become that user once all is imported")
    options = parser.parse_args()
    if options.user is not None:
        # Afterwards nothing more can be imported when the project lies where nobody else may read.
        for later in ("concurrent.futures.thread", "zmq.utils.garbage", "zmq.utils.monitor"):
            importlib.import_module(later)
        os.setgroups([])
        os.setgid(options.user)
        os.setuid(options.user)
    roles: dict[str, Callable[..., None]] = {"serve": serve, "use": use}
    with zmq.Context() as context:
        roles[options.role](context, options)


if __name__ == "__main__":
    main()
