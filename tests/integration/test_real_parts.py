"""The real components that tests are made with work: hosts on a network, systemd, etcd, and what installs them."""

import base64
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.devices import InstrumentClient
from tests.helpers import PROJECT, Program, wait_until
from tests.real import install, parts
from tests.real.etcd import EtcdCluster, ask
from tests.real.hosts import Host, Hosts
from tests.real.parts import require
from tests.real.user_systemd import UserSystemd

UNIT = f"""
[Service]
Type=notify
ExecStart={sys.executable} -u -m tests.instrument serve tcp://127.0.0.1:0
WorkingDirectory={PROJECT}
WatchdogSec=2
# A stopped process does not abort.
WatchdogSignal=SIGKILL
Restart=always
RestartSec=0

[Install]
WantedBy=default.target
"""


def say(program: Program, text: str) -> str:
    """Have a program read a line; what it prints then."""
    assert program.process.stdin is not None
    program.process.stdin.write(f"{text}\n")
    program.process.stdin.flush()
    return program.output.readline().strip()


def echo(server: Host, client: Host) -> Program:
    """A connection between two hosts that says what is said to it."""
    port = server.popen("tests.real.echo", "serve", server.address).line
    return client.popen("tests.real.echo", "ask", server.address, port)


def test_connection_survives_a_cut(hosts: Hosts) -> None:
    """What passes between two hosts is lost without a word while they are cut, and comes when they are not any more."""
    first, second = hosts
    connection = echo(first, second)
    assert ("connected", "one") == (connection.line, say(connection, "one"))
    second.cut()
    second.cut()
    assert "silence" == say(connection, "two")
    second.heal()

    wait_until(lambda: "two" == say(connection, ""))


def test_no_connection_while_cut(hosts: Hosts) -> None:
    """A host that is cut can be reached by nobody, though it still reaches itself."""
    first, second = hosts
    port = first.popen("tests.real.echo", "serve", first.address).line
    first.cut()
    refused = second.run("tests.real.echo", "ask", first.address, port)

    assert "TimeoutError: timed out" == refused.stderr.splitlines()[-1]
    assert "connected" == first.popen("tests.real.echo", "ask", first.address, port).line


def test_multicast(hosts: Hosts) -> None:
    """A multicast reaches the other host; who sends one while cut is not told."""
    first, second = hosts
    hearer = first.popen("tests.real.echo", "hear", first.address)
    teller = second.popen("tests.real.echo", "tell", second.address)
    said = [say(teller, "one")]
    second.cut()
    said.append(say(teller, "two"))
    second.heal()
    said.append(say(teller, "three"))

    assert ["sent"] * 3 == said
    assert ["one", "three"] == [hearer.output.readline().strip() for _ in range(2)]


def test_three_hosts() -> None:
    """When one of three hosts is cut the two others still reach each other, and all have names of their own."""
    with Hosts(3) as hosts:
        hosts[0].cut()

        assert "one" == say(echo(hosts[1], hosts[2]), "one")
        assert 3 == len({host.command("hostname") for host in hosts})


def test_nothing_is_left_of_hosts() -> None:
    """When a test fails, its programs end and the namespaces are gone."""
    with pytest.raises(ZeroDivisionError), Hosts() as hosts:
        program = hosts[0].popen("tests.real.echo", "serve", hosts[0].address)
        holders = [host.holder for host in hosts]
        raise ZeroDivisionError

    assert -signal.SIGKILL == program.process.returncode
    assert [] == [pid for pid in holders if Path(f"/proc/{pid}").exists()]


def is_running(systemd: UserSystemd, restarts: int) -> bool:
    shown = systemd.systemctl("show", "--property=NRestarts,ActiveState", "instrument.service").stdout
    return {f"NRestarts={restarts}", "ActiveState=active"} == set(shown.split())


def test_systemd_restarts_what_fails(user_systemd: UserSystemd, context: Any) -> None:
    """A device as a service is restarted when it hangs and when it is killed, and ends when it is stopped."""
    user_systemd.install("instrument.service", UNIT)
    assert 0 == user_systemd.systemctl("start", "instrument").returncode
    assert is_running(user_systemd, 0)
    user_systemd.kill("instrument.service", signal.SIGSTOP)
    wait_until(lambda: is_running(user_systemd, 1))
    user_systemd.kill("instrument.service", signal.SIGKILL)
    wait_until(lambda: is_running(user_systemd, 2))
    journal = user_systemd.journal("instrument.service")
    with InstrumentClient(context, [line for line in journal.splitlines() if line.startswith("tcp://")][-1]) as client:
        assert 3 == client.add(1, 2)
    assert 0 == user_systemd.systemctl("stop", "instrument").returncode

    assert "Watchdog timeout" in journal
    assert ["inactive", "success"] == [
        user_systemd.show("instrument.service", name) for name in ("ActiveState", "Result")
    ]


def test_systemd_has_a_home_of_its_own(user_systemd: UserSystemd) -> None:
    """Services have a private home, and units can be enabled there; nothing of the host's manager is seen."""
    user_systemd.install("environment.service", "[Service]\nType=oneshot\nExecStart=env\n")
    user_systemd.install("instrument.service", UNIT)
    user_systemd.systemctl("start", "environment").check_returncode()
    user_systemd.systemctl("enable", "instrument").check_returncode()
    lines = user_systemd.journal("environment.service").splitlines()

    assert {f"HOME={user_systemd.home}", f"XDG_CONFIG_HOME={user_systemd.home}/.config"} <= set(lines)
    assert (user_systemd.units / "default.target.wants" / "instrument.service").is_symlink()
    assert "manager.py" in user_systemd.command("cat", "/proc/1/cmdline").stdout
    assert "home" == user_systemd.command("sh", "-c", "cd && basename $PWD").stdout.strip()


def test_nothing_is_left_of_systemd() -> None:
    """When a test fails, services that do not end by themselves are killed, and files and cgroups are removed."""
    before = set(parts.cgroups().glob("test-*"))
    with pytest.raises(ZeroDivisionError), UserSystemd() as systemd:
        systemd.install("stubborn.service", "[Service]\nExecStart=sleep 1000\nKillSignal=SIGCONT\n")
        systemd.systemctl("start", "stubborn").check_returncode()
        raise ZeroDivisionError

    assert (False, before) == (systemd.folder.exists(), set(parts.cgroups().glob("test-*")))
    assert [] == [each for each in Path("/proc").glob("[0-9]*/environ") if _mentions(each, str(systemd.folder))]


def _mentions(file: Path, text: str) -> bool:
    try:
        return text.encode() in file.read_bytes()
    except OSError:
        return False


def put(cluster: EtcdCluster, index: int, value: str) -> None:
    body = {"key": base64.b64encode(b"key").decode(), "value": base64.b64encode(value.encode()).decode()}
    ask(f"{cluster.endpoints[index]}/v3/kv/put", body, limit=1.0)


def get(cluster: EtcdCluster, index: int) -> str:
    body = {"key": base64.b64encode(b"key").decode()}
    found = ask(f"{cluster.endpoints[index]}/v3/kv/range", body, limit=1.0)["kvs"]
    return base64.b64decode(found[0]["value"]).decode()


def test_etcd_survives_its_leader(etcd_cluster: EtcdCluster) -> None:
    """When the leader is killed the others answer within three seconds; it comes back with the data."""
    leader = etcd_cluster.leader()
    follower = (leader + 1) % 3
    put(etcd_cluster, leader, "one")
    assert "one" == get(etcd_cluster, follower)
    etcd_cluster.kill(leader)

    def is_put() -> bool:
        try:
            put(etcd_cluster, follower, "two")
        except OSError:
            return False
        return True

    wait_until(is_put, 3.0)
    assert leader != etcd_cluster.leader()
    etcd_cluster.start(leader)

    assert "two" == get(etcd_cluster, leader)


def test_etcd_keeps_its_data() -> None:
    """A node that was killed has what it had; after the cluster is closed its data is gone."""
    with EtcdCluster(1) as cluster:
        put(cluster, 0, "kept")
        cluster.kill(0)
        with pytest.raises(OSError, match="refused"):
            get(cluster, 0)
        cluster.start(0)
        kept = get(cluster, 0)
        folder = cluster._folder
        assert folder.exists()
    cluster.close()

    assert ("kept", False) == (kept, folder.exists())


@pytest.fixture
def no_such_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command and a privilege that nobody has."""
    monkeypatch.setitem(parts.PACKAGES, "no-such-command", "no-such-package")
    monkeypatch.setitem(parts.PRIVILEGES, "miracles", lambda: False)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("no-such-command", "no no-such-command: apt-get install no-such-package"),
        ("miracles", "no permission for miracles: run as root, in a container with --privileged"),
    ],
)
@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_missing_part(
    no_such_part: None, monkeypatch: pytest.MonkeyPatch, part: str, reason: str, ci: str, outcome: type[Exception]
) -> None:
    """What needs a missing part is skipped, saying how to get it, and fails in CI."""
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome) as raised:
        require("unshare", part)

    assert reason == str(raised.value)


class FakeApt:
    """Stands for apt-get, and writes down what it is to do and which units are masked then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.units = folder / "units"
        self.units.mkdir()

    def put(self, command: str, script: str = "") -> None:
        """A command that does no more than the script."""
        file = self.folder / command
        verb = 'case $each in install|update|disable) echo "$each" $(ls "$folder/units");; esac'
        file.write_text(
            f'#!/bin/sh\nfolder={self.folder}\nfor each in "$@"; do {verb}; done >> "$folder/calls"\n{script}\n'
        )
        file.chmod(0o755)

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def apt(no_such_part: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    """apt-get, for root, with a package to install that brings a service."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = FakeApt(tmp_path)
    monkeypatch.setattr(install, "NEEDED", ["sh", "no-such-command"])
    monkeypatch.setattr(install, "SERVICES", {"no-such-package": "no-such"})
    monkeypatch.setattr(install, "UNITS", made.units)
    made.put("apt-get")
    made.put("update-rc.d")
    return made


def test_install(apt: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing is installed; its service is masked meanwhile, and disabled then."""
    install.main()

    assert ("installing no-such-package … (Debian)\n", "") == capsys.readouterr()
    assert ["install no-such.service", "disable"] == apt.calls()


def test_install_of_unknown_package(apt: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    """Only when a package is unknown the lists are updated."""
    unknown = "E: Unable to locate package no-such-package"
    apt.put("apt-get", f'grep -q update "$folder/calls" || {{ echo "{unknown}"; exit 100; }}')
    install.main()

    assert ["install", "update", "install", "disable"] == [call.split()[0] for call in apt.calls()]
    assert "" == capsys.readouterr().err


def test_install_fails(apt: FakeApt, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a network there is a warning, and the tests go on."""
    apt.put("apt-get", 'echo "E: Failed to fetch"; exit 100')
    install.main()

    expected = "warning: no-such-package could not be installed: apt-get ended with status 100: E: Failed to fetch\n"
    assert (expected, ["install no-such.service", "disable"]) == (capsys.readouterr().err, apt.calls())


def test_install_is_for_root(
    apt: FakeApt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody else installs anything, nor does root when there is nothing to do or no apt."""
    with monkeypatch.context() as changed:
        changed.setattr(os, "geteuid", lambda: 1000)
        install.main()
    with monkeypatch.context() as changed:
        changed.setattr(install, "NEEDED", ["sh"])
        install.main()
    with monkeypatch.context() as changed:
        changed.setenv("PATH", "")
        install.main()

    assert (("", ""), []) == (capsys.readouterr(), apt.calls())
