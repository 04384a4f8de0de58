"""A registry on one host, a device on another one, and the link between them that is cut."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices import LIMIT
from tests.helpers import Program, wait_until
from tests.real.hosts import INTERFACE, Host, Hosts
from tests.real.lab import LIVENESS

LEASE = 3.0
ALL = ("--addr", "*", "--port", "0", "--store", "memory", "--no-announce")
LOST = LIVENESS + 2.0
"""What a call may take when its device cannot be reached: a look, the registry, another look, s."""
SLACK = 2.0


def say(program: Program, text: str) -> tuple[str, float]:
    """Have a client do something; what came of it, and how long that took, s."""
    assert program.process.stdin is not None
    program.process.stdin.write(f"{text}\n")
    program.process.stdin.flush()
    outcome, _, seconds = program.output.readline().rpartition(" ")
    return outcome, float(seconds)


def ticks_come(client: Program) -> bool:
    """Have the device emit a signal; whether any has come."""
    return say(client, "tick")[0] == "None" and say(client, "ticks")[0] != "0"


class Lab:
    """The registry and a watcher on host A, a device on host B."""

    def __init__(self, a: Host, b: Host) -> None:
        self.a, self.b = a, b
        served = a.popen("registry", "serve", *ALL).line
        self.registry = f"tcp://{a.address}:{served.rpartition(':')[2]}"
        self.watcher = a.popen("tests.real.lab", "watch", self.registry)
        self.device = self.serve(b)
        self.port = self.device.line.rpartition(":")[2]
        self.url = f"tcp://{b.address}:{self.port}"

    def serve(self, host: Host) -> Program:
        registered = ("--registry", self.registry, "--name", "left", "--lease", str(LEASE))
        return host.popen("tests.instrument", "serve", "tcp://*:0", *registered)

    def client(self, host: Host, name: str = "left") -> Program:
        made = host.popen("tests.real.lab", "use", name, self.registry if "://" not in name else "")
        assert "connected" == made.line
        return made

    def next_change(self) -> str:
        """What the watcher sees next."""
        return self.watcher.output.readline().strip()


@pytest.fixture
def lab(hosts: Hosts) -> Iterator[Lab]:
    a, b = hosts
    made = Lab(a, b)
    assert f"added left {made.url}" == made.next_change()
    yield made


def test_cut_for_longer_than_the_lease(lab: Lab) -> None:
    """The registry gives the device up, which serves its own host; after the heal it is back, and its clients go on."""
    client, local = lab.client(lab.a), lab.client(lab.b, f"tcp://127.0.0.1:{lab.port}")
    assert ("1", lab.url) == (say(client, "count")[0], say(client, "url")[0])
    began = time.monotonic()
    lab.b.cut()
    outcome, seconds = say(client, "count")
    assert ("ServerLost", True) == (outcome, seconds < LOST + SLACK)
    assert "removed left expired" == lab.next_change()
    assert time.monotonic() - began < LEASE + LOST + SLACK
    # What was under way may have arrived; it was cut, not lost.
    before = int(say(local, "count")[0])
    assert before in (2, 3)
    outcome, seconds = say(client, "count")
    assert ("ServerLost", True) == (outcome, seconds < LOST + SLACK)
    lab.b.heal()
    healed = time.monotonic()

    assert f"added left {lab.url}" == lab.next_change()
    assert time.monotonic() - healed < LIMIT
    wait_until(lambda: say(client, "count")[0] != "ServerLost")
    assert int(say(client, "count")[0]) > before
    wait_until(lambda: ticks_come(client))
    assert int(say(local, "count")[0]) > before


def test_cut_for_less_than_the_lease(lab: Lab) -> None:
    """Nobody notices but those who call: nothing is removed, and the client goes on."""
    client = lab.client(lab.a)
    lab.b.cut()
    assert "ServerLost" == say(client, "count")[0]
    lab.b.heal()
    wait_until(lambda: say(client, "count")[0] != "ServerLost")
    second = lab.a.popen("tests.real.lab", "watch", lab.registry)

    assert f"added left {lab.url}" == second.output.readline().strip()
    lab.device.process.terminate()
    # The first change since it was added.
    assert "removed left unregistered" == lab.next_change()


def test_client_on_the_host_of_the_device(lab: Lab) -> None:
    """Who was connected by name to a device of the same host notices nothing of a registry that is cut off."""
    client = lab.client(lab.b)
    assert "1" == say(client, "count")[0]
    lab.a.cut()
    outcomes = [say(client, "count") for _ in range(3)]
    lab.a.heal()

    assert ["2", "3", "4"] == [outcome for outcome, _ in outcomes]
    assert max(seconds for _, seconds in outcomes) < SLACK


def test_address_changes(lab: Lab) -> None:
    """When the host of the device gets another address the entry is changed, and the client follows."""
    client = lab.client(lab.a)
    assert "1" == say(client, "count")[0]
    lab.b.ip(f"address del {lab.b.address}/24 dev {INTERFACE}", f"address add 10.77.0.9/24 dev {INTERFACE}")

    assert f"changed left tcp://10.77.0.9:{lab.port}" == lab.next_change()
    wait_until(lambda: say(client, "count")[0] != "ServerLost")
    assert f"tcp://10.77.0.9:{lab.port}" == say(client, "url")[0]


def test_device_moves_to_another_host(lab: Lab) -> None:
    """A device that died is served on the host of the registry; the client and its signals follow."""
    client = lab.client(lab.a)
    lab.device.kill()
    lab.serve(lab.a)
    assert "removed left replaced" == lab.next_change()
    assert lab.next_change().startswith("added left tcp://")
    wait_until(lambda: say(client, "count")[0] != "ServerLost")

    assert "2" == say(client, "count")[0]
    assert lab.url != say(client, "url")[0]
    wait_until(lambda: ticks_come(client))


def test_nobody_names_a_registry(hosts: Hosts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A registry that announces itself is all that a device on one host and a client on another one need."""
    monkeypatch.delenv("RPC_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    a, b = hosts
    a.popen("registry", "serve", "--addr", "*", "--port", "0", "--store", "memory")
    b.popen("rpc_kit", "serve", "tests.devices:InstrumentServer", "--name", "left", "--url", "tcp://*:0")
    client = a.popen("tests.real.lab", "use", "left", "")

    assert "1" == say(client, "count")[0]
    assert say(client, "url")[0].startswith(f"tcp://{b.address}:")


def test_device_is_there_before_its_registry(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A device that finds no registry is served, and registers when one announces itself."""
    monkeypatch.delenv("RPC_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    a, b = hosts
    b.popen("rpc_kit", "serve", "tests.devices:InstrumentServer", "--name", "left", "--url", "tcp://*:0")
    port = a.popen("registry", "serve", "--addr", "*", "--port", "0", "--store", "memory").line.rpartition(":")[2]
    watcher = a.popen("tests.real.lab", "watch", f"tcp://{a.address}:{port}")

    assert watcher.output.readline().startswith(f"added left tcp://{b.address}:")
