"""The targets, stated as ratios where the machine matters and as amounts where the user would feel them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    Target("connect and first call", ours("first_call"), 5.0, "ms"),
    Target("server memory, 1 idle device", ours("memory"), 45, "MB"),
    Target("import of rpc_kit", ours("import"), 150, "ms"),
)
