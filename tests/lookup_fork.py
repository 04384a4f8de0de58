"""A client that was found by its name, used in a forked process: prints what it said there, and a sum from here."""

import os
import sys
import time
from typing import Any

import zmq

from rpc_kit import calls, connect
from tests.devices import Instrument


def main() -> None:
    calls.QUIET = 0.0
    with zmq.Context() as context:
        client: Any = connect("left", Instrument, registry=sys.argv[1], context=context)
        reader, writer = os.pipe()
        if os.fork() == 0:
            began = time.monotonic()
            try:
                client.add(1, 2)
            except Exception as exc:
                in_time = time.monotonic() - began < calls.PROBE_TIME
                os.write(writer, (type(exc).__name__ if in_time else "too late").encode())
            os._exit(0)
        os.wait()
        print(os.read(reader, 100).decode(), client.add(1, 2), flush=True)
        client.close()


if __name__ == "__main__":
    main()
