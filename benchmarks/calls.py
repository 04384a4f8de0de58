"""Small calls: one client, many clients, many threads, and the first call of a connection."""

from __future__ import annotations

import time

from benchmarks.processes import Client
from benchmarks.results import Measurement, Results
from benchmarks.session import Session, crowds, one_core
from benchmarks.systems import OURS, RAW

CLIENTS = 8
THREADS = 4
# For the message to reach every client before the start.
LEAD = 0.05


def echo_pinned(session: Session) -> Results:
    measurement = Measurement("echo, server and client pinned to one core", "µs")
    with one_core([*session.servers.values(), *session.clients.values()]):
        measure_echo(session, measurement)
    return {"echo_pinned": measurement}


def echo_free(session: Session) -> Results:
    measurement = Measurement("echo, unpinned", "µs")
    measure_echo(session, measurement)
    return {"echo_free": measurement}


def measure_echo(session: Session, measurement: Measurement) -> None:
    def sample(system: str) -> tuple[float]:
        return (1e6 * session.clients[system].run("echo", seconds=session.effort.seconds),)

    session.interleave([measurement], sample, session.systems, session.effort.rounds)


def call_rate(clients: list[Client], threads: int, seconds: float) -> float:
    start = time.monotonic() + LEAD
    for client in clients:
        client.start("calls", start=start, end=start + seconds, threads=threads)
    counts: list[int] = [client.result() for client in clients]
    return sum(counts) / seconds


def many_clients(session: Session) -> Results:
    measurement = Measurement(f"calls of {CLIENTS} client processes", "calls/s")
    with crowds(session.servers, CLIENTS) as clients:

        def sample(system: str) -> tuple[float]:
            for client in clients[system]:
                client.run("warm_up")
            return (call_rate(clients[system], 1, 2 * session.effort.seconds),)

        session.interleave([measurement], sample, session.systems, session.effort.rounds)
    return {"many_clients": measurement}


def many_threads(session: Session) -> Results:
    measurement = Measurement(f"calls of {THREADS} threads that share a client", "calls/s")

    def sample(system: str) -> tuple[float]:
        return (call_rate([session.clients[system]], THREADS, 2 * session.effort.seconds),)

    session.interleave([measurement], sample, [OURS, RAW], session.effort.rounds)
    return {"many_threads": measurement}


def first_call(session: Session) -> Results:
    measurement = Measurement("connect and first call in a warm process", "ms")

    def sample(system: str) -> tuple[float]:
        return (1e3 * session.clients[system].run("first_call"),)

    session.interleave([measurement], sample, session.systems, session.effort.rounds)
    return {"first_call": measurement}
