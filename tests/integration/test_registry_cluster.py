"""Two registries on one etcd of three nodes: what happens to devices and look-ups when a part of it dies."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from rpc_kit import RegistryClient
from rpc_kit.errors import RPCError
from rpc_kit.watching import RegistryEvent
from tests.devices import LIMIT, InstrumentServer
from tests.helpers import Program, wait_until
from tests.real.etcd import EtcdCluster

DEVICES = 20
LEASE = 4.0
LONGEST_GAP = 3.0
"""So long look-ups may be interrupted, s."""


@pytest.fixture
def registries(etcd_cluster: EtcdCluster, spawn: Callable[..., Program]) -> list[Program]:
    """Two registry processes that keep their entries in one etcd."""
    store = "etcd:" + ",".join(etcd_cluster.endpoints)
    flags = ["--addr", "127.0.0.1", "--port", "0", "--no-announce", "--log-level", "warning", "--store", store]
    return [spawn("registry", "serve", *flags) for _ in range(2)]


@pytest.fixture
def devices(context: Any, registries: list[Program]) -> Iterator[list[InstrumentServer]]:
    """Devices with short leases, registered at the first of the two."""
    urls = [each.line for each in registries]
    made = [InstrumentServer(context, "tcp://127.0.0.1:0", alive_timeout=LEASE) for _ in range(DEVICES)]
    for number, device in enumerate(made):
        assert f"scope-{number}" == device.register_to_registry("scope", f"scope-{number}", urls)
    yield made
    for device in made:
        device.stop_server()


class LookUps:
    """Looks a device up again and again, and notes for how long it got no fresh answer."""

    def __init__(self, client: RegistryClient) -> None:
        self.longest = 0.0
        self.count = 0
        self._client = client
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended.is_set():
            try:
                fresh = not self._client.find(f"scope-{self.count % DEVICES}").stale
            except RPCError:
                fresh = False
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            if fresh:
                last = now
                self.count += 1

    @contextmanager
    def going_on(self) -> Iterator[None]:
        self._thread.start()
        try:
            wait_until(lambda: self.count > 10)
            yield
            before = self.count
            wait_until(lambda: self.count > before + 10)
        finally:
            self._ended.set()
            self._thread.join(LIMIT)


def seconds_pass(seconds: float) -> None:
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + seconds, seconds + LIMIT)


@pytest.mark.parametrize("loss", ["registry", "leader", "both"])
def test_loss(
    loss: str, context: Any, etcd_cluster: EtcdCluster, registries: list[Program], devices: list[InstrumentServer]
) -> None:
    """A registry and the leader of etcd are killed: no device is lost, look-ups are interrupted for 3 s at most."""
    urls = [each.line for each in registries]
    events: list[RegistryEvent] = []
    with RegistryClient(urls, context) as client, RegistryClient(urls[1], context) as other:
        with other.watch(events.append):
            wait_until(lambda: len(events) == DEVICES)
            uuids = {entry.name: entry.uuid for entry in client.list()}
            look_ups = LookUps(client)
            with look_ups.going_on():
                if loss in ("registry", "both"):
                    registries[0].kill()
                if loss in ("leader", "both"):
                    etcd_cluster.kill(etcd_cluster.leader())
                seconds_pass(1.5 * LEASE)

            assert uuids == {entry.name: entry.uuid for entry in client.list()}
            assert uuids == {device.name: device.uuid for device in devices}
        assert look_ups.longest < LONGEST_GAP
    assert {"added"} == {event.kind for event in events}


def test_same_names_everywhere(context: Any, registries: list[Program]) -> None:
    """What registers here is found there, names are given once, and who goes is gone from both."""
    first, second = (RegistryClient(each.line, context) for each in registries)
    made = [InstrumentServer(context, "tcp://127.0.0.1:0") for _ in range(2)]
    with first, second:
        names = [
            device.register_to_registry("scope", "", each.line) for device, each in zip(made, registries, strict=True)
        ]

        assert ["scope-0", "scope-1"] == names
        assert made[0].uuid == second.wait_for("scope-0", LIMIT).uuid
        assert made[1].uuid == first.wait_for("scope-1", LIMIT).uuid
        made[0].stop_server()
        wait_until(lambda: [["scope-1"]] * 2 == [[e.name for e in each.list()] for each in (first, second)])
        made[1].stop_server()
        wait_until(lambda: [[], []] == [first.list(), second.list()])


def test_all_of_etcd_is_lost(
    context: Any, etcd_cluster: EtcdCluster, registries: list[Program], devices: list[InstrumentServer]
) -> None:
    """Without etcd registries give no old answers as fresh ones; when it is back, so are all devices."""
    urls = [each.line for each in registries]
    with RegistryClient(urls, context) as client:
        assert DEVICES == len(client.list())
        for node in range(3):
            etcd_cluster.kill(node)

        wait_until(lambda: client.find("scope-0").stale, 2 * LIMIT)
        etcd_cluster.start(0, 1, 2)
        wait_until(lambda: not client.find("scope-0").stale, 2 * LIMIT)
        names = [f"scope-{number}" for number in range(DEVICES)]
        wait_until(lambda: names == sorted((e.name for e in client.list()), key=names.index), 2 * LIMIT)
