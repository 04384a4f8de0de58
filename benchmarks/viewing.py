"""What a client process of the camera can be asked to do: ``python -m benchmarks.viewing PORT``; times are seconds."""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import zmq

from benchmarks.camera import CameraClient, number_of, pixels, set_number, set_thresholds
from benchmarks.ways import IPC, SHM, TCP, check_way, go_by
from benchmarks.worker import work
from rpc_kit.errors import CallTimeout
from rpc_kit.messages import Policy

WARM_UP = 5
QUIET = 1.0  # without a frame for so long, no more are expected


class Viewing:
    """Clients of a camera, one for each way to it, and a stream; every public method is a task."""

    def __init__(self, port: int) -> None:
        self._clients: dict[str, CameraClient] = {}
        for way in (SHM, IPC, TCP):
            client = self._clients[way] = CameraClient(zmq.Context.instance(), f"tcp://127.0.0.1:{port}", timeout=5000)
            go_by(client, way)
        self._camera = self._clients[SHM]
        self._stream: Any = None

    def nothing(self, seconds: float) -> float:
        """Median time of an empty call."""
        call = self._camera.nothing
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < WARM_UP or time.perf_counter() < end:
            before = time.perf_counter()
            call()
            times.append(time.perf_counter() - before)
        return median(times)

    def get(self, what: str, way: str, shape: list[int], seconds: float, checked: bool = True) -> float:
        """Median time of getting a frame, after the first ones."""
        client = self._clients[way]
        call = getattr(client, what)
        call(shape)
        client._rpc.stats.paths.clear()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < WARM_UP or time.perf_counter() < end:
            before = time.perf_counter()
            frame = call(shape)
            times.append(time.perf_counter() - before)
            if frame.shape != tuple(shape) or frame.item(0) != 7:
                raise ValueError("another frame was got")
            del frame  # or the next one could not reuse its memory
        if checked:
            check_way(client, what, way)
        return median(times)

    def put(self, way: str, shape: list[int], seconds: float) -> float:
        """Median time of giving a frame away."""
        client, frame = self._clients[way], pixels(*shape)
        # Only a server makes slots. It may still hold the last argument, and one for its next loan.
        slots = [self._camera.lent(shape) for _ in range(4)]
        del slots
        client._rpc.stats.paths.clear()
        times: list[float] = []
        end = time.perf_counter() + seconds
        while len(times) < WARM_UP or time.perf_counter() < end:
            set_number(frame, len(times))
            before = time.perf_counter()
            stored = client.store(frame)
            times.append(time.perf_counter() - before)
            if stored != len(times) - 1:
                raise ValueError("another frame was stored")
        check_way(client, "store", way)
        return median(times)

    def tune(self, shared_from: int, zero_copy: int) -> None:
        """Change at both ends the sizes from which another way is taken."""
        self._camera.tune(shared_from, zero_copy)
        set_thresholds(shared_from, zero_copy)

    def film(self, shape: list[int], count: int, per_second: float, lends: bool) -> tuple[float, float]:
        """Let the camera emit; seconds and CPU seconds of each frame."""
        return self._camera.film(shape, count, per_second, lends)

    def shared(self) -> int:
        """Bytes of shared memory."""
        return self._camera.shared()

    def open(self, policy: Policy, every: int = 1) -> None:
        """Open a stream, in the place of the one before."""
        self.close()
        self._stream = self._camera.frames.stream(policy=policy, every=every, timeout=QUIET)

    def close(self) -> None:
        """Read no more."""
        if self._stream is not None:
            self._stream.close()

    def watch(self, last: int) -> dict[str, float]:
        """Read until the frame of that number has come, or none any more: what was read and what was reported lost."""
        stream = self._stream
        received, dropped = stream.received, stream.dropped
        times: list[float] = []
        before = -1
        try:
            for frame in stream:
                times.append(time.perf_counter())
                number = number_of(frame)
                if number <= before:
                    raise ValueError(f"frame {number} came after {before}")
                before = number
                del frame
                if number >= last:
                    break
        except CallTimeout:
            pass
        return {
            "received": stream.received - received,
            "dropped": stream.dropped - dropped,
            "per_second": (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0,
        }


if __name__ == "__main__":
    work(lambda: Viewing(int(sys.argv[1])))
