"""What it costs the calls of a device that it is kept registered."""

from __future__ import annotations

import itertools
from contextlib import closing

from benchmarks.processes import Client, RegisteredServer, RegistryServer, Server
from benchmarks.results import Measurement, Results
from benchmarks.session import Session, one_core
from benchmarks.systems import OURS

LEASE = 0.3  # renewed some ten times a second, where a minute is usual
LONGER = 4  # than other samples: each has its renewals


def heartbeat(session: Session) -> Results:
    title = f"echo of a server that renews a lease of {LEASE:g} s, to one that is not registered"
    results = {"heartbeat_ratio": Measurement(title, "×"), "heartbeat_p99": Measurement(f"{title}, p99", "×")}
    turns = itertools.count()
    with (
        closing(RegistryServer("memory")) as registry,
        closing(RegisteredServer(registry.url, LEASE)) as registered,
        closing(Server(OURS)) as alone,
        closing(Client(OURS, registered.port)) as of_registered,
        closing(Client(OURS, alone.port)) as of_alone,
    ):

        def sample(system: str) -> list[float]:
            times = {}
            # By turns, as who comes second often has a faster core.
            for client in (of_registered, of_alone)[:: 1 if next(turns) % 2 else -1]:
                times[client] = client.run("echo_tail", seconds=LONGER * session.effort.seconds)
            return [with_lease / without for with_lease, without in zip(times[of_registered], times[of_alone])]

        with one_core([registered, alone, of_registered, of_alone]):
            session.interleave(list(results.values()), sample, [OURS], session.effort.rounds)
    return results
