"""The targets, stated as ratios where the machine matters and as amounts where the user would feel them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import images, streams
from benchmarks.results import Results
from benchmarks.systems import OURS, RAW

Value = Callable[[Results], float | None]
# After all that a registry may have gone through.
ENTRIES = tuple(f"entry_{state}_100000" for state in ("sqlite", "sqlite_renewed", "restarted", "restarted_renewed"))
# Those that an unpinned echo has to stay ahead of.
PEERS = ("pyro5-serpent", "rpyc", "grpc", "zerorpc")


@dataclass(frozen=True, slots=True)
class Target:
    """One bound, and how to find the figure that it bounds."""

    what: str
    value: Value
    bound: float
    unit: str
    at_least: bool = False

    def verdict(self, results: Results) -> tuple[float | None, str]:
        """The figure, and whether it keeps the bound."""
        value = self.value(results)
        if value is None:
            return None, "not measured"
        kept = value >= self.bound if self.at_least else value <= self.bound
        return value, "met" if kept else "MISSED"


def ours(key: str) -> Value:
    return lambda results: results[key].value(OURS) if key in results else None


def most(*keys: str) -> Value:
    def value(results: Results) -> float | None:
        values = [ours(key)(results) for key in keys]
        return max((each for each in values if each is not None), default=None)

    return value


def ratio(key: str, other: str = RAW) -> Value:
    return lambda results: results[key].ratio(OURS, other) if key in results else None


def worst_ratio(key: str, others: tuple[str, ...]) -> Value:
    def value(results: Results) -> float | None:
        ratios = [ratio(key, other)(results) for other in others]
        return max((each for each in ratios if each is not None), default=None)

    return value


def of_row(key: str, row: str, other: str) -> Value:
    """The ratio of two rows of one table."""
    return lambda results: results[key].ratio(row, other) if key in results else None


def slowest(key: str) -> Value:
    """The row of the smallest median."""

    def value(results: Results) -> float | None:
        rows = results[key].samples if key in results else ()
        return min((results[key].value(row) or 0.0 for row in rows), default=None)

    return value


def worst(*keys: str) -> Value:
    """The largest sample of all rows and rounds: once is too often."""

    def value(results: Results) -> float | None:
        rows = [row for key in keys if key in results for row in results[key].samples.values()]
        return max((sample for row in rows for sample in row), default=None)

    return value


LARGE = "camera_25"
SMALL = "camera_1"
LOST = [f"stream_{readers}_{how}" for readers in streams.RATES for how in ("dropped", "silent")]


def cost_of_readers(kind: str) -> Value:
    return of_row("stream_cost", streams.cost_row(kind, streams.READERS), streams.cost_row(kind, 1))


TARGETS = (
    Target("echo, one core / raw", ratio("echo_pinned"), 0.90, "×"),
    Target("echo, unpinned / raw", ratio("echo_free"), 1.0, "×"),
    Target("echo, unpinned / best peer", worst_ratio("echo_free", PEERS), 1.0, "×"),
    Target("8 clients / raw", ratio("many_clients"), 1.1, "×", at_least=True),
    Target("4 threads, one client / one locked socket", ratio("many_threads"), 3.0, "×", at_least=True),
    Target("PING while a method runs, p99", ours("ping_p99"), 5.0, "ms"),
    Target("signal, one core / raw PUB/SUB", ratio("signal_pinned"), 1.2, "×"),
    Target("signals received, 1 subscriber", ours("paced_rate"), 10_000, "events/s", at_least=True),
    Target("signals lost silently at that rate", ours("paced_silent"), 0, "%"),
    Target("registry: renewals one by one, SQLite", ours("renewals_sqlite"), 10_000, "/s", at_least=True),
    Target("registry: renewals one by one, memory", ours("renewals_memory"), 10_000, "/s", at_least=True),
    Target("registry: renewals in batches, SQLite", ours("batched_100000_sqlite"), 50_000, "/s", at_least=True),
    Target("registry: find in a table of 100 000, p99", ours("lookup_100000"), 1.0, "ms"),
    Target("registry: find, one core / raw echo", ratio("find_pinned"), 2.0, "×"),
    Target("registry: find, unpinned / raw echo", ratio("find_free"), 2.0, "×"),
    Target("registry: memory per device of 100 000", most(*ENTRIES), 2.0, "KiB"),
    Target("registry: start with 100 000 devices", ours("registry_start_100000"), 3.0, "s"),
    Target("echo of a registered server / of another", ours("heartbeat"), 1.05, "×"),
    Target("image of 24.9 MB over tcp / raw copy=False", ratio("image_25"), 1.15, "×"),
    Target("24.9 MB in place / empty call", of_row(LARGE, images.IN_PLACE, images.EMPTY), 1.5, "×"),
    Target("24.9 MB with one copy / raw over tcp", of_row(LARGE, images.ONE_COPY, RAW), 0.5, "×"),
    Target("24.9 MB over tcp, loan / raw", of_row(LARGE, images.TCP_LOAN, RAW), 1.15, "×"),
    Target("24.9 MB over tcp, read-only / raw", of_row(LARGE, images.TCP_FIXED, RAW), 1.15, "×"),
    Target("1 MB in place / empty call", of_row(SMALL, images.IN_PLACE, images.EMPTY), 1.3, "×"),
    Target("1080p RGB to 1 reader of all", slowest("stream_1_rate"), 500, "frames/s", at_least=True),
    Target("1080p RGB to each of 4 readers of all", slowest("stream_4_rate"), 200, "frames/s", at_least=True),
    Target("frames lost at these rates, in any round", worst(*LOST), 0, "%"),
    Target("camera: CPU time, 4 readers / 1, loan", cost_of_readers(streams.LENT), 1.1, "×"),
    Target("camera: CPU time, 4 readers / 1, array", cost_of_readers(streams.KEPT), 1.1, "×"),
    Target("memory after 100 000 frames: server", ours("growth_server_100000"), 1, "MiB"),
    Target("memory after 100 000 frames: reader", ours("growth_reader_100000"), 1, "MiB"),
    Target("shared memory after 100 000 frames", ours("growth_shm_100000"), 1, "MiB"),
    Target("connect and first call", ours("first_call"), 5.0, "ms"),
    Target("server memory, 1 idle device", ours("memory"), 45, "MB"),
    Target("import of rpc_kit", ours("import"), 150, "ms"),
)
