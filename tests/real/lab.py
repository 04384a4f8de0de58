"""What runs on the hosts of a lab: a client that does what it is told line by line, and a watcher of the registry."""

import queue
import sys
import time
from collections.abc import Callable
from typing import Any

import zmq

from rpc_kit import RegistryClient, connect
from rpc_kit.watching import RegistryEvent
from tests.devices import Instrument

LIVENESS = 1.5
"""Within this time, and that of a look-up, the client knows that its device cannot be reached, s."""


def use(context: Any, name: str, registry: str) -> None:
    """Connect to a device, by name or url; do what each line says, and print what comes of it and how long it takes."""
    found: Any = connect(name, Instrument, registry=registry or None, context=context, liveness=LIVENESS)
    with found as client:
        ticks: list[int] = []
        client.ticked.connect(ticks.append)
        actions: dict[str, Callable[[], object]] = {
            "count": client.count,
            "tick": lambda: client.tick(1, 1),
            "ticks": lambda: len(ticks),
            "url": lambda: client.url,
        }
        print("connected", flush=True)
        for line in sys.stdin:
            began = time.monotonic()
            try:
                outcome = actions[line.strip()]()
            except Exception as exc:
                outcome = type(exc).__name__
            print(outcome, round(time.monotonic() - began, 1), flush=True)


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
        use(context, *arguments) if role == "use" else watch(context, *arguments)


if __name__ == "__main__":
    main()
