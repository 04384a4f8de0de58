"""What runs on the hosts of a lab: a client that does what it is told line by line, and a watcher of the registry."""

import queue
import sys
import time
from typing import Any

import zmq

from rpc_kit import RegistryClient, connect
from rpc_kit.watching import RegistryEvent
from tests.devices import Instrument

LIVENESS = 1.5
"""Within this time, and that of a look-up, the client knows that its device cannot be reached, s."""


def use(context: Any, name: str, registry: str) -> None:
    """Connect to a device, by name or url; for each line call its method of that name, and print what comes of it."""
    with connect(name, Instrument, registry=registry or None, context=context, liveness=LIVENESS) as client:  # type: Any
        ticks: list[int] = []
        client.ticked.connect(ticks.append)
        print("connected", flush=True)
        for line in sys.stdin:
            began = time.monotonic()
            try:
                result = {"url": lambda: client.url, "ticks": lambda: len(ticks)}.get(
                    line.strip(), lambda: client.execute(line.strip(), {})[1]  # noqa: B023
                )()
            except Exception as exc:
                result = type(exc).__name__
            print(result, round(time.monotonic() - began, 1), flush=True)


def watch(context: Any, registry: str) -> None:
    """Print each change."""
    events: queue.Queue[RegistryEvent] = queue.Queue()
    with RegistryClient(registry, context) as client, client.watch(events.put):
        print("watching", flush=True)
        while True:
            event = events.get()
            print(event.kind, event.entry.name, event.reason or event.entry.address, flush=True)


def main() -> None:
    role, *arguments = sys.argv[1:]
    with zmq.Context() as context:
        {"use": use, "watch": watch}[role](context, *arguments)


if __name__ == "__main__":
    main()
