"""A client process: ``python -m benchmarks.worker SYSTEM PORT`` runs tasks read from stdin, one JSON each."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue

from benchmarks.systems import load
from benchmarks.tasks import Tasks


def read_into(requests: SimpleQueue[str]) -> None:
    """Read requests; end with the parent, even in the middle of a task."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def work(make: Callable[[], object]) -> None:
    """Run tasks, which are the methods of what is made."""
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=read_into, args=(requests,), daemon=True).start()
    tasks = make()
    while True:
        request = json.loads(requests.get())
        try:
            reply = {"result": getattr(tasks, request["task"])(**request["params"])}
        except Exception as exc:
            reply = {"error": repr(exc)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    work(lambda: Tasks(load(sys.argv[1]), int(sys.argv[2])))
