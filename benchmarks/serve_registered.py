"""Our server, kept registered: ``python -m benchmarks.serve_registered REGISTRY LEASE``, else as `benchmarks.serve`."""

from __future__ import annotations

import sys
import threading

import zmq

from benchmarks.serve import announce, end_with_parent
from benchmarks.systems.rpc_kit import Device

if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    device = Device(zmq.Context(), "tcp://127.0.0.1:0", alive_timeout=float(sys.argv[2]))
    if not device.register_to_registry("bench", "", sys.argv[1]):
        sys.exit("not registered")
    assert device.port is not None
    announce(device.port)
    device.serve_forever()
