"""Urls: taken apart, checked, and turned into what a socket binds to or what others connect to."""

import contextlib
import errno
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Literal, Self

WILDCARDS = ("*", "0.0.0.0", "::")
BESIDE = "rpc-kit"
"""Begins the names of ipc addresses beside tcp ones."""
RANDOM_PORTS = range(10_000, 12_001)
"""Where a server without a port looks for a free one."""


@dataclass(frozen=True, slots=True)
class Address:
    """A url in parts.

    Attributes
    ----------
    transport : str
        tcp, ipc or inproc.
    host : str
        Host name, IPv4, IPv6 without brackets, or ``*``; for ipc and inproc the whole path or name.
    port : int or None
        None when none was given; 0 for any free one.
    """

    transport: Literal["tcp", "ipc", "inproc"]
    host: str
    port: int | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Take a url apart.

        Raises
        ------
        TypeError
            When it is no text.
        ValueError
            When it is no url of a known transport.
        """
        if not isinstance(url, str):
            raise TypeError(f"a url is a text such as 'tcp://host:9000', not {type(url).__name__}")
        transport, separator, rest = url.partition("://")
        if transport in ("ipc", "inproc") and rest:
            return cls(transport, rest)  # type: ignore[arg-type]
        if transport != "tcp" or not separator or not rest:
            raise ValueError(f"{url!r} is no url: expected tcp://host:port, ipc://path or inproc://name")
        host, port = _split(rest, url)
        if not host or "/" in host or any(char.isspace() for char in host):
            raise ValueError(f"{url!r} has no proper host: expected tcp://host:port")
        return cls("tcp", host, port)

    def __str__(self) -> str:
        if self.transport != "tcp":
            return f"{self.transport}://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}" if self.port is None else f"tcp://{host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether a server bound here listens on every interface."""
        return self.transport == "tcp" and self.host in WILDCARDS

    @property
    def is_ipv6(self) -> bool:
        """Whether a socket needs IPv6 for it: a numeric address, or a name that has no other."""
        if self.transport != "tcp" or self.is_wildcard:
            return self.host == "::"
        return ":" in self.host or (not _numeric(self.host) and _family(self.host) == socket.AF_INET6)

    @property
    def beside(self) -> "Address | None":
        """The ipc address of the same server for clients on the same host; None where there is none.

        Its name is no file (Linux: abstract namespace), and known in one network namespace only.
        """
        if self.transport != "tcp" or not sys.platform.startswith("linux"):
            return None
        return Address("ipc", f"@{BESIDE}-{self.host}-{self.port}")

    @property
    def is_here(self) -> bool:
        """Whether it is an address of `beside`, at which some process of this host listens."""
        if self.transport != "ipc" or not self.host.startswith(f"@{BESIDE}-"):
            return False
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                # Nothing is connected, which the server would notice as a stranger.
                probe.bind(self.host.replace("@", "\0", 1))
            except OSError as exc:
                return exc.errno == errno.EADDRINUSE
        return False

    def with_port(self, port: int) -> "Address":
        """The same host with another port."""
        return Address(self.transport, self.host, port)

    def with_host(self, host: str) -> "Address":
        """The same port at another host."""
        return Address(self.transport, host, self.port)

    def to_bind(self) -> "Address":
        """The same with a numeric host: a socket cannot be bound to a name."""
        if self.transport != "tcp" or self.is_wildcard or _numeric(self.host):
            return self
        family = socket.AF_INET6 if self.is_ipv6 else socket.AF_INET
        try:
            found = socket.getaddrinfo(self.host, None, family, socket.SOCK_STREAM)
        except OSError:
            return self  # perhaps the name of a network interface, which libzmq knows
        return self.with_host(str(found[0][4][0]))


def _split(rest: str, url: str) -> tuple[str, int | None]:
    if rest.startswith("["):
        host, bracket, tail = rest[1:].partition("]")
        if not bracket or (tail and not tail.startswith(":")):
            raise ValueError(f"{url!r} is no url: an IPv6 address stands in brackets, tcp://[::1]:9000")
        port = tail[1:] if tail else None
    elif rest.count(":") > 1:
        raise ValueError(f"{url!r} is no url: an IPv6 address stands in brackets, and there is one port")
    else:
        host, colon, tail = rest.partition(":")
        port = tail if colon else None
    if port is None:
        return host, None
    if port == "*":
        return host, 0
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{url!r} has no proper port: {port!r} is not a number from 0 to 65535")
    return host, int(port)


def _numeric(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return True
    return False


def _family(host: str) -> int | None:
    """IPv4 when the name has such an address, as servers listen on it by default."""
    try:
        families = {found[0] for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return None
    return socket.AF_INET if socket.AF_INET in families else next(iter(families), None)


def host_towards(peer: Address) -> str:
    """The own address by which `peer` reaches this host; the host's name when there is no telling."""
    if peer.transport != "tcp":
        return "127.0.0.1"
    family = socket.AF_INET6 if peer.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((peer.host, peer.port or 9))  # sends nothing: only asks the routing table
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()


def own_addresses(ipv6: bool = False) -> list[str]:
    """The addresses of this host by which others may reach it; IPv6 ones come after the IPv4 ones."""
    found = [address for _, name in socket.if_nameindex() if (address := _ipv4_of(name))]
    if ipv6:
        with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as table:
            for line in table:
                digits, _, _, scope, _, _ = line.split()
                if scope == "00":  # global; loopback and link-local ones are of no use to others
                    found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)))
    return [address for address in found if not address.startswith("127.")]


def _ipv4_of(interface: str) -> str:
    """The address of a network interface; empty when it has none, or where there is no telling."""
    try:
        import fcntl  # not on Windows, where clients run

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            found = fcntl.ioctl(probe, 0x8915, struct.pack("256s", interface.encode()[:15]))  # SIOCGIFADDR
    except (OSError, ImportError):
        return ""
    return socket.inet_ntoa(found[20:24])
