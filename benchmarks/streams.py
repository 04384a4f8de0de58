"""Streams of pictures from a camera to readers on the same host: how fast, what is lost, what it costs the camera."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from benchmarks.processes import CameraProcess, Viewer
from benchmarks.results import SHARE, Measurement, Results
from benchmarks.session import Session
from benchmarks.systems import OURS
from rpc_kit.stream_sender import MOST_QUEUED

SHAPE = (1080, 1920, 3)
READERS = 4
EVERY = 3
RATES = {1: 600.0, READERS: 240.0}  # frames/s: a little more than the targets
FLAT_OUT = 1e9
# Frames in a loan, or in an array that the camera writes to again.
LENT, KEPT = "loan", "array"
POLICIES = {"all": 1, "latest": 1, "every": EVERY}
COST_RATE = 100.0  # frames/s, at which nobody is hurried

SMALL = (512, 512)  # 256 KiB: as small as what goes by shared memory
CHUNK = 2_500
FEW, MANY = CHUNK, 40 * CHUNK
SMALL_RATE = 2_500.0
MIB = 1 << 20

Watched = list[dict[str, float]]


class Cinema:
    """A camera, one who lets it film, and readers."""

    def __init__(self, server: CameraProcess, director: Viewer, readers: Sequence[Viewer]) -> None:
        self.server = server
        self.director = director
        self.readers = readers

    def open(self, readers: int, policy: str = "all") -> None:
        """Let so many of the readers read, and the others not."""
        for index, reader in enumerate(self.readers):
            if index < readers:
                reader.run("open", policy=policy, every=POLICIES[policy])
            else:
                reader.run("close")

    def film(
        self, readers: int, count: int, per_second: float, lends: bool, shape: Sequence[int] = SHAPE
    ) -> tuple[float, float, Watched]:
        """Seconds and CPU seconds of the camera for a frame, and what each reader has seen."""
        for reader in self.readers[:readers]:
            reader.start("watch", last=count - 1)
        seconds, cost = self.director.run("film", shape=shape, count=count, per_second=per_second, lends=lends)
        return seconds, cost, [reader.result() for reader in self.readers[:readers]]


@contextmanager
def cinema(readers: int) -> Iterator[Cinema]:
    with ExitStack() as stack:
        server = stack.enter_context(closing(CameraProcess()))
        director, *others = [stack.enter_context(closing(Viewer(server.port))) for _ in range(readers + 1)]
        made = Cinema(server, director, others)
        made.open(readers)
        made.film(readers, 100, COST_RATE, lends=True)  # makes the slots
        yield made


def streams(session: Session) -> Results:
    with cinema(READERS) as made:
        results: Results = {}
        for readers, per_second in RATES.items():
            results |= rate(session, made, readers, per_second)
        return results | policies(session, made) | {"stream_cost": cost(session, made)}


def rate(session: Session, made: Cinema, readers: int, per_second: float) -> Results:
    """At a pace that the readers are to keep up with."""
    count = int(per_second * 4 * session.effort.seconds)
    title = f"1080p RGB to {readers} reader{'s' * (readers > 1)} of all, {per_second:.0f} frames/s offered"
    made.open(readers)

    def film(row: str) -> tuple[int, Watched]:
        return count, made.film(readers, count, per_second, row == LENT)[2]

    return watched(session, f"stream_{readers}", title, [LENT, KEPT], film)


def policies(session: Session, made: Cinema) -> Results:
    """As fast as the camera can: more than anybody takes."""
    count = int(4000 * session.effort.seconds) // EVERY * EVERY + 1  # the last one is one of every third, too

    def film(policy: str) -> tuple[int, Watched]:
        made.open(1, policy)
        return math.ceil(count / POLICIES[policy]), made.film(1, count, FLAT_OUT, lends=True)[2]

    title = f"1080p RGB to 1 reader, flat out; every is one of {EVERY}"
    return watched(session, "stream_flat_out", title, list(POLICIES), film)


def watched(
    session: Session, key: str, title: str, rows: list[str], film: Callable[[str], tuple[int, Watched]]
) -> Results:
    """Of each row: `film` says how many frames each reader wanted, and what it has seen."""
    results = {
        f"{key}_rate": Measurement(title, "frames/s"),
        f"{key}_dropped": Measurement(f"{title}: dropped and reported", SHARE),
        f"{key}_silent": Measurement(f"{title}: lost and not reported", SHARE),
    }

    def sample(row: str) -> Sequence[float]:
        wanted, seen = film(row)
        total = wanted * len(seen)
        received, dropped = (sum(each[name] for each in seen) for name in ("received", "dropped"))
        silent = max(0.0, total - received - dropped)
        return min(each["per_second"] for each in seen), 100 * dropped / total, 100 * silent / total

    session.interleave(list(results.values()), sample, rows, session.effort.rounds)
    return results


def cost_row(kind: str, readers: int) -> str:
    return f"{kind}, {readers} reader{'s' * (readers != 1)}"


def cost(session: Session, made: Cinema) -> Measurement:
    """Of the thread that emits: a loan, a few bytes written, or a copy; and the event put into the readers' queues."""
    measurement = Measurement(f"CPU time of a camera for a frame of 1080p RGB, {COST_RATE:.0f} frames/s", "µs")
    rows = {cost_row(kind, readers): (kind, readers) for kind in (LENT, KEPT) for readers in (0, 1, READERS)}
    count = int(COST_RATE * 2 * session.effort.seconds)

    def sample(row: str) -> tuple[float]:
        kind, readers = rows[row]
        made.open(readers)
        return (1e6 * made.film(readers, count, COST_RATE, kind == LENT)[1],)

    session.interleave([measurement], sample, list(rows), session.effort.rounds)
    return measurement


def fill(made: Cinema) -> None:
    """Have as many frames wait for a reader as ever may: all slots are made now that there will be."""
    made.director.run("film", shape=SMALL, count=2 * MOST_QUEUED, per_second=SMALL_RATE, lends=True)
    made.readers[0].run("watch", last=2 * MOST_QUEUED)


def growth(session: Session) -> Results:
    """Of memory, while many frames go to a reader."""
    count = FEW if session.effort.is_quick else MANY
    title = f"growth over {count:,} frames of 256 KiB"
    results = {
        f"growth_{who}_{count}": Measurement(f"{title}: {what}", "MiB")
        for who, what in (("server", "server"), ("reader", "reader"), ("shm", "shared memory"))
    }
    with cinema(1) as made:
        fill(made)
        made.film(1, CHUNK, SMALL_RATE, lends=True, shape=SMALL)

        def sizes() -> list[float]:
            processes = [made.server.resident(), made.readers[0].resident()]
            return [size / MIB for size in (*processes, made.director.run("shared"))]

        def sample(system: str) -> list[float]:
            before = sizes()
            for _ in range(count // CHUNK):
                _, _, (seen,) = made.film(1, CHUNK, SMALL_RATE, lends=True, shape=SMALL)
                if seen["received"] + seen["dropped"] < CHUNK:
                    session.notes.append(f"{title}: {CHUNK - seen['received'] - seen['dropped']:.0f} frames lost")
            return [after - size for after, size in zip(sizes(), before, strict=True)]

        session.interleave(list(results.values()), sample, [OURS], 1)
    return results
