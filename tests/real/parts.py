"""Which commands and privileges there are; a test that misses one skips and says how to get it, or fails in CI."""

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGES = {
    "etcd": "etcd-server",
    "ip": "iproute2",
    "iptables": "iptables",
    "systemd": "systemd",
    "systemctl": "systemd",
    "journalctl": "systemd",
    "systemd-analyze": "systemd",
    "systemd-journald": "systemd",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
}
"""The Debian package of each command."""

LIMIT = 10.0
"""How long trying out a privilege may take, s."""

# Not everybody has the first ones on the PATH, and nobody the others.
_FOLDERS = ("/usr/sbin", "/sbin", "/usr/lib/systemd", "/lib/systemd")


def find(command: str) -> str | None:
    """Where a command is."""
    return shutil.which(command, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_FOLDERS]))


def path_of(command: str) -> str:
    """Where a command is that is there."""
    found = find(command)
    if found is None:
        raise FileNotFoundError(f"no {command}: apt-get install {PACKAGES.get(command, command)}")
    return found


def cgroups() -> Path:
    """Where the cgroups of version 2 are, also on a system that has those of version 1 besides."""
    root = Path("/sys/fs/cgroup")
    return next((each for each in (root / "unified", root) if (each / "cgroup.procs").exists()), root)


def _is_root() -> bool:
    return os.geteuid() == 0


def _succeeds(command: str, *arguments: str) -> bool:
    try:
        ran = subprocess.run(
            [path_of(command), *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0


def _makes_networks() -> bool:
    pair = ("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    return _succeeds("unshare", "--net", "--uts", find("ip") or "ip", *pair)


def _filters_packets() -> bool:
    rule = ("-A", "INPUT", "-i", "eth0", "-j", "DROP")
    return _succeeds("unshare", "--net", find("iptables") or "iptables", *rule)


def _makes_process_namespaces() -> bool:
    namespaces = ("--mount", "--cgroup", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private")
    return _succeeds("unshare", *namespaces, "mount", "-t", "proc", "proc", "/proc")


def _makes_cgroups() -> bool:
    made = cgroups() / f"test-{os.getpid()}-probe"
    try:
        made.mkdir()
        # Outside of version 2 this would be a folder like any other.
        complete = (made / "cgroup.procs").exists()
        made.rmdir()
    except OSError:
        return False
    return complete


PRIVILEGES: dict[str, Callable[[], bool]] = {
    "root": _is_root,
    "network namespaces": _makes_networks,
    "packet filter": _filters_packets,
    "process namespaces": _makes_process_namespaces,
    "cgroup v2": _makes_cgroups,
}
"""How each privilege is tried out."""


@functools.cache
def _is_granted(privilege: str) -> bool:
    return PRIVILEGES[privilege]()


def missing(*parts: str) -> str:
    """What is missing of the commands and privileges, and how to get it; empty when nothing is."""
    commands = [part for part in parts if part not in PRIVILEGES and find(part) is None]
    if commands:
        packages = sorted({PACKAGES[command] for command in commands})
        return f"no {', '.join(commands)}: apt-get install {' '.join(packages)}"
    refused = [part for part in parts if part in PRIVILEGES and not _is_granted(part)]
    return f"no permission for {', '.join(refused)}: run as root, in a container with --privileged" if refused else ""


def require(*parts: str) -> None:
    """Skip the test, or fail it with CI=true, when one of the commands and privileges is missing."""
    reason = missing(*parts)
    if not reason:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
