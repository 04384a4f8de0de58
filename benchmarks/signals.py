"""Signals: how late, how many per second, how many lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from benchmarks.processes import Client, Server
from benchmarks.results import SHARE, Measurement, Results
from benchmarks.session import Session, crowds, one_core
from benchmarks.systems import OURS, RAW

SYSTEMS = (OURS, RAW)
SUBSCRIBERS = 10
LEISURELY = 500.0  # events/s: each one finds everybody asleep
PACE = 12_000.0  # a little more than the target
FLAT_OUT = 1e9


class Audience:
    """Servers of their own, with exactly so many subscribers, of which the first asks for the events."""

    def __init__(self, servers: dict[str, Server], clients: dict[str, list[Client]]) -> None:
        self.servers = servers
        self.clients = clients

    def emit(self, system: str, count: int, per_second: float) -> list[dict[str, float]]:
        """Emit events; what each subscriber heard of them."""
        clients = self.clients[system]
        for client in clients:
            client.run("forget")
        clients[0].run("emit", count=count, per_second=per_second)
        for client in clients:
            client.start("heard", expected=count)
        return [client.result() for client in clients]


@contextmanager
def audience(subscribers: int) -> Iterator[Audience]:
    with ExitStack() as stack:
        servers = {system: stack.enter_context(closing(Server(system))) for system in SYSTEMS}
        clients = stack.enter_context(crowds(servers, subscribers))
        for system in SYSTEMS:
            for client in clients[system]:
                client.run("subscribe")
        yield Audience(servers, clients)


def signals(session: Session) -> Results:
    effort = session.effort
    with audience(1) as one:
        processes = [*one.servers.values(), *(one.clients[system][0] for system in SYSTEMS)]
        with one_core(processes):
            pinned = delay(session, one, "pinned to one core")
        return {
            "signal_pinned": pinned,
            "signal_free": delay(session, one, "unpinned"),
            **rate(session, one, "paced", PACE, effort.paced_events),
            **rate(session, one, "flat_out", FLAT_OUT, effort.flat_out_events),
        }


def signals_to_many(session: Session) -> Results:
    with audience(SUBSCRIBERS) as many:
        return rate(session, many, "flat_out_many", FLAT_OUT, session.effort.flat_out_events // 4)


def delay(session: Session, one: Audience, how: str) -> Measurement:
    measurement = Measurement(f"signal to 1 subscriber, {how}", "µs")
    count = int(LEISURELY * session.effort.seconds)

    def sample(system: str) -> tuple[float]:
        (heard,) = one.emit(system, count, LEISURELY)
        return (1e6 * heard["delay"],)

    session.interleave([measurement], sample, SYSTEMS, session.effort.rounds)
    return measurement


def rate(session: Session, audience: Audience, key: str, per_second: float, count: int) -> Results:
    subscribers = len(audience.clients[OURS])
    offered = "flat out" if per_second == FLAT_OUT else f"{per_second:.0f}/s offered"
    title = f"signals to {subscribers} subscriber{'s' * (subscribers > 1)}, {offered}"
    results = {
        f"{key}_rate": Measurement(title, "events/s"),
        f"{key}_lost": Measurement(f"{title}: lost", SHARE),
        f"{key}_silent": Measurement(f"{title}: lost and not reported", SHARE),
    }

    def sample(system: str) -> Sequence[float]:
        heard = audience.emit(system, count, per_second)
        lost = [each["lost"] for each in heard]
        silent = [max(0.0, each["lost"] - each["reported"]) for each in heard]
        total = count * len(heard)
        rates = [each["per_second"] for each in heard]
        return min(rates), 100 * sum(lost) / total, 100 * sum(silent) / total

    session.interleave(list(results.values()), sample, SYSTEMS, (session.effort.rounds + 1) // 2)
    return results
