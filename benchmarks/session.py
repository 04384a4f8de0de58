"""One run: the servers and clients that stay up, and rounds that visit the systems in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from benchmarks.processes import Client, Process, ProcessFailed, Server
from benchmarks.results import Measurement
from benchmarks.systems import OURS, RAW, SYSTEMS


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    rounds: int
    seconds: float  # of calls in one sample
    image_rounds: int
    slow_calls: int
    paced_events: int
    flat_out_events: int
    devices: int  # in the registry
    is_quick: bool = False


QUICK = Effort(3, 0.08, 1, 3, 6_000, 10_000, 10_000, is_quick=True)
FULL = Effort(11, 0.25, 5, 20, 24_000, 40_000, 100_000)


class Session:
    """A server and a client per system, and what went wrong."""

    def __init__(self, effort: Effort, systems: Sequence[str], stack: ExitStack) -> None:
        self.effort = effort
        self.systems = list(systems)
        self.notes: list[str] = []
        self.step = ""
        self.servers: dict[str, Server] = {}
        self.clients: dict[str, Client] = {}
        for system in systems:
            try:
                self.servers[system] = server = stack.enter_context(closing(Server(system)))
            except ProcessFailed as exc:
                if system in (OURS, RAW):
                    raise
                self.notes.append(f"{system} is left out: {exc}")
                self.systems.remove(system)
            else:
                self.clients[system] = stack.enter_context(closing(Client(system, server.port)))

    def interleave(
        self,
        measurements: Sequence[Measurement],
        sample: Callable[[str], Sequence[float]],
        systems: Sequence[str],
        rounds: int,
    ) -> None:
        """Fill the measurements with one sample of each system per round: A, B, C, A, B, C …

        What is no system is a variant of ours.
        """
        alive = [system for system in systems if system in self.systems or system not in SYSTEMS]
        title = f"{self.step} {measurements[0].title}"
        with tqdm(total=rounds * len(alive), desc=title, leave=False) as progress:
            for _ in range(rounds):
                for system in tuple(alive):
                    progress.set_postfix_str(system)
                    try:
                        values = sample(system)
                    except ProcessFailed as exc:
                        self.notes.append(f"{measurements[0].title}: {exc}")
                        alive.remove(system)
                        for measurement in measurements:
                            measurement.samples.pop(system, None)
                        continue
                    for measurement, value in zip(measurements, values, strict=True):
                        measurement.samples.setdefault(system, []).append(value)
                    progress.update()


@contextmanager
def crowds(servers: Mapping[str, Server], count: int) -> Iterator[dict[str, list[Client]]]:
    """So many clients of each server, all started before any is waited for."""
    with ExitStack() as stack:
        yield {
            system: [stack.enter_context(closing(Client(system, server.port))) for _ in range(count)]
            for system, server in servers.items()
        }


@contextmanager
def one_core(processes: Sequence[Process]) -> Iterator[None]:
    """Pin the processes to one core: what is measured then is pure cost, not the waking of a core."""
    cores = os.sched_getaffinity(0)
    for process in processes:
        process.pin({max(cores)})
    try:
        yield
    finally:
        for process in processes:
            process.pin(cores)
