"""Urls."""

import io
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpc_kit import addresses
from rpc_kit.addresses import RANDOM_PORTS, Address, host_towards, own_addresses


@pytest.mark.parametrize(
    ("url", "transport", "host", "port"),
    [
        ("tcp://127.0.0.1:9000", "tcp", "127.0.0.1", 9000),
        ("tcp://lab-pc-3.example.org:9000", "tcp", "lab-pc-3.example.org", 9000),
        ("tcp://my_host:1", "tcp", "my_host", 1),
        ("tcp://[::1]:9000", "tcp", "::1", 9000),
        ("tcp://[fe80::1%eth0]:9000", "tcp", "fe80::1%eth0", 9000),
        ("tcp://[::1]", "tcp", "::1", None),
        ("tcp://*:9000", "tcp", "*", 9000),
        ("tcp://host", "tcp", "host", None),
        ("tcp://*", "tcp", "*", None),
        ("tcp://host:0", "tcp", "host", 0),
        ("tcp://host:65535", "tcp", "host", 65535),
        ("ipc:///tmp/a:b c", "ipc", "/tmp/a:b c", None),
        ("ipc://@abstract", "ipc", "@abstract", None),
        ("inproc://name-1", "inproc", "name-1", None),
    ],
)
def test_url_is_taken_apart_and_put_together(url: str, transport: str, host: str, port: int | None) -> None:
    """Every kind of url is understood, and written as it was read."""
    address = Address.parse(url)

    assert (transport, host, port) == (address.transport, address.host, address.port)
    assert url == str(address)


def test_any_free_port() -> None:
    """A star for the port is 0, as in ZeroMQ."""
    assert Address("tcp", "*", 0) == Address.parse("tcp://*:*")


@pytest.mark.parametrize(
    "url",
    [
        "", "tcp", "tcp:", "tcp://", "tcp:/h:1", "TCP://h:1", "udp://h:1", "pgm://h:1", "http://h:1", "ipc://",
        "inproc://", "h:9000", "://h:1", "tcp://:9000", "tcp://h:", "tcp://h:x", "tcp://h:-1", "tcp://h:+1",
        "tcp://h:1.5", "tcp://h: 1", "tcp://h:1\n", "tcp://h:65536", "tcp://h:٣", "tcp://h:" + "9" * 5000,
        "tcp://h:9000:9000", "tcp://::1", "tcp://::1:9000", "tcp://[::1", "tcp://[::1]9000", "tcp://[]:1",
        "tcp://[::1]:", "tcp://a b:1", "tcp://h/path:1", "tcp://h:1/path", "tcp://\n:1",
    ],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    """Anything else is a ValueError that shows what was given."""
    with pytest.raises(ValueError) as caught:
        Address.parse(url)

    assert repr(url) in str(caught.value)


@given(st.text() | st.text(st.sampled_from("tcp:/[]*:%.019a-")).map(lambda rest: f"tcp://{rest}"))
@settings(derandomize=True, deadline=None)
def test_any_text_is_a_url_or_a_value_error(url: str) -> None:
    """A url is read the same again when it was written, or refused."""
    try:
        address = Address.parse(url)
    except ValueError:
        return
    if "[" not in url:
        assert address == Address.parse(str(address))


@pytest.mark.parametrize(
    ("url", "wildcard"),
    [
        ("tcp://*:1", True), ("tcp://0.0.0.0:1", True), ("tcp://[::]:1", True), ("tcp://127.0.0.1:1", False),
        ("tcp://host", False), ("ipc://*", False),
    ],
)  # fmt: skip
def test_wildcards(url: str, wildcard: bool) -> None:
    """A server that listens on every interface is told by its host."""
    assert wildcard is Address.parse(url).is_wildcard


@pytest.mark.parametrize(
    ("url", "ipv6"),
    [
        ("tcp://[::1]:1", True), ("tcp://[::]:1", True), ("tcp://[fe80::1%lo]:1", True),
        ("tcp://127.0.0.1:1", False), ("tcp://*:1", False), ("tcp://0.0.0.0:1", False),
        ("tcp://localhost:1", False), ("tcp://no-such-host.invalid:1", False), ("ipc://::1", False),
    ],
)  # fmt: skip
def test_ipv6(url: str, ipv6: bool) -> None:
    """IPv6 is switched on for numeric addresses that need it; a name that has both is IPv4."""
    assert ipv6 is Address.parse(url).is_ipv6


@pytest.mark.parametrize(
    ("families", "ipv6"),
    [([socket.AF_INET6], True), ([socket.AF_INET6, socket.AF_INET], False), ([socket.AF_INET], False)],
)
def test_ipv6_of_names(monkeypatch: pytest.MonkeyPatch, families: list[int], ipv6: bool) -> None:
    """A name needs IPv6 when it has no other address."""
    found = [(family, 0, 0, "", ()) for family in families]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)

    assert ipv6 is Address.parse("tcp://lab-pc:1").is_ipv6


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("tcp://localhost:1", "tcp://127.0.0.1:1"), ("tcp://127.0.0.1:1", "tcp://127.0.0.1:1"),
        ("tcp://*:1", "tcp://*:1"), ("tcp://[::1]:1", "tcp://[::1]:1"),
        ("tcp://eth0-no-such.invalid:1", "tcp://eth0-no-such.invalid:1"),
        ("ipc://localhost", "ipc://localhost"), ("inproc://localhost", "inproc://localhost"),
    ],
)  # fmt: skip
def test_to_bind(url: str, expected: str) -> None:
    """Names become numbers for binding; what cannot be resolved may be the name of an interface and stays."""
    assert expected == str(Address.parse(url).to_bind())


def test_parts_are_replaced() -> None:
    """Port and host can be replaced; the address itself does not change."""
    address = Address.parse("tcp://*:9000")

    assert "tcp://*:5" == str(address.with_port(5))
    assert "tcp://[::1]:9000" == str(address.with_host("::1"))
    assert "tcp://*:9000" == str(address)


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("tcp://127.0.0.1:5555", "127.0.0.1"), ("tcp://127.0.0.1", "127.0.0.1"),
        ("tcp://localhost:5555", "127.0.0.1"), ("ipc:///tmp/registry", "127.0.0.1"),
        ("inproc://registry", "127.0.0.1"),
        ("tcp://no-such-host.invalid:5555", socket.gethostname()),
    ],
)  # fmt: skip
def test_host_towards(peer: str, expected: str) -> None:
    """The own address is the one that faces the peer; the host's name when there is no telling."""
    assert expected == host_towards(Address.parse(peer))


@pytest.mark.parametrize(
    ("url", "beside"),
    [
        ("tcp://127.0.0.1:9000", "ipc://@rpc-kit-127.0.0.1-9000"), ("tcp://lab-pc-3:1", "ipc://@rpc-kit-lab-pc-3-1"),
        ("tcp://*:9000", "ipc://@rpc-kit-*-9000"), ("tcp://[::1]:9000", "ipc://@rpc-kit-::1-9000"),
        ("ipc:///tmp/device", "None"), ("ipc://@device", "None"), ("inproc://device", "None"),
    ],
)  # fmt: skip
def test_beside(url: str, beside: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a tcp address there is an ipc one of the same host and port, on Linux."""
    monkeypatch.setattr(sys, "platform", "linux")
    assert beside == str(Address.parse(url).beside)
    for other in ("win32", "darwin"):
        monkeypatch.setattr(sys, "platform", other)
        assert Address.parse(url).beside is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has names of sockets that are no files")
def test_is_here() -> None:
    """Whether somebody listens is told without connecting, and leaves nothing behind."""
    beside = Address("tcp", f"host-{secrets.token_hex(8)}", 1).beside
    assert beside is not None
    assert [False, False] == [beside.is_here, beside.is_here]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(beside.host.replace("@", "\0"))
        listening.listen()
        listening.settimeout(0)

        assert [True, True] == [beside.is_here, beside.is_here]
        with pytest.raises(BlockingIOError):
            listening.accept()
    assert not beside.is_here


@pytest.mark.parametrize(
    "url", ["tcp://127.0.0.1:9000", "inproc://a", "ipc://a", "ipc://@a", "ipc://@rpc-kit-" + 200 * "x"]
)
def test_what_is_not_beside_a_server(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other addresses, and names that are too long, are not looked for; no file is made of a name."""
    monkeypatch.chdir(tmp_path)

    assert not Address.parse(url).is_here
    assert [] == list(tmp_path.iterdir())


def test_random_ports() -> None:
    """Without a port a server looks from 10000 to 12000."""
    assert (10_000, 12_000) == (RANDOM_PORTS[0], RANDOM_PORTS[-1])


def test_own_addresses() -> None:
    """The addresses of all interfaces but the loopback, those of IPv6 last and only when they are wanted."""
    found = psutil.net_if_addrs().values()
    expected = {
        family: {each.address for interface in found for each in interface if each.family == family}
        for family in (socket.AF_INET, socket.AF_INET6)
    }
    ipv4, both = own_addresses(), own_addresses(ipv6=True)

    assert set(ipv4) <= {each for each in expected[socket.AF_INET] if not each.startswith("127.")}
    assert (ipv4, True) == (both[: len(ipv4)], set(both[len(ipv4) :]) <= expected[socket.AF_INET6])
    assert host_towards(Address.parse("tcp://192.0.2.1:1")) in [*ipv4, socket.gethostname()]


def test_own_addresses_of_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface that has no address, or is gone meanwhile, is left out; so is the loopback."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "gone-x"), (3, "a name that is very long")])
        assert [] == own_addresses()
    given = {"lo": "127.0.0.1", "eth0": "192.0.2.7", "tunnel": "", "docker0": "172.17.0.1"}
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(given)))
    monkeypatch.setattr(addresses, "_ipv4_of", given.__getitem__)

    assert ["192.0.2.7", "172.17.0.1"] == own_addresses()


def test_own_addresses_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of IPv6 only global addresses are of use to others."""
    table = [
        "00000000000000000000000000000001 01 80 10 80       lo",
        "fe800000000000000042acfffe110002 02 40 20 80     eth0",
        "20010db8000000000000000000000007 02 40 00 00     eth0",
    ]
    monkeypatch.setattr(socket, "if_nameindex", lambda: [])
    monkeypatch.setattr(addresses, "open", lambda *args, **kwargs: io.StringIO("\n".join(table)), raising=False)

    assert (["2001:db8::7"], []) == (own_addresses(ipv6=True), own_addresses())


def test_own_addresses_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no telling, as on Windows, there are none."""

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(addresses, "open", missing, raising=False)

    assert [] == own_addresses(ipv6=True)
