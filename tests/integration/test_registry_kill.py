"""SQLite and kill -9 at random moments: nothing is lost that was acknowledged, and nothing is half done."""

import contextlib
import itertools
import json
import os
import random
import select
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import zmq

from tests.devices import LIMIT
from tests.helpers import PROJECT, Peer, call, request

ROUNDS = 100
"""Of each of two files."""
CLIENTS = 6
ADDRESSES = 8
"""Of each client."""
LONGEST_START, LONGEST_LIFE = 0.06, 0.1
"""A registry is killed within so many seconds after it was started, or has begun to serve."""
NURSERY = """
import os, signal, sys
from registry.cli import main

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(main(line.split()))
    next(sys.stdin, None)
    os.kill(child, signal.SIGKILL)
    # In a line of its own: the child may have been killed in the midst of one.
    print("\\nended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Starts registries one after the other, each in a tenth of the time that Python takes to start and import."""


class Nursery:
    """A process whose children are registries with one file."""

    def __init__(self, file: Path) -> None:
        options = ["--addr", "127.0.0.1", "--port", "0", "--no-announce", "--log-level", "warning"]
        self._arguments = " ".join(["serve", *options, "--store", f"sqlite:{file}"])
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
            env={**os.environ, "XDG_CONFIG_HOME": str(file.parent)},
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._orders, self.output = self._process.stdin, self._process.stdout
        self._read = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        _, errors = self._process.communicate(timeout=LIMIT)
        assert b"" == errors

    def start(self) -> None:
        """Start a registry; it does not serve yet."""
        self._order(self._arguments)

    def url(self) -> str:
        """Where it serves."""
        line = self._line()
        assert line.startswith("tcp://"), line
        return line

    def kill(self) -> None:
        """Have it killed, whatever it does; `output` has something to say when it is dead."""
        self._order("kill")

    def check_killed(self) -> None:
        """It has ended by that, and not before."""
        ended = next(line for line in iter(self._line, None) if line.startswith("ended"))
        assert "ended -9" == ended

    def _order(self, line: str) -> None:
        self._orders.write(f"{line}\n".encode())

    def _line(self) -> str:
        while b"\n" not in self._read:
            assert select.select([self.output], [], [], LIMIT)[0], "the registry says nothing"
            read = os.read(self.output.fileno(), 4096)
            assert read, "whoever starts registries has ended"
            self._read += read
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()


Devices = dict[str, tuple[str, str]]
"""Address to name and uuid; the uuid is empty when nobody was told."""


@dataclass
class Client:
    """Has one request under way at a time, about addresses of its own, and knows what the registry has to know.

    Attributes
    ----------
    acknowledged, wanted : Devices
        What there is when the request under way is not executed, and when it is.
    """

    number: int
    random: random.Random
    acknowledged: Devices = field(default_factory=dict)
    wanted: Devices = field(default_factory=dict)
    event: str = ""
    address: str = ""
    answered: int = 0
    executed_unseen: int = 0

    def next_request(self) -> bytes:
        """Any change."""
        self.address = f"tcp://client{self.number}:{self.random.randrange(ADDRESSES)}"
        _, uuid = self.acknowledged.get(self.address, ("", ""))
        known = ["REGISTER", "UPDATE", "RENEW", "CHECK_ALIVE", "UNREGISTER"]
        self.event = self.random.choice(known if uuid else ["REGISTER"])
        self.wanted = dict(self.acknowledged)
        if self.event == "RENEW":
            return request("RENEW", payload={"leases": {each: 600 for _, each in self.acknowledged.values()}})
        if self.event == "CHECK_ALIVE":
            return request("CHECK_ALIVE", payload={"uuid": uuid, "alive_timeout": 600})
        if self.event == "UNREGISTER":
            del self.wanted[self.address]
            return request("UNREGISTER", payload={"uuid": uuid})
        asked = {"device_type": "camera", "addr": self.address, "alive_timeout": 600, "metadata": {"note": "x" * 500}}
        base = f"name{self.number}"
        if self.event == "UPDATE":
            return request("REGISTER", payload={**asked, "name": base, "uuid": uuid})
        self.wanted.pop(self.address, None)
        overwrite = self.random.random() < 0.3
        if overwrite:
            self.wanted = {address: device for address, device in self.wanted.items() if device[0] != base}
        self.wanted[self.address] = (lowest_free({name for name, _ in self.wanted.values()}, base), "")
        return request("REGISTER", payload={**asked, "name": base, "overwrite": overwrite})

    def take(self, reply: dict[str, Any]) -> None:
        """The request was executed."""
        payload = reply["payload"]
        if self.event in ("REGISTER", "UPDATE"):
            name, uuid = self.wanted[self.address]
            assert (reply["event"], payload["name"]) == ("REGISTER_ACK", name), reply
            assert uuid in ("", payload["uuid"])
            self.wanted[self.address] = (name, payload["uuid"])
        else:
            assert payload["success"], reply
        self.acknowledged = self.wanted
        self.answered += 1

    def check(self, found: Devices) -> None:
        """What was acknowledged is there, and of the request that was under way all or nothing."""
        uuids = {address: uuid for address, (_, uuid) in found.items()}
        done = {address: (name, uuid or uuids.get(address, "")) for address, (name, uuid) in self.wanted.items()}
        assert found in (self.acknowledged, done), f"{self.event} {self.address}: {self.acknowledged} or {done}"
        self.executed_unseen += found != self.acknowledged
        self.acknowledged = self.wanted = found


def lowest_free(taken: set[str], base: str) -> str:
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(1)))
    return next(name for name in names if name not in taken)


def check(url: str, context: Any, clients: list[Client]) -> None:
    """Everything that was acknowledged is there after a restart, and every uuid means what it meant."""
    with Peer(context, url, zmq.REQ) as peer:
        listed = peer.ask(call("list"))["result"]
        assert len(listed) == len({each["name"] for each in listed}) == len({each["address"] for each in listed})
        for client in clients:
            own = [each for each in listed if each["address"].startswith(f"tcp://client{client.number}:")]
            client.check({each["address"]: (each["name"], each["uuid"]) for each in own})
        leases = {uuid: 600 for client in clients for _, uuid in client.acknowledged.values()}
        reply = peer.ask(request("RENEW", payload={"leases": leases}))
        assert {"req_event": "RENEW", "success": True, "unknown": []} == reply["payload"]


def work_until_killed(nursery: Nursery, url: str, context: Any, clients: list[Client], seconds: float) -> None:
    """The clients ask as fast as they can, and in the midst of it the registry is killed."""
    poller = zmq.Poller()
    poller.register(nursery.output.fileno(), zmq.POLLIN)
    with contextlib.ExitStack() as stack:
        working = {}
        for client in clients:
            peer = stack.enter_context(Peer(context, url))
            peer.send(b"", client.next_request())
            poller.register(peer.socket, zmq.POLLIN)
            working[peer.socket] = client
        end, is_killed, is_dead = time.monotonic() + seconds, False, False
        while not is_dead:
            assert time.monotonic() < end + LIMIT
            if not is_killed and time.monotonic() > end:
                nursery.kill()
                is_killed = True
            for ready, _ in poller.poll(1):
                is_dead |= ready == nursery.output.fileno()
                if ready in working:
                    working[ready].take(json.loads(ready.recv_multipart()[-1]))
                    ready.send_multipart([b"", working[ready].next_request()])
        nursery.check_killed()


def rounds(file: Path, seed: int) -> tuple[int, int]:
    """Kill a registry again and again; how many requests were answered, and how many executed without an answer."""
    chance = random.Random(seed)
    clients = [Client(number, chance) for number in range(CLIENTS)]
    with zmq.Context() as context, Nursery(file) as nursery:
        for number in range(ROUNDS):
            try:
                nursery.start()
                if chance.random() < 0.25:
                    threading.Event().wait(chance.uniform(0, LONGEST_START))  # for chance, not for an event
                    nursery.kill()
                    nursery.check_killed()
                    continue
                url = nursery.url()
                check(url, context, clients)
                work_until_killed(nursery, url, context, clients, chance.uniform(0, LONGEST_LIFE))
            except AssertionError as exc:
                raise AssertionError(f"round {number} with the seed {seed}: {exc}") from exc
        nursery.start()
        check(nursery.url(), context, clients)
        nursery.kill()
        nursery.check_killed()
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
    return sum(client.answered for client in clients), sum(client.executed_unseen for client in clients)


def test_kill_at_random_moments(tmp_path: Path) -> None:
    """After each of 200 deaths all that was acknowledged is as it was, and of every other request all or nothing."""
    seeds = [random.randrange(1 << 32) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda seed: rounds(tmp_path / f"{seed}.sqlite", seed), seeds))

    assert min(answered for answered, _ in results) > 10 * ROUNDS, seeds
    # Some came between the change and its reply.
    assert sum(unseen for _, unseen in results) > 0, seeds
