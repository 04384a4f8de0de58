"""The instrument as a program: serves it, or listens to its ticks."""

import argparse
import sys
from typing import Any

import zmq

from tests.devices import InstrumentClient, InstrumentServer


def serve(context: Any, options: argparse.Namespace) -> None:
    with InstrumentServer(context, options.url, alive_timeout=options.lease) as device:
        if options.registry:
            device.register_to_registry("instrument", options.name, options.registry)
        print(device.url, flush=True)
        device.serve_forever()


def listen(context: Any, options: argparse.Namespace) -> None:
    """Print each tick until standard input ends."""
    with InstrumentClient(context, options.url) as client:
        client.ticked.connect(lambda number: print(number, flush=True))
        print("listening", flush=True)
        sys.stdin.read()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "listen"])
    parser.add_argument("url")
    parser.add_argument("--registry")
    parser.add_argument("--name", default="")
    parser.add_argument("--lease", type=float, default=60)
    options = parser.parse_args()
    with zmq.Context() as context:
        {"serve": serve, "listen": listen}[options.role](context, options)


if __name__ == "__main__":
    main()
