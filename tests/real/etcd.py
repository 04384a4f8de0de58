"""A real etcd cluster on loopback, whose nodes can be killed and started again."""

import contextlib
import json
import os
import random
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.devices import LIMIT
from tests.helpers import wait_until
from tests.real.parts import path_of, require

# Loopback is not asked for through a proxy.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(url: str, body: dict[str, Any] | None = None, limit: float = LIMIT) -> Any:
    """What a node answers in JSON to a POST, or to a GET without `body`; OSError when it does not."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with _opener.open(urllib.request.Request(url, data), timeout=limit) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as exc:
        with exc:
            raise OSError(f"{url}: {exc}: {exc.read().decode(errors='replace').strip()}") from exc


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, and that the kernel gives to nobody who asks for any: a node wants its own back."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(range(10000, max(first, 20000)), 1000):
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                taken.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise OSError("no free ports")


class EtcdCluster:
    """Nodes that hold the same keys, as long as most of them live; a context manager."""

    def __init__(self, size: int = 3) -> None:
        self._size = size
        self.endpoints: list[str] = []
        self._peers: list[str] = []
        self._nodes: list[subprocess.Popen[bytes] | None] = [None] * size
        self._folder = Path()
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        require("etcd")
        urls = [f"http://127.0.0.1:{port}" for port in free_ports(2 * self._size)]
        self.endpoints, self._peers = urls[: self._size], urls[self._size :]
        with contextlib.ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rpc-kit-etcd-")))
            stack.callback(self._kill_all)
            self.start(*range(self._size))
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all nodes and remove their data; idempotent."""
        self._closing.close()

    def start(self, *indices: int) -> None:
        """Start nodes, with the data that they had; they are healthy afterwards, for which most must live."""
        for index in indices:
            if self._nodes[index] is None:
                self._nodes[index] = self._launch(index)
        wait_until(lambda: all(self._is_healthy(index) for index in indices))

    def kill(self, index: int) -> None:
        """End a node as a loss of power would (SIGKILL)."""
        node = self._nodes[index]
        if node is not None:
            node.kill()
            node.wait(LIMIT)
        self._nodes[index] = None

    def leader(self) -> int:
        """The index of the node that leads; waits until there is one."""
        found: list[int] = []

        def is_found() -> bool:
            found[:] = [index for index, node in enumerate(self._nodes) if node is not None and self._leads(index)]
            return bool(found)

        wait_until(is_found)
        return found[0]

    def _kill_all(self) -> None:
        for index in range(self._size):
            self.kill(index)

    def _launch(self, index: int) -> "subprocess.Popen[bytes]":
        members = ",".join(f"node{number}={peer}" for number, peer in enumerate(self._peers))
        options = {
            "name": f"node{index}",
            "data-dir": str(self._folder / f"node{index}"),
            "listen-client-urls": self.endpoints[index],
            "advertise-client-urls": self.endpoints[index],
            "listen-peer-urls": self._peers[index],
            "initial-advertise-peer-urls": self._peers[index],
            "initial-cluster": members,
            "initial-cluster-state": "new",
            # A leader that is lost is missed soon.
            "heartbeat-interval": "50",
            "election-timeout": "500",
            "log-level": "warn",
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        # Without the variable etcd 3.4 does not start on such processors.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "ETCD_UNSUPPORTED_ARCH": "arm64"}
        with self._log(index).open("ab") as log:
            return subprocess.Popen(
                [path_of("etcd"), *arguments, "--unsafe-no-fsync"],
                cwd=self._folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _log(self, index: int) -> Path:
        return self._folder / f"node{index}.log"

    def _is_healthy(self, index: int) -> bool:
        node = self._nodes[index]
        if node is not None and node.poll() is not None:
            raise OSError(f"etcd ended: {self._log(index).read_text()[-1000:]}")
        try:
            # A node without a leader answers late, and with an error.
            return bool(ask(f"{self.endpoints[index]}/health", limit=1.0)["health"] == "true")
        except OSError:
            return False

    def _leads(self, index: int) -> bool:
        try:
            status = ask(f"{self.endpoints[index]}/v3/maintenance/status", {}, limit=1.0)
        except OSError:
            return False
        return bool(status.get("leader") == status["header"]["member_id"])
