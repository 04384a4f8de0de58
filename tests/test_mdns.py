"""Registries that are announced and found by mDNS, in networks of their own."""

import ipaddress
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rpc_kit.mdns import MOST_FOUND, check_addresses, ranked_urls
from tests.helpers import Program
from tests.real.hosts import Hosts, Namespace
from tests.real.parts import require

Start = Callable[..., Program]

OWN = [ipaddress.ip_interface(each) for each in ("127.0.0.1/8", "192.168.1.7/24", "172.17.0.1/16", "fd00::7/64")]
"""What a host with a bridge of Docker has."""


URLS = [f"tcp://127.0.0.1:{port}" for port in range(5001, 5009)]


@pytest.fixture
def here() -> Iterator[Namespace]:
    """A network that has nothing but the loopback."""
    require("ip", "nsenter", "unshare", "root", "network namespaces")
    made = Namespace()
    try:
        made.ip("link set lo up", "link set lo multicast on", "route add 224.0.0.0/4 dev lo")
        yield made
    finally:
        made.close()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts with a cable between them."""
    with Hosts() as made:
        yield made


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the programs in a network; Python makes them say what they leave open."""
    monkeypatch.setenv("PYTHONWARNINGS", "default::ResourceWarning")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.delenv("RPC_REGISTRY", raising=False)
    programs = []

    def run(place: Namespace, role: str, *arguments: str) -> Program:
        programs.append(Program("tests.discoverer", role, *arguments, prefix=place.prefix))
        return programs[-1]

    yield run
    for program in programs:
        program.kill()


def found(program: Program) -> Any:
    """What a program found, after its orderly end."""
    assert (0, "") == program.end()
    return json.loads(program.line)


def close(program: Program, errors: str = "") -> Any:
    """End an announcement; the threads that are left then, and whether that was soon."""
    assert program.process.stdin is not None
    program.process.stdin.write("\n")
    program.process.stdin.flush()
    line = program.output.readline()
    assert (0, errors) == program.end()
    return json.loads(line)


def test_announced_registry_is_found(here: Namespace, start: Start) -> None:
    """A registry on the loopback is found on the same host."""
    start(here, "announce", "127.0.0.1", "--port", "5001")

    assert ["tcp://127.0.0.1:5001"] == found(start(here, "find", "tcp://127.0.0.1:5001"))


def test_search_within_an_event_loop(here: Namespace, start: Start) -> None:
    """A thread that runs an event loop, as in Jupyter, can look for registries."""
    start(here, "announce", "127.0.0.1", "--port", "5001")

    assert ["tcp://127.0.0.1:5001"] == found(start(here, "find", "--loop", "tcp://127.0.0.1:5001"))


def test_registries_of_one_name_are_all_found(here: Namespace, start: Start) -> None:
    """Two registries of the same name, announced at the same time on the same host, are both found."""
    for port in ("5001", "5002"):
        start(here, "announce", "127.0.0.1", "--port", port, "--name", "laboratory")

    assert URLS[:2] == sorted(found(start(here, "find", *URLS[:2])))


def test_order_is_that_of_the_names(here: Namespace, start: Start) -> None:
    """All that look find the registries in the same order, each with all its urls."""
    start(here, "announce", "127.0.0.1", "::1", "--port", "5001", "--name", "second")
    start(here, "announce", "127.0.0.1", "--port", "5002", "--name", "first")
    urls = ["tcp://127.0.0.1:5002", "tcp://127.0.0.1:5001", "tcp://[::1]:5001"]

    assert urls == found(start(here, "find", *urls))


def test_one_look_finds_all(here: Namespace, start: Start) -> None:
    """Each look finds all registries, also when another one was just before it."""
    for port in range(5001, 5004):
        start(here, "announce", "127.0.0.1", "--port", str(port), "--name", str(port))

    assert 5 * [URLS[:3]] == found(start(here, "find", *URLS[:3], "--more", "5", "--extra", "0.4"))


def test_any_name_is_announced(here: Namespace, start: Start) -> None:
    """What DNS does not take in a name is left out or replaced."""
    names = ["a.b._tcp.local.", "zwölf\n\x01", "µ" * 200, "", "\udcff", "-", "a" * 49 + "ü"]
    for port, name in enumerate(names, 5001):
        start(here, "announce", "127.0.0.1", "--port", str(port), f"--name={name}")

    assert URLS[: len(names)] == sorted(found(start(here, "find", *URLS[: len(names)])))


def test_closed_announcement_is_withdrawn(here: Namespace, start: Start) -> None:
    """Others hear at once that a registry ended; no thread is left, and it is not found any more."""
    watcher = start(here, "watch")
    registry = start(here, "announce", "127.0.0.1", "--port", "5001", "--name", "laboratory")
    assert "Added laboratory" == watcher.output.readline().strip()

    assert [["MainThread"], True] == close(registry)
    assert "Removed laboratory" == watcher.output.readline().strip()
    assert "mDNS found none within 1 s" == found(start(here, "find", "--timeout", "1"))


def test_announcement_is_closed_while_it_starts(here: Namespace, start: Start) -> None:
    """An announcement that is closed at once leaves nothing."""
    registry = start(here, "announce", "127.0.0.1", "--port", "5001")

    assert [["MainThread"], True] == close(registry)


def test_announcement_follows_the_addresses(here: Namespace, start: Start) -> None:
    """A registry on all interfaces is announced with those that come after its start."""
    start(here, "announce", "*", "--port", "5001")
    assert ["tcp://127.0.0.1:5001"] == found(start(here, "find", "tcp://127.0.0.1:5001"))

    here.ip(
        "link add eth0 type veth peer name eth1", "address add 10.78.0.1/24 dev eth0", "link set eth0 up",
        "link set eth1 up",
    )  # fmt: skip

    assert ["tcp://10.78.0.1:5001"] == found(start(here, "find", "tcp://10.78.0.1:5001"))


def test_damaged_announcements_are_ignored(here: Namespace, start: Start) -> None:
    """Addresses and ports that nobody can connect to are left out."""
    crowd = ["127.0.0.1/0", "0.0.0.0/5001", "224.0.0.1,255.255.255.255,fe80::1,ff02::1,::/5002", "0.0.0.0,::1/5003"]
    start(here, "crowd", *crowd)

    assert ["tcp://[::1]:5003"] == found(start(here, "find"))


def test_number_of_registries_is_limited(here: Namespace, start: Start) -> None:
    """Somebody who announces many registries makes nobody look at all of them."""
    start(here, "crowd", *(f"127.0.0.1/{port}" for port in range(5001, 5009)))

    assert 5 == len(found(start(here, "find", "--most", "5", "--extra", "0.8")))
    assert URLS == found(start(here, "find", *URLS))


def test_number_of_found_urls_is_limited(here: Namespace, start: Start) -> None:
    """Registries with many addresses each are no more urls to try than others."""
    start(here, "crowd", *(f"127.0.0.1,127.0.0.2,127.0.0.3/{port}" for port in (5001, 5002, 5003)))

    assert 5 == len(found(start(here, "find", "--most", "5", "--extra", "0.8")))


def test_host_without_a_network(here: Namespace, start: Start) -> None:
    """Without a network nothing is found, and the registry is announced as soon as there is one."""
    here.ip("link set lo down", "address flush dev lo")
    registry = start(here, "announce", "*", "--port", "5001")
    reason = found(start(here, "find", "--timeout", "1"))

    assert "mDNS is not available: this host has no address of IPv4" == reason
    here.ip("link set lo up")
    assert ["tcp://127.0.0.1:5001"] == found(start(here, "find", "tcp://127.0.0.1:5001"))
    problem = "OSError('this host has no address of IPv4')"
    assert [["MainThread"], True] == close(
        registry, f"WARNING rpc_kit.mdns: the registry cannot be announced: {problem}\n"
    )


def test_registry_on_another_host(hosts: Hosts, start: Start) -> None:
    """A registry on all interfaces is found on other hosts, one on the loopback only on its own."""
    start(hosts[0], "announce", "127.0.0.1", "--port", "5001", "--name", "a")
    start(hosts[0], "announce", "*", "--port", "5002", "--name", "b")
    both = ["tcp://127.0.0.1:5001", f"tcp://{hosts[0].address}:5002"]

    assert both == found(start(hosts[0], "find", *both))
    assert 5 * [both[1:]] == found(start(hosts[1], "find", both[1], "--more", "5", "--extra", "0.4"))


def test_port_in_use_by_another_program(hosts: Hosts, start: Start) -> None:
    """Where another program has the port of mDNS for itself, registries are found all the same."""
    start(hosts[1], "block")
    start(hosts[0], "announce", "*", "--port", "5001")
    url = f"tcp://{hosts[0].address}:5001"

    assert [url] == json.loads(start(hosts[1], "find", url).line)
    assert "mDNS is not available: [Errno 98] Address already in use" == json.loads(
        start(hosts[1], "find", "--timeout", "0").line
    )


@pytest.mark.parametrize(
    ("announced", "expected"),
    [
        ("10.0.0.5 192.168.1.5", "192.168.1.5 10.0.0.5"),
        ("fd00::5 10.0.0.5", "[fd00::5] 10.0.0.5"),
        ("fd11::5 10.0.0.5", "10.0.0.5 [fd11::5]"),
        ("172.17.0.1 10.0.0.5", "10.0.0.5 172.17.0.1"),
        ("172.17.0.1 192.168.1.7", "172.17.0.1 192.168.1.7"),
        ("127.0.0.1", "127.0.0.1"),
        ("169.254.3.4", "169.254.3.4"),
        ("", ""),
    ],
)
def test_likely_urls_come_first(announced: str, expected: str) -> None:
    """First come networks of ours, then IPv4, then IPv6; last what would lead to a bridge of our own."""
    addresses = {*map(ipaddress.ip_address, announced.split())}

    assert [f"tcp://{host}:5555" for host in expected.split()] == ranked_urls(addresses, 5555, OWN)


def test_number_of_urls_is_limited() -> None:
    """A registry with very many addresses gets a limited number of urls."""
    assert MOST_FOUND == len(ranked_urls({*ipaddress.ip_network("10.0.0.0/24")}, 5555, OWN))


@pytest.mark.parametrize(
    "addresses", [[], ["localhost"], ["eth0"], ["127.0.0.1", ""], ["tcp://127.0.0.1:5555"], ["fe80::1%eth0"]]
)
def test_addresses_that_cannot_be_announced(addresses: list[str]) -> None:
    """Names are no addresses, and an address of a link means nothing to others."""
    with pytest.raises(ValueError):
        check_addresses(addresses)
