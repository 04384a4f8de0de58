"""The instrument of the tests: its interface, its device and its client."""

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Literal

import numpy as np

from rpc_kit import RPCClient, RPCProperty, RPCServer, RPCSignal

LIMIT = 10.0
"""How long a test waits for anything, s."""


class Mode(Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True)
class Point:
    x: float
    y: float


@dataclass(frozen=True)
class Scan:
    mode: Mode
    points: list[Point]
    started: datetime
    note: str | None = None


class Identified(ABC):
    """A base of the interface, whose members count too."""

    @RPCProperty
    @abstractmethod
    def serial(self) -> str:
        """Serial number."""

    @RPCServer.register_method_json
    @abstractmethod
    def total(self, *values: int, **named: float) -> float:
        """Sum of all arguments."""


class Instrument(Identified):
    """An instrument with one member of every kind."""

    level_changed = RPCSignal(float)
    ticked = RPCSignal(int)
    noted = RPCSignal(str)
    scanned = RPCSignal(Scan)

    @RPCProperty(notify=level_changed, auto_notify=True)
    @abstractmethod
    def level(self) -> float:
        """Level, V."""

    @level.setter
    @abstractmethod
    def _set_level(self, value: float) -> None: ...

    @RPCProperty
    @abstractmethod
    def broken(self) -> int:
        """Cannot be read."""

    @RPCServer.register_method_json
    @abstractmethod
    def add(self, a: int, b: int = 1) -> int:
        """Sum of two numbers.

        Parameters
        ----------
        b : int, default 1
            The second one.
        """

    @RPCServer.register_method_json
    @abstractmethod
    def scale(self, value: float, factor: float = 2.0) -> float: ...

    @RPCServer.register_method_json
    @abstractmethod
    def echo(self, value: Any) -> Any: ...

    @RPCServer.register_method_json
    @abstractmethod
    def pair(self, value: tuple[int, int]) -> tuple[int, int]: ...

    @RPCServer.register_method_json
    @abstractmethod
    def mode(self, value: Mode) -> Mode: ...

    @RPCServer.register_method_json
    @abstractmethod
    def scan(self, value: Scan) -> Scan: ...

    @RPCServer.register_method_json
    @abstractmethod
    def choice(self, value: Literal["slow", "quick", 3]) -> Literal["slow", "quick", 3]: ...

    @RPCServer.register_method_json
    @abstractmethod
    def moment(self, value: datetime) -> datetime: ...

    @RPCServer.register_method_json
    @abstractmethod
    def maybe(self, value: Point | None) -> Point | None: ...

    @RPCServer.register_method_json
    @abstractmethod
    def nested(self, value: dict[str, list[tuple[Mode, Point]]]) -> dict[str, list[tuple[Mode, Point]]]: ...

    @RPCServer.register_method_json
    @abstractmethod
    def count(self) -> int:
        """How often this was called."""

    @RPCServer.register_method_json(timeout=None)
    @abstractmethod
    def block(self) -> str:
        """Lasts until the device is released."""

    @RPCServer.register_method_json(timeout=100)
    @abstractmethod
    def impatient(self) -> str:
        """As `block`, with clients that wait for 100 ms."""

    @RPCServer.register_method_json(timeout=None)
    @abstractmethod
    def pause(self, seconds: float) -> float: ...

    @RPCServer.register_method_json
    @abstractmethod
    def tick(self, first: int, last: int) -> None:
        """Emit `ticked` with each number from `first` to `last`."""

    @RPCServer.register_method_json
    @abstractmethod
    def fail(self, kind: str, text: str = "") -> None:
        """Raise an exception."""

    @RPCServer.register_method_json
    @abstractmethod
    def unsendable(self, kind: str) -> Any:
        """Return what has no JSON form."""

    @RPCServer.register_method_buffer(timeout=30_000)
    @abstractmethod
    def buffer(self, kind: str, size: int) -> tuple[memoryview, dict[str, Any]]:
        """Bytes 0, 1, 2 … 255, 0 … of that size."""


class DeviceFault(Exception):
    """Not a builtin."""


def _deep() -> list[Any]:
    made: list[Any] = []
    for _ in range(100_000):
        made = [made]
    return made


def pattern(size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """What `buffer` is filled with."""
    return np.resize(np.arange(256, dtype=np.uint8), size)


BUFFERS = {
    "bytes": lambda data: data.tobytes(),
    "bytearray": lambda data: bytearray(data),
    "memoryview": lambda data: data.data,
    "array": lambda data: data,
    "2d": lambda data: data.reshape(2, -1),
    "strided": lambda data: data[::2],
    "text": lambda data: "text",
}
UNSENDABLE = {
    "object": object,
    "lock": threading.Lock,
    "deep": _deep,
    "half a surrogate": lambda: "\ud800",
    "key": lambda: {(1, 2): object()},
}
FAULTS: dict[str, type[BaseException]] = {
    kind.__name__: kind
    for kind in (ValueError, KeyError, UnicodeDecodeError, DeviceFault, SystemExit, KeyboardInterrupt, GeneratorExit)
}


class InstrumentServer(Instrument, RPCServer):
    """The instrument; `entered` and `released` bracket a blocking method, `last` is the last argument that came."""

    def __init__(self, context: Any, url: str, **options: Any) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()
        self.counted = 0
        self.last: Any = None
        self._level = 1.0
        super().__init__(context, url, **options)

    @RPCProperty
    def serial(self) -> str:
        return "SN-1"

    @RPCProperty(notify=Instrument.level_changed, auto_notify=True)
    def level(self) -> float:
        return self._level

    @level.setter
    def _set_level(self, value: float) -> None:
        if value < 0:
            raise ValueError(f"the level is not negative: {value}")
        self._level = value

    @RPCProperty
    def broken(self) -> int:
        raise OSError("the sensor is gone")

    def total(self, *values: int, **named: float) -> float:
        return sum(values) + sum(named.values())

    def add(self, a: int, b: int = 1) -> int:
        return a + b

    def scale(self, value: float, factor: float = 2.0) -> float:
        return value * factor

    def echo(self, value: Any) -> Any:
        self.last = value
        return value

    pair = mode = scan = choice = moment = maybe = nested = echo

    def count(self) -> int:
        self.counted += 1
        return self.counted

    def block(self) -> str:
        self.counted += 1
        self.entered.set()
        self.released.wait(3 * LIMIT)
        return "released"

    impatient = block

    def pause(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def tick(self, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self.ticked.emit(number)

    def fail(self, kind: str, text: str = "") -> None:
        if kind == "UnicodeDecodeError":
            b"\xff".decode()
        text = text.replace("half a surrogate", "\ud800")
        raise FAULTS[kind](text) if text else FAULTS[kind]()

    def unsendable(self, kind: str) -> Any:
        return UNSENDABLE[kind]()

    def buffer(self, kind: str, size: int) -> tuple[memoryview, dict[str, Any]]:
        return BUFFERS[kind](pattern(size)), {"size": size, "error": None}


@RPCClient.register_interface(Instrument)
class InstrumentClient(Instrument, RPCClient):
    """The client of the instrument."""
