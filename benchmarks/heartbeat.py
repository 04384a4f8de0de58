"""What it costs the calls of a device that it is kept registered."""

from __future__ import annotations

from contextlib import ExitStack, closing
from statistics import median

from benchmarks.processes import Client, RegisteredServer, RegistryServer, Server
from benchmarks.results import Measurement, Results
from benchmarks.session import Session, one_core
from benchmarks.systems import OURS

LEASE = 0.3  # renewed some ten times a second, where a minute is usual
SLICE = 0.125  # s of echoes, in which at least one renewal falls


def heartbeat(session: Session) -> Results:
    title = f"echo of a server that renews a lease of {LEASE:g} s, to one that is not registered"
    results = {
        "heartbeat": Measurement(f"{title}: median", "×"),
        "heartbeat_p99": Measurement(f"{title}: 99th percentile", "×"),
    }
    with closing(RegistryServer("memory")) as registry:

        def sample(system: str) -> list[float]:
            return compare(registry, session.effort.rounds // 3)

        session.interleave(list(results.values()), sample, [OURS], session.effort.rounds)
    return results


def compare(registry: RegistryServer, turns: int) -> list[float]:
    """The ratios of median and 99th percentile; with new processes each time, as two alike differ by some percent."""
    with ExitStack() as stack:
        servers: dict[bool, Server | RegisteredServer] = {
            True: stack.enter_context(closing(RegisteredServer(registry.url, LEASE))),
            False: stack.enter_context(closing(Server(OURS))),
        }
        clients = {kept: stack.enter_context(closing(Client(OURS, each.port))) for kept, each in servers.items()}
        times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        with one_core([*servers.values(), *clients.values()]):
            for kept in (True, False, False, True) * turns:  # what drifts cancels out
                times[kept].append(clients[kept].run("echo_tail", seconds=SLICE))
    return [median(mine) / median(others) for mine, others in zip(zip(*times[True]), zip(*times[False]))]
