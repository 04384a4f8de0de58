"""The units that ``rpc-kit units install`` writes, run by a real systemd: a registry, and a device with a file."""

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from rpc_kit import RegistryClient
from rpc_kit.errors import DeviceNotFound, RPCError
from rpc_kit.messages import Entry
from tests.devices import InstrumentClient, InstrumentServer
from tests.helpers import in_thread, wait_until
from tests.real.user_systemd import UserSystemd

DEVICE = "rpc-device@scope.service"
REGISTRY = "rpc-registry.service"
URL = re.compile(r"^tcp://127\.0\.0\.1:\d+$", re.MULTILINE)
START_LIMIT = 30.0
"""How long a restart may take, with all that goes before it, s."""

# As installed but for the times.
DROP_IN = """
[Service]
WatchdogSec=2
RestartSec=0.1
"""


class GatedServer(InstrumentServer):
    """Is made when somebody has opened the gate, a FIFO."""

    def __init__(self, context: Any, url: str, gate: Path) -> None:
        gate.read_text()
        super().__init__(context, url)


class Services:
    """The installed units in a manager of their own, and a registry that runs as one of them."""

    def __init__(self, systemd: UserSystemd) -> None:
        self.systemd = systemd
        self.folder = systemd.home / ".config" / "rpc-kit"
        (self.folder / "devices").mkdir(parents=True)
        (self.folder / "registry.toml").write_text('addr = "127.0.0.1"\nport = 0\nannounce = false\n')
        installed = systemd.command(sys.executable, "-m", "rpc_kit", "units", "install", "--user")
        assert (0, "") == (installed.returncode, installed.stderr)
        (systemd.units / "rpc-device@.service.d").mkdir()
        (systemd.units / "rpc-device@.service.d" / "times.conf").write_text(DROP_IN)
        self.systemctl("daemon-reload")
        self.systemctl("start", REGISTRY)
        self.registry_url = URL.findall(systemd.journal(REGISTRY))[0]

    def systemctl(self, *arguments: str) -> None:
        ran = self.systemd.systemctl(*arguments, limit=START_LIMIT)
        assert (0, "") == (ran.returncode, ran.stderr)

    def describe(self, cls: str, *lines: str) -> None:
        """Write the file of the device."""
        text = "\n".join([f'class = "{cls}"', f'registry = "{self.registry_url}"', *lines])
        (self.folder / "devices" / "scope.toml").write_text(text + "\n")

    def state(self) -> dict[str, str]:
        """Of the device: ActiveState, SubState, NRestarts, StatusText, Result."""
        names = ("ActiveState", "SubState", "NRestarts", "StatusText", "Result")
        return {name: self.systemd.show(DEVICE, name) for name in names}

    def is_restarted(self, times: int) -> bool:
        state = self.state()
        return (state["ActiveState"], state["NRestarts"]) == ("active", str(times))


@pytest.fixture
def services(user_systemd: UserSystemd) -> Services:
    """The units are installed, and the registry is active."""
    return Services(user_systemd)


@pytest.fixture
def names(services: Services, context: Any) -> Any:
    """A client of the registry."""
    with RegistryClient(services.registry_url, context) as client:
        yield client


@pytest.fixture
def scope(services: Services) -> Services:
    """A device is active, with a registry."""
    services.describe("tests.devices:InstrumentServer")
    services.systemctl("start", DEVICE)
    return services


def find(names: RegistryClient) -> Entry | None:
    try:
        return names.find("scope")
    except DeviceNotFound:
        return None


def test_active_when_it_is_served(services: Services, names: RegistryClient, connect: Any) -> None:
    """The unit is active when the device is served, and not before; then it is in the registry, and answers."""
    gate = services.folder / "gate"
    os.mkfifo(gate)
    cls = "tests.integration.test_systemd_services:GatedServer"
    services.describe(cls, "[settings]", f'gate = "{gate}"', "[metadata]", "floor = 2")
    services.systemctl("start", "--no-block", DEVICE)
    with open(gate, "w"):  # waits until the constructor reads
        assert ("activating", "start") == (services.state()["ActiveState"], services.state()["SubState"])
        assert find(names) is None
    wait_until(lambda: services.state()["ActiveState"] == "active", START_LIMIT)
    found = names.find("scope")

    assert ("instrument", 2) == (found.device_type, found.metadata["floor"])
    assert 3 == connect(found.address).add(1, 2)
    assert services.state()["StatusText"].startswith(f"scope at {found.address}")


def test_stop(scope: Services, names: RegistryClient) -> None:
    """A device that is stopped leaves the registry, and its log shows an orderly end."""
    assert find(names) is not None
    scope.systemctl("stop", DEVICE)

    assert None is find(names)
    state = scope.state()
    assert ("inactive", "success", "0") == (state["ActiveState"], state["Result"], state["NRestarts"])
    log = scope.systemd.journal(DEVICE)
    for text in ("serving scope at tcp://", "stopping on SIGTERM", "scope has ended", "Stopped "):
        assert text in log
    assert "<6>" not in log


def test_crash(scope: Services, names: RegistryClient, connect: Any) -> None:
    """A device that was killed is back with its name, at another url."""
    before = names.find("scope")
    scope.systemd.kill(DEVICE, signal.SIGKILL)
    wait_until(lambda: scope.is_restarted(1), START_LIMIT)
    found = names.find("scope")

    assert ("scope", True) == (found.name, found.epoch != before.epoch)
    assert ["scope"] == [entry.name for entry in names.list()]
    assert 3 == connect(found.address).add(1, 2)


def test_hang(scope: Services, names: RegistryClient, context: Any) -> None:
    """A device that hangs beyond the declared time of its method is ended by the watchdog, and back with its name."""
    before = names.find("scope")

    def hang() -> None:
        with InstrumentClient(context, before.address) as client:
            client.impatient()

    with in_thread(hang) as outcome:
        wait_until(lambda: scope.is_restarted(1), START_LIMIT)
    found = names.find("scope")

    assert isinstance(outcome[0], RPCError)
    assert ["scope"] == [entry.name for entry in names.list()]
    assert found.epoch != before.epoch
    log = scope.systemd.journal(DEVICE)
    assert "Watchdog timeout" in log
    assert "in block" in log, "the stack of the device that hung"


def test_registry_keeps_its_state(scope: Services, names: RegistryClient, context: Any) -> None:
    """What the registry knows is in the folder that its unit gives it, and known again after a restart."""
    assert "scope" == names.find("scope").name
    kept = list(scope.systemd.home.rglob("registry.sqlite"))
    scope.systemctl("restart", REGISTRY)
    urls = URL.findall(scope.systemd.journal(REGISTRY))

    assert (1, 2) == (len(kept), len(urls))
    with RegistryClient(urls[1], context) as client:
        assert ["scope"] == [entry.name for entry in client.list()]


def test_wrong_file(services: Services) -> None:
    """A device whose file is wrong fails once, with one line that says what is wrong."""
    services.describe("tests.devices:InstrumentServer", "nmae = 'scope'")
    ran = services.systemd.systemctl("start", DEVICE, limit=START_LIMIT)

    assert 1 == ran.returncode
    state = services.state()
    assert ("failed", "0", "exit-code") == (state["ActiveState"], state["NRestarts"], state["Result"])
    assert "rpc-kit: " in services.systemd.journal(DEVICE)
    errors = services.systemd.command("journalctl", "--priority=err", "--output=cat", f"--user-unit={DEVICE}").stdout
    assert [f"rpc-kit: {services.folder}/devices/scope.toml: unknown key `nmae`"] == [
        line.partition(";")[0] for line in errors.splitlines() if line.startswith("rpc-kit")
    ]


def test_crash_loop_ends(services: Services) -> None:
    """A device that cannot be made is tried ten times, and then no more."""
    services.describe("tests.test_cli_serve:BrokenServer", "[settings]", "late = true")
    services.systemd.systemctl("start", "--no-block", DEVICE)
    wait_until(lambda: services.state()["ActiveState"] == "failed", START_LIMIT)

    log = services.systemd.journal(DEVICE)
    assert 10 == log.count("rpc-kit: BrokenServer cannot be made: OSError")
    assert "Start request repeated too quickly" in log
