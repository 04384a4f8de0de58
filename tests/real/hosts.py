"""Hosts on one network: each has its own interfaces, addresses, ports, packet filter and host name.

They are namespaces without names in the file system, gone with their processes, even when the tests are killed.
"""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self, overload

import psutil

from tests.devices import LIMIT
from tests.helpers import PROJECT, Program
from tests.real.parts import path_of, require

INTERFACE = "eth0"
_numbers = itertools.count(1)


class Namespace:
    """A network and a host name, which last as long as a process that does nothing."""

    def __init__(self) -> None:
        self.name = f"host-{os.getpid()}-{next(_numbers)}"
        # What cat echoes comes from inside; it ends with its standard input, and that with the tests.
        self._holder = subprocess.Popen(
            [path_of("unshare"), "--net", "--uts", "sh", "-c", 'hostname "$0" && exec cat', self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._holder.stdin is not None and self._holder.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._holder.stdin.write(b"\n")
        if not self._holder.stdout.readline():
            self._holder.communicate(timeout=LIMIT)
            raise OSError(f"no namespace for {self.name}")
        self._network = os.stat(f"/proc/{self.holder}/ns/net")

    @property
    def holder(self) -> int:
        """The id of the process, by which others name the namespace."""
        return self._holder.pid

    @property
    def prefix(self) -> list[str]:
        """Runs the command behind it here, in the same process."""
        namespaces = Path("/proc", str(self.holder), "ns")
        return [path_of("nsenter"), f"--net={namespaces / 'net'}", f"--uts={namespaces / 'uts'}", "--"]

    def command(self, command: str, *arguments: str, text: str = "") -> str:
        """Run any command to its end, with `text` as its standard input; its output."""
        ran = subprocess.run(
            [*self.prefix, path_of(command), *arguments], input=text, capture_output=True, text=True, timeout=LIMIT
        )
        if ran.returncode:
            raise OSError(f"{self.name}: {command} {' '.join(arguments)}: {ran.stderr.strip()}")
        return ran.stdout

    def ip(self, *lines: str) -> None:
        """Configure the network, with one command of ip in each line."""
        self.command("ip", "-batch", "-", text="\n".join(lines) + "\n")

    def close(self) -> None:
        """End all processes in the namespace, and it with them."""
        for each in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if os.path.samestat(self._network, os.stat(f"/proc/{each.pid}/ns/net")):
                    each.kill()
        self._holder.communicate(timeout=LIMIT)


class Host(Namespace):
    """One of the hosts; Python modules run on it as they do anywhere."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self.address = address
        self.others: list[Host] = []
        self.is_cut = False
        self._programs: list[Program] = []

    def popen(self, *arguments: str) -> Program:
        """Start a Python module; it ends with the host at the latest."""
        self._programs.append(Program(*arguments, prefix=self.prefix))
        return self._programs[-1]

    def run(self, *arguments: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """Run a Python module to its end."""
        return subprocess.run(
            [*self.prefix, sys.executable, "-u", "-m", *arguments],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit,
        )

    def cut(self) -> None:
        """From now on all that comes and goes is lost, without a word to anybody; idempotent."""
        if not self.is_cut:
            self._filter("-A")
        self.is_cut = True

    def heal(self) -> None:
        """Nothing is lost any more; idempotent."""
        if self.is_cut:
            self._filter("-D")
        self.is_cut = False

    def _filter(self, action: str) -> None:
        self.command("iptables", "-w", action, "INPUT", "-i", INTERFACE, "-j", "DROP")
        # What goes out is lost at the others: a rule for OUTPUT would tell the sender of it (EPERM).
        for other in self.others:
            other.command("iptables", "-w", action, "INPUT", "-s", self.address, "-j", "DROP")

    def close(self) -> None:
        super().close()
        for program in self._programs:
            program.kill()


class Hosts(Sequence[Host]):
    """Some hosts on one network: two have a cable between them, more a switch; a context manager."""

    def __init__(self, count: int = 2, network: str = "10.77.0") -> None:
        self._count = count
        self._network = network
        self._hosts: list[Host] = []
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Self:
        require("ip", "iptables", "nsenter", "unshare", "root", "network namespaces", "packet filter")
        with contextlib.ExitStack() as stack:
            for number in range(1, self._count + 1):
                self._hosts.append(Host(f"{self._network}.{number}"))
                stack.callback(self._hosts[-1].close)
            if self._count == 2:
                _connect(self._hosts[0], self._hosts[1], INTERFACE)
            else:
                switch = Namespace()
                stack.callback(switch.close)
                _switch(switch, self._hosts)
            for host in self._hosts:
                host.others = [other for other in self._hosts if other is not host]
                _configure(host)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.close()

    @overload
    def __getitem__(self, index: int) -> Host: ...
    @overload
    def __getitem__(self, index: slice) -> list[Host]: ...
    def __getitem__(self, index: int | slice) -> Host | list[Host]:
        return self._hosts[index]

    def __len__(self) -> int:
        return len(self._hosts)


def _connect(host: Host, other: Namespace, name: str) -> None:
    """A cable from the interface of a host to an interface of that name."""
    host.ip(f"link add {INTERFACE} type veth peer name {name} netns {other.holder}")


def _switch(switch: Namespace, hosts: Sequence[Host]) -> None:
    # A port would first learn for 15 s, and multicasts would be sent only where somebody had asked for them.
    switch.ip("link add switch type bridge forward_delay 0 mcast_snooping 0", "link set switch up")
    for number, host in enumerate(hosts, 1):
        _connect(host, switch, f"port{number}")
        switch.ip(f"link set port{number} master switch up")


def _configure(host: Host) -> None:
    if Path("/proc/sys/net/ipv6").exists():
        # iptables does not cut IPv6, and so there is none between hosts.
        host.ip(f"link set {INTERFACE} addrgenmode none")
    host.ip(
        "link set lo up",
        f"address add {host.address}/24 dev {INTERFACE}",
        f"link set {INTERFACE} up",
        f"route add 224.0.0.0/4 dev {INTERFACE}",
    )
