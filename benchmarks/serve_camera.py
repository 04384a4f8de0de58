"""Our camera in a process of its own: as `benchmarks.serve`."""

from __future__ import annotations

import threading

import zmq

from benchmarks.camera import CameraServer
from benchmarks.serve import announce, end_with_parent

if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    camera = CameraServer(zmq.Context())
    assert camera.port is not None
    announce(camera.port)
    camera.serve_forever()
