"""Programs of the stress test of shared memory: a camera whose pictures have checksums, and viewers of it."""

import argparse
import json
import os
import random
import signal
import threading
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from rpc_kit import RPCClient, RPCServer, RPCSignal
from rpc_kit.errors import RPCError

MEMORY = 48 << 20
"""Less than all viewers together would like to hold, bytes."""
SIZES = (1000, 70_000, 300_000, 1_500_000)
MOST_HELD = 12

Picture = NDArray[np.uint8]


def fill(image: Picture, noise: Picture, start: int) -> None:
    """Some noise, and its checksum before it."""
    image[4:] = noise[start : start + image.size - 4]
    image[:4] = np.frombuffer(zlib.crc32(image[4:]).to_bytes(4, "big"), np.uint8)


def is_right(image: Picture) -> bool:
    return zlib.crc32(image[4:]) == int.from_bytes(image[:4].tobytes(), "big")


class Checked(ABC):
    """A camera whose pictures begin with their checksum."""

    frames = RPCSignal(NDArray[np.uint8])

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def get_image(self, size: int, loan: bool) -> Picture: ...

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def check(self, image: Picture) -> bool:
        """Whether an argument has come as it was sent."""

    @RPCServer.register_method_json(timeout=10_000)
    @abstractmethod
    def halt(self) -> int:
        """Emit nothing more; how many frames there were."""


class CheckedServer(Checked, RPCServer):
    """Emits frames of all kinds from a thread of its own."""

    def __init__(self, context: Any, seed: int) -> None:
        self._random = random.Random(seed)
        self._noise = np.random.default_rng(seed).integers(0, 256, 2 * max(SIZES), np.uint8)
        self._own = {size: np.empty(size, np.uint8) for size in SIZES}
        self._halted = threading.Event()
        self._emitted = 0
        super().__init__(context, "tcp://127.0.0.1:0", shared_memory=MEMORY)
        self.emitting = threading.Thread(target=self._emit)

    def _emit(self) -> None:
        while not self._halted.wait(0.003):
            size = self._random.choice(SIZES)
            image = self.loan(size) if self._random.random() < 0.5 else self._own[size]
            fill(image, self._noise, self._random.randrange(max(SIZES)))
            self.frames.emit(image)
            self._emitted += 1

    def get_image(self, size: int, loan: bool) -> Picture:
        image: Picture = self.loan(size) if loan else np.empty(size, np.uint8)
        fill(image, self._noise, size % 1000)
        return image

    def check(self, image: Picture) -> bool:
        return is_right(image)

    def halt(self) -> int:
        self._halted.set()
        self.emitting.join()
        return self._emitted


@RPCClient.register_interface(Checked)
class CheckedClient(Checked, RPCClient):
    """Its client."""


class Viewer:
    """Does things with pictures at random; `wrong` is what was not as it should be."""

    def __init__(self, client: Any, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._client = client
        self._random = random.Random(seed)
        self._held: list[tuple[Picture, int]] = []
        policy = self._random.choice(["all", "latest", "every"])
        self._stream = client.frames.stream(policy, every=3 if policy == "every" else 1, timeout=5)

    def step(self) -> None:
        name = self._random.choices(
            ["next", "image", "send", "look", "drop", "fork", "reopen"], [40, 10, 5, 20, 20, 1, 1]
        )[0]
        try:
            getattr(self, name)()
        except RPCError as exc:
            self.wrong.append(f"{name}: {exc!r}")
        self.counts[name] += 1

    def take(self, image: Picture) -> None:
        """Look at it, and hold it, a part of it, a copy, or nothing."""
        if not is_right(image) or image.flags.writeable:
            self.wrong.append(f"a picture of {image.size} bytes")
        begin = self._random.randrange(image.size)
        how = self._random.randrange(4)
        if how and len(self._held) < MOST_HELD:
            kept = (image, image[begin:], image[begin:].copy())[how - 1]
            self._held.append((kept, zlib.crc32(kept)))

    def next(self) -> None:
        self.take(next(self._stream))

    def image(self) -> None:
        self.take(self._client.get_image(self._random.choice(SIZES), self._random.random() < 0.5))

    def send(self) -> None:
        """An argument: what is held, or a new one."""
        image = np.empty(self._random.choice(SIZES), np.uint8)
        fill(image, np.zeros(2 * max(SIZES), np.uint8), 0)
        if not self._client.check(image):
            self.wrong.append(f"an argument of {image.size} bytes")

    def look(self) -> None:
        if not all(zlib.crc32(image) == checksum for image, checksum in self._held):
            self.wrong.append("what was held has changed")

    def drop(self) -> None:
        if self._held:
            self._held.pop(self._random.randrange(len(self._held)))

    def fork(self) -> None:
        """A child that looks at what it has inherited, while this process lets go of it."""
        child = os.fork()
        if child == 0:
            right = [zlib.crc32(image) == checksum for image, checksum in 20 * self._held]
            os._exit(0 if all(right) else 1)
        self._held.clear()
        for _ in range(20):
            self.next()
        if os.waitpid(child, 0)[1]:
            self.wrong.append("what a child held has changed")

    def reopen(self) -> None:
        self._stream.close()
        self._stream = self._client.frames.stream("all", timeout=5)


def view(context: Any, options: argparse.Namespace) -> None:
    """Until SIGTERM; then what was done, and what was wrong."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with CheckedClient(context, options.url, 10_000) as client:
        viewer = Viewer(client, options.seed)
        print("viewing", flush=True)
        while not ended.is_set():
            viewer.step()
        paths = client.stats().paths
    print(json.dumps({"counts": viewer.counts, "wrong": viewer.wrong[:10], "paths": paths}), flush=True)


def shoot(context: Any, options: argparse.Namespace) -> None:
    with CheckedServer(context, options.seed) as device:
        print(device.url, flush=True)
        device.emitting.start()
        device.serve_forever()
        device.halt()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["shoot", "view"])
    parser.add_argument("seed", type=int)
    parser.add_argument("--url")
    options = parser.parse_args()
    with zmq.Context() as context:
        {"shoot": shoot, "view": view}[options.role](context, options)


if __name__ == "__main__":
    main()
