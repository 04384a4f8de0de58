"""``python -m registry serve``: run a registry in the foreground."""

import argparse
import logging
import sys
from collections.abc import Sequence

import zmq

from .service import DeviceRegistry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="rpc-registry", description="Registry of devices of rpc-kit.")
    commands = parser.add_subparsers(required=True, metavar="command")
    serve = commands.add_parser("serve", help="run a registry until SIGTERM or Ctrl-C")
    serve.add_argument("--addr", default="*", help="host to listen on; 127.0.0.1 for this host only (default: all)")
    serve.add_argument("--port", type=int, default=5555, help="0 for any free one (default: 5555)")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    with zmq.Context() as context:
        try:
            registry = DeviceRegistry(context, options.addr, options.port)
        except (OSError, ValueError) as exc:
            print(f"rpc-registry: {exc}", file=sys.stderr)
            return 1
        print(registry.url, flush=True)
        registry.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
