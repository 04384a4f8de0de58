"""Images of camera size: got over tcp by all systems, and in every way there is to a camera of ours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing

from benchmarks.processes import CameraProcess, Viewer
from benchmarks.results import Measurement, Results
from benchmarks.session import Session
from benchmarks.systems import RAW
from benchmarks.ways import IPC, SHM, TCP

SIZES = {"image_1": 1_000_000, "image_8": 8_000_000, "image_25": 24_900_000}

# Rows of the tables of our camera.
EMPTY = "empty call"
IN_PLACE = "in place"
ONE_COPY = "one copy"
TCP_LOAN = "tcp, loan"
TCP_FIXED = "tcp, read-only"
TCP_ARRAY = "tcp, array"
WAYS = {
    IN_PLACE: ("lent", SHM),
    ONE_COPY: ("kept", SHM),
    TCP_LOAN: ("lent", TCP),
    TCP_FIXED: ("fixed", TCP),
    TCP_ARRAY: ("kept", TCP),
}
FRAMES = {"camera_1": (640, 520, 3), "camera_6": (1080, 1920, 3), "camera_25": (2160, 3840, 3)}
ARGUMENT = {"shm": SHM, "ipc": IPC, "tcp": TCP}

KIB = 1 << 10
SWEPT = [16, 32, 64, 128, 256, 512, 1024, 6075, 24300]  # KiB; the last ones are 1080p and 2160p
SWEPT_QUICK = [32, 128, 1024]
NEVER = 1 << 40
THRESHOLDS = {  # way, from where on slots are used, from where on libzmq does not copy
    "shm": (SHM, 1, 1),
    "ipc, copied": (IPC, NEVER, NEVER),
    "ipc, not copied": (IPC, NEVER, 1),
    "tcp, copied": (TCP, NEVER, NEVER),
    "tcp, not copied": (TCP, NEVER, 1),
}


def images(session: Session) -> Results:
    return {key: measure_image(session, size) for key, size in SIZES.items()}


def measure_image(session: Session, size: int) -> Measurement:
    measurement = Measurement(f"image of {size / 1e6:g} MB over tcp", "ms")

    def sample(system: str) -> tuple[float]:
        return (1e3 * session.clients[system].run("image", size=size, seconds=session.effort.seconds),)

    # The first one makes the frame and grows the memory of both sides.
    session.interleave([Measurement(f"warming up: {measurement.title}", "")], sample, session.systems, 1)
    session.interleave([measurement], sample, session.systems, session.effort.image_rounds)
    return measurement


def camera(session: Session) -> Results:
    with closing(CameraProcess()) as server, closing(Viewer(server.port)) as viewer:
        got = {key: frames_got(session, viewer, shape) for key, shape in FRAMES.items()}
        return got | {"argument_25": frame_given(session, viewer, FRAMES["camera_25"])}


def megabytes(shape: Sequence[int]) -> str:
    return f"{math.prod(shape) / 1e6:.3g} MB"


def frames_got(session: Session, viewer: Viewer, shape: Sequence[int]) -> Measurement:
    """The reference is the image of raw pyzmq, of the same size, over tcp and without a copy."""
    measurement = Measurement(f"array of {megabytes(shape)} from a camera on this host", "µs")
    seconds = session.effort.seconds

    def sample(row: str) -> tuple[float]:
        if row == RAW:
            return (1e6 * session.clients[RAW].run("image", size=math.prod(shape), seconds=seconds),)
        if row == EMPTY:
            return (1e6 * viewer.run("nothing", seconds=seconds),)
        what, way = WAYS[row]
        return (1e6 * viewer.run("get", what=what, way=way, shape=shape, seconds=seconds),)

    session.interleave([measurement], sample, [EMPTY, *WAYS, RAW], session.effort.rounds)
    return measurement


def frame_given(session: Session, viewer: Viewer, shape: Sequence[int]) -> Measurement:
    measurement = Measurement(f"array of {megabytes(shape)} as an argument", "µs")
    seconds = session.effort.seconds

    def sample(row: str) -> tuple[float]:
        if row == RAW:
            return (1e6 * session.clients[RAW].run("store", size=math.prod(shape), seconds=seconds),)
        return (1e6 * viewer.run("put", way=ARGUMENT[row], shape=shape, seconds=seconds),)

    session.interleave([measurement], sample, [*ARGUMENT, RAW], session.effort.rounds)
    return measurement


def thresholds(session: Session) -> Results:
    """What `transfer.SHARED_FROM` and `sockets.ZERO_COPY` are chosen by."""
    with closing(CameraProcess()) as server, closing(Viewer(server.port)) as viewer:
        swept = SWEPT_QUICK if session.effort.is_quick else SWEPT
        return {f"threshold_{size}": by_each_way(session, viewer, size) for size in swept}


def by_each_way(session: Session, viewer: Viewer, size: int) -> Measurement:
    measurement = Measurement(f"ordinary array of {size} KiB, by each way", "µs")

    def sample(row: str) -> tuple[float]:
        way, shared_from, zero_copy = THRESHOLDS[row]
        viewer.run("tune", shared_from=shared_from, zero_copy=zero_copy)
        return (
            1e6 * viewer.run("get", what="kept", way=way, shape=[size * KIB], seconds=session.effort.seconds / 2),
        )

    session.interleave([measurement], sample, list(THRESHOLDS), session.effort.rounds)
    return measurement
