"""The registry: renewals per second over the wire, and lookups in a table of many devices."""

from __future__ import annotations

import itertools
import json
import random
import time
from contextlib import closing
from statistics import quantiles

import zmq

from benchmarks.processes import RegistryServer
from benchmarks.results import Measurement, Results
from benchmarks.session import Session
from benchmarks.systems import OURS
from registry.table import Table

DEVICES = 1_000
UNDER_WAY = 100  # renewals sent and not answered yet: of many devices, from one socket
TABLE_SIZE = 100_000
LOOKUPS = 20_000
REPLY_LIMIT_MS = 5_000


def registrations(session: Session) -> Results:
    return {"renewals": renewals(session), "lookup": lookup(session)}


def renewals(session: Session) -> Measurement:
    measurement = Measurement(f"registry: renewals of {DEVICES} devices", "renewals/s")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    with closing(RegistryServer()) as server, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.rcvtimeo = REPLY_LIMIT_MS
        socket.connect(f"tcp://127.0.0.1:{server.port}")
        messages = itertools.cycle([renewal(socket, number) for number in range(DEVICES)])

        def sample(system: str) -> tuple[float]:
            start = time.perf_counter()
            end = start + 2 * session.effort.seconds
            for _ in range(UNDER_WAY):
                ask(socket, next(messages))
            answered = 0
            while time.perf_counter() < end:
                answer(socket)
                answered += 1
                ask(socket, next(messages))
            rate = answered / (time.perf_counter() - start)
            for _ in range(UNDER_WAY):
                answer(socket)
            return (rate,)

        session.interleave([measurement], sample, [OURS], session.effort.rounds)
    return measurement


def renewal(socket: zmq.Socket[bytes], number: int) -> bytes:
    """Register a device; the message that renews it."""
    device = {"device_type": "bench", "addr": f"tcp://127.0.0.1:{number + 1}", "name": ""}
    ask(socket, json.dumps({"event": "REGISTER", "payload": device}).encode())
    payload = {"uuid": json.loads(answer(socket))["payload"]["uuid"], "alive_timeout": 60}
    return json.dumps({"event": "CHECK_ALIVE", "payload": payload}).encode()


def ask(socket: zmq.Socket[bytes], message: bytes) -> None:
    # As REQ does it, but without waiting for the reply.
    socket.send(b"", zmq.SNDMORE)
    socket.send(message)


def answer(socket: zmq.Socket[bytes]) -> bytes:
    socket.recv()
    return socket.recv()


def lookup(session: Session) -> Measurement:
    table = Table(time.monotonic)
    for number in range(TABLE_SIZE):
        table.register("bench", f"tcp://127.0.0.1:{number + 1}", f"device-{number}")
    numbers = random.Random(0).choices(range(TABLE_SIZE), k=LOOKUPS)
    measurement = Measurement(f"registry: lookup among {TABLE_SIZE:,}, 99th percentile", "ms")

    def sample(system: str) -> tuple[float]:
        times = []
        for number in numbers:
            name = f"device-{number}"
            before = time.perf_counter()
            entry = table.find(name)
            times.append(1e3 * (time.perf_counter() - before))
            if entry is None:
                raise LookupError(name)
        return (quantiles(times, n=100)[98],)

    session.interleave([measurement], sample, [OURS], session.effort.rounds)
    return measurement
