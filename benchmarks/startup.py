"""What it costs to import the library and to keep a server up."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing

from benchmarks.processes import Client, Server
from benchmarks.results import Measurement, Results
from benchmarks.session import Session
from benchmarks.systems import OURS, RAW

IMPORTS = {OURS: "import rpc_kit", RAW: "import json, zmq"}


def interpreter_seconds(code: str) -> float:
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - before


def import_time(session: Session) -> Results:
    measurement = Measurement("import, minus a bare interpreter", "ms")

    def sample(system: str) -> tuple[float]:
        bare = interpreter_seconds("pass")
        return (1e3 * (interpreter_seconds(IMPORTS[system]) - bare),)

    session.interleave([measurement], sample, list(IMPORTS), session.effort.rounds)
    return {"import": measurement}


def memory(session: Session) -> Results:
    measurement = Measurement("resident memory of a server with 1 idle device", "MB")

    def sample(system: str) -> tuple[float]:
        with closing(Server(system)) as server, closing(Client(system, server.port)) as client:
            client.run("warm_up")  # what is made at the first call counts
            return (server.resident() / 1e6,)

    session.interleave([measurement], sample, session.systems, 1)
    return {"memory": measurement}
