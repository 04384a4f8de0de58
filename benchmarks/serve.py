"""A server process: ``python -m benchmarks.serve SYSTEM`` announces its port and serves until it is ended."""

from __future__ import annotations

import os
import signal
import sys
import threading

from benchmarks.systems import load


def end_with_parent() -> None:
    """End when the pipe from the parent is closed, even if the parent was killed."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


def announce(port: int) -> None:
    print(port, flush=True)


if __name__ == "__main__":
    system = load(sys.argv[1])
    threading.Thread(target=end_with_parent, daemon=True).start()
    system.serve(announce)
