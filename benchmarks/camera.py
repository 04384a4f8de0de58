"""A camera of ours, which gives and takes arrays in every way there is."""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod

import numpy as np
import zmq
from numpy.typing import NDArray

from benchmarks.system import paced
from rpc_kit import RPCClient, RPCServer, RPCSignal, sockets, transfer

Pixels = NDArray[np.uint8]


def set_number(frame: Pixels, number: int) -> None:
    """Write a number into the first pixels."""
    frame.reshape(-1)[:8].view(np.int64)[0] = number


def number_of(frame: Pixels) -> int:
    return int(frame.reshape(-1)[:8].view(np.int64)[0])


@functools.cache
def pixels(*shape: int) -> Pixels:
    """An ordinary array, whose memory is there already."""
    return np.full(shape, 7, np.uint8)


@functools.cache
def fixed_pixels(*shape: int) -> Pixels:
    """An array that nobody can change: a read-only view of what its owner may write to would be copied."""
    return np.frombuffer(pixels(*shape).tobytes(), np.uint8).reshape(shape)


class Camera(ABC):
    frames = RPCSignal(NDArray[np.uint8])

    @RPCServer.register_method_json
    @abstractmethod
    def nothing(self) -> None: ...

    @RPCServer.register_method_json
    @abstractmethod
    def lent(self, shape: list[int]) -> Pixels:
        """A frame that is written where the client reads it."""

    @RPCServer.register_method_json
    @abstractmethod
    def kept(self, shape: list[int]) -> Pixels:
        """A frame that the camera goes on writing to: an ordinary array."""

    @RPCServer.register_method_json
    @abstractmethod
    def fixed(self, shape: list[int]) -> Pixels:
        """A frame that nobody writes to any more."""

    @RPCServer.register_method_json
    @abstractmethod
    def store(self, frame: Pixels) -> int:
        """Take a frame; its number."""

    @RPCServer.register_method_json(timeout=None)
    @abstractmethod
    def film(self, shape: list[int], count: int, per_second: float, lends: bool) -> tuple[float, float]:
        """Emit frames, numbered; seconds that it takes, and CPU time of the emitting thread, for each."""

    @RPCServer.register_method_json
    @abstractmethod
    def tune(self, shared_from: int, zero_copy: int) -> None:
        """Change the sizes from which another way is taken."""

    @RPCServer.register_method_json
    @abstractmethod
    def shared(self) -> int:
        """Bytes of shared memory."""


class CameraServer(Camera, RPCServer):
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        super().__init__(context, "tcp://127.0.0.1:0")

    def nothing(self) -> None:
        pass

    def lent(self, shape: list[int]) -> Pixels:
        frame: Pixels = self.loan(shape)
        set_number(frame, 7)
        return frame

    def kept(self, shape: list[int]) -> Pixels:
        return pixels(*shape)

    def fixed(self, shape: list[int]) -> Pixels:
        return fixed_pixels(*shape)

    def store(self, frame: Pixels) -> int:
        return number_of(frame)

    def film(self, shape: list[int], count: int, per_second: float, lends: bool) -> tuple[float, float]:
        kept, spent, started = pixels(*shape), 0.0, time.perf_counter()
        for number in paced(count, per_second):
            before = time.thread_time()
            frame = self.loan(shape) if lends else kept
            set_number(frame, number)
            self.frames.emit(frame)
            spent += time.thread_time() - before
        return (time.perf_counter() - started) / count, spent / count

    def tune(self, shared_from: int, zero_copy: int) -> None:
        set_thresholds(shared_from, zero_copy)

    def shared(self) -> int:
        usage = self.stats()["shm"]
        return int(usage["size"])


def set_thresholds(shared_from: int, zero_copy: int) -> None:
    """Change, in this process, the sizes from which another way is taken."""
    transfer.SHARED_FROM, sockets.ZERO_COPY = shared_from, zero_copy


@RPCClient.register_interface(Camera)
class CameraClient(Camera, RPCClient):
    pass
