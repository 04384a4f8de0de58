"""Server and client processes: started by handle, asked over pipes, ended by handle, never left behind."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from contextlib import suppress
from typing import Any

START_LIMIT = 20.0
REPLY_LIMIT = 60.0
END_LIMIT = 5.0


class ProcessFailed(RuntimeError):
    """A process of the benchmark ended, did not answer in time, or answered with an error."""


class Process:
    """A Python module running in a process of its own."""

    def __init__(self, module: str, *args: str) -> None:
        self.name = " ".join((module, *args))
        # A session of its own: Ctrl-C is for us, and we end the processes.
        self._popen = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._stdin, self._stdout = self._popen.stdin, self._popen.stdout

    @property
    def pid(self) -> int:
        return self._popen.pid

    def read_line(self, limit: float) -> str:
        ready, _, _ = select.select([self._stdout], [], [], limit)
        line = self._stdout.readline() if ready else ""
        if not line:
            self.close()  # a late answer would be taken for the next one
            raise ProcessFailed(f"{self.name}: no answer within {limit:.0f} s or ended")
        return line

    def write_line(self, line: str) -> None:
        try:
            self._stdin.write(line + "\n")
            self._stdin.flush()
        except (OSError, ValueError) as exc:
            raise ProcessFailed(f"{self.name}: ended") from exc

    def pin(self, cores: set[int]) -> None:
        """Move all its threads to these cores."""
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)

    def resident(self) -> int:
        """Bytes of memory in use."""
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        """End it: ask, wait, kill."""
        self._popen.terminate()
        try:
            self._popen.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._stdout.close()
        with suppress(OSError):
            self._stdin.close()


class Server(Process):
    """A server of one system; its port is known when this returns."""

    def __init__(self, system: str) -> None:
        super().__init__("benchmarks.serve", system)
        self.port = int(self.read_line(START_LIMIT))


class RegistryServer(Process):
    """A registry with that store; its url is known when this returns."""

    def __init__(self, store: str) -> None:
        super().__init__("benchmarks.serve_registry", store)
        self.url = self.read_line(START_LIMIT).strip()


class RegisteredServer(Process):
    """A server of ours that renews its lease every third of it; its port is known when this returns."""

    def __init__(self, registry: str, lease: float) -> None:
        super().__init__("benchmarks.serve_registered", registry, str(lease))
        self.port = int(self.read_line(START_LIMIT))


class CameraProcess(Process):
    """Our camera; its port is known when this returns."""

    def __init__(self) -> None:
        super().__init__("benchmarks.serve_camera")
        self.port = int(self.read_line(START_LIMIT))


class Worker(Process):
    """A process that runs tasks."""

    def start(self, task: str, **params: Any) -> None:
        """Start a task; `result` waits for it."""
        self.write_line(json.dumps({"task": task, "params": params}))

    def result(self) -> Any:
        """The result of the task started before."""
        reply = json.loads(self.read_line(REPLY_LIMIT))
        if "error" in reply:
            raise ProcessFailed(f"{self.name}: {reply['error']}")
        return reply["result"]

    def run(self, task: str, **params: Any) -> Any:
        """Run a task and wait for its result."""
        self.start(task, **params)
        return self.result()


class Client(Worker):
    """A client of one system that runs the tasks of `benchmarks.tasks`."""

    def __init__(self, system: str, port: int) -> None:
        super().__init__("benchmarks.worker", system, str(port))


class Viewer(Worker):
    """A client of our camera that runs the tasks of `benchmarks.viewing`."""

    def __init__(self, port: int) -> None:
        super().__init__("benchmarks.viewing", str(port))
