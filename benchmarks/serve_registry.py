"""A registry process: announces its port and serves until it is ended."""

from __future__ import annotations

import threading

import zmq

from benchmarks.serve import announce, end_with_parent
from registry import DeviceRegistry

if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    registry = DeviceRegistry(zmq.Context(), "127.0.0.1", 0)
    announce(int(registry.url.rpartition(":")[2]))
    registry.run()
