"""The registry with many devices: what each of them costs, and how fast it answers."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from benchmarks import lab
from benchmarks.lab import Pipeline
from benchmarks.processes import RegistryServer
from benchmarks.results import Measurement, Results
from benchmarks.session import Session, one_core
from benchmarks.systems import OURS, RAW
from registry.table import Table
from rpc_kit import RegistryClient
from rpc_kit.messages import EventType, Renewal, Renewals
from rpc_kit.registrar import MOST_RENEWALS

UNDER_WAY = 100  # messages of single devices, sent and not answered yet
BATCHES = 2  # the same, of messages of many devices
FIRST = 1_000  # devices
RENEWED = 10  # times, until memory is looked at again
LOOKUPS = 20_000
NAMES = 1_000  # looked up over the wire


class Registry:
    """A registry process, and the devices that are registered there."""

    def __init__(self, store: str, stack: ExitStack) -> None:
        self.server = stack.enter_context(closing(RegistryServer(store)))
        self.pipeline = stack.enter_context(Pipeline(self.server.url))
        self.uuids: list[str] = []
        self.at_first = 0

    def fill(self, devices: int) -> None:
        self.uuids = self.pipeline.register(range(FIRST))
        self.pipeline.rate(self.batched(), BATCHES)
        self.at_first = self.server.resident()
        self.uuids += self.pipeline.register(range(FIRST, devices))
        random.Random(0).shuffle(self.uuids)  # as they come to renew: in no order that would suit a file

    def memory(self) -> float:
        """KiB per device; what is made once, for the first ones, is not counted."""
        return (self.server.resident() - self.at_first) / 1024 / (len(self.uuids) - FIRST)

    def single(self) -> Iterator[bytes]:
        """Messages that renew one device each."""
        return lab.messages_of(EventType.CHECK_ALIVE, (Renewal(uuid, lab.LEASE) for uuid in self.uuids))

    def batched(self) -> Iterator[bytes]:
        """Messages that renew as many devices as our library does with one."""
        starts = range(0, len(self.uuids), MOST_RENEWALS)
        chunks = (self.uuids[start : start + MOST_RENEWALS] for start in starts)
        return lab.messages_of(EventType.RENEW, (Renewals(dict.fromkeys(chunk, lab.LEASE)) for chunk in chunks))


def registrations(session: Session) -> Results:
    with TemporaryDirectory() as folder:
        store = f"sqlite:{Path(folder) / 'registry.sqlite'}"
        with ExitStack() as stack:
            registries = {"SQLite": Registry(store, stack), "memory": Registry("memory", stack)}
            results = memory(session, registries)
            results |= renewals(session, registries)
            results |= find(session, registries["SQLite"])
        results |= start(session, store) | restarted(session, store, registries["SQLite"])
    return results | lookup(session)


def of_all(session: Session, key: str) -> str:
    """The key of what grows with the number of devices: a quick run says nothing of a target for more of them."""
    return f"{key}_{session.effort.devices}"


def memory(session: Session, registries: dict[str, Registry]) -> Results:
    results: Results = {}
    for store, registry in registries.items():
        fill = partial(registry.fill, session.effort.devices)
        results |= memory_of(session, registry, f"entry_{store.lower()}", store, fill)
    return results


def memory_of(session: Session, registry: Registry, key: str, what: str, fill: Callable[[], None]) -> Results:
    title = f"registry: memory per device, {session.effort.devices:,} devices, {what}"
    results = {
        of_all(session, key): Measurement(title, "KiB"),
        of_all(session, f"{key}_renewed"): Measurement(f"{title}, each renewed {RENEWED} times", "KiB"),
    }

    def sample(system: str) -> tuple[float, float]:
        fill()
        registered = registry.memory()
        for _ in range(RENEWED):
            registry.pipeline.rate(registry.batched(), BATCHES)
        return registered, registry.memory()

    session.interleave(list(results.values()), sample, [OURS], 1)
    return results


def renewals(session: Session, registries: dict[str, Registry]) -> Results:
    single = {store: list(registry.single()) for store, registry in registries.items()}
    results = rates(session, registries, "renewals", single, 1, UNDER_WAY)
    batched = {store: list(registry.batched()) for store, registry in registries.items()}
    return results | rates(session, registries, of_all(session, "batched"), batched, MOST_RENEWALS, BATCHES)


def rates(
    session: Session,
    registries: dict[str, Registry],
    key: str,
    messages: dict[str, list[bytes]],
    size: int,
    under_way: int,
) -> Results:
    devices = session.effort.devices
    how = "one by one" if size == 1 else f"{size:,} in a message"
    results = {
        f"{key}_{store.lower()}": Measurement(f"registry: renewals, {how}, {devices:,} devices, {store}", "/s")
        for store in registries
    }
    endless = {store: itertools.cycle(each) for store, each in messages.items()}

    def sample(system: str) -> list[float]:
        return [
            size * registry.pipeline.rate(limited(endless[store], 2 * session.effort.seconds), under_way)
            for store, registry in registries.items()
        ]

    session.interleave(list(results.values()), sample, [OURS], session.effort.rounds)
    return results


def limited(messages: Iterable[bytes], seconds: float) -> Iterator[bytes]:
    """Those that are asked for in that time."""
    end = time.perf_counter() + seconds
    return itertools.takewhile(lambda message: time.perf_counter() < end, messages)


def find(session: Session, registry: Registry) -> Results:
    """Of a client against a registry of many devices; the reference is the echo of a raw client."""
    devices, seconds = session.effort.devices, session.effort.seconds
    names = [lab.name_of(number) for number in random.Random(0).choices(range(devices), k=NAMES)]
    title = f"registry: find over tcp among {devices:,}, and echo of raw pyzmq"

    def sample(system: str) -> tuple[float]:
        client = session.clients[system]
        if system == RAW:
            return (1e6 * client.run("echo", seconds=seconds),)
        return (1e6 * client.run("find", registry=registry.server.url, names=names, seconds=seconds),)

    pinned, free = Measurement(f"{title}, pinned to one core", "µs"), Measurement(f"{title}, unpinned", "µs")
    clients = [session.clients[system] for system in (OURS, RAW)]
    with one_core([registry.server, session.servers[RAW], *clients]):
        session.interleave([pinned], sample, [OURS, RAW], session.effort.rounds)
    session.interleave([free], sample, [OURS, RAW], session.effort.rounds)
    return {"find_pinned": pinned, "find_free": free}


def start(session: Session, store: str) -> Results:
    """Of the process, until it can be asked."""
    measurement = Measurement(f"registry: start with {session.effort.devices:,} stored devices", "s")
    last = lab.name_of(session.effort.devices - 1)

    def sample(system: str) -> tuple[float]:
        before = time.perf_counter()
        with closing(RegistryServer(store)) as server:
            seconds = time.perf_counter() - before
            with RegistryClient(server.url) as client:
                client.find(last)
        return (seconds,)

    session.interleave([measurement], sample, [OURS], session.effort.rounds)
    return {of_all(session, "registry_start"): measurement}


def restarted(session: Session, store: str, before: Registry) -> Results:
    """Memory again, as entries that were read differ from those that were received."""
    with ExitStack() as stack:
        registry = Registry(store, stack)
        registry.uuids, registry.at_first = before.uuids, before.at_first
        return memory_of(session, registry, "entry_restarted", "SQLite, restarted", lambda: None)


def lookup(session: Session) -> Results:
    table = Table(time.monotonic)
    devices = session.effort.devices
    for number in range(devices):
        table.apply(table.plan(lab.device(number), time.time()))
    names = [lab.name_of(number) for number in random.Random(0).choices(range(devices), k=LOOKUPS)]
    measurement = Measurement(f"registry: find in a table of {devices:,}, 99th percentile", "ms")

    def sample(system: str) -> tuple[float]:
        times = []
        for name in names:
            before = time.perf_counter()
            entry = table.find(name)
            times.append(1e3 * (time.perf_counter() - before))
            if entry is None:
                raise LookupError(name)
        return (quantiles(times, n=100)[98],)

    session.interleave([measurement], sample, [OURS], session.effort.rounds)
    return {of_all(session, "lookup"): measurement}
