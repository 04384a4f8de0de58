"""Install from Debian what is missing for the tests; only root does, and never more than a warning comes of it."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.real.parts import PACKAGES, find

NEEDED = ["etcd", "ip", "iptables", "systemd"]
SERVICES = {"etcd-server": "etcd"}
"""What a package would start, now and whenever the computer starts."""
UNITS = Path("/etc/systemd/system")
LIMIT = 600.0
"""How long apt may take, s."""

# Nothing of the user's is removed, and no service restarted.
_INSTALL = ["install", "--yes", "--quiet", "--no-install-recommends", "--no-remove", "--no-upgrade"]
_PATIENCE = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10", "-o", "DPkg::Lock::Timeout=60"]
_ENVIRONMENT = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "RUNLEVEL": "1"}
# The lists are missing, or older than what the mirror has.
_UNKNOWN = ("Unable to locate package", "has no installation candidate", "404  Not Found")


@contextlib.contextmanager
def not_started(service: str) -> Iterator[None]:
    """A service that is installed meanwhile is not started, and not enabled afterwards."""
    # systemd starts nothing that is masked; other init systems heed RUNLEVEL.
    mask = UNITS / f"{service}.service"
    is_ours = not os.path.lexists(mask)
    if is_ours:
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.symlink_to("/dev/null")
    try:
        yield
    finally:
        if is_ours:
            mask.unlink(missing_ok=True)
            run("update-rc.d", service, "disable")


def run(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command, its output and errors in one text."""
    return subprocess.run(
        [find(command) or command, *arguments],
        env={**os.environ, **_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )


def install(packages: list[str]) -> None:
    """Install packages; OSError when that fails."""
    with contextlib.ExitStack() as stack:
        for package in packages:
            if package in SERVICES:
                stack.enter_context(not_started(SERVICES[package]))
        ran = run("apt-get", *_PATIENCE, *_INSTALL, *packages)
        if ran.returncode and any(text in ran.stdout for text in _UNKNOWN):
            run("apt-get", *_PATIENCE, "update", "--quiet")
            ran = run("apt-get", *_PATIENCE, *_INSTALL, *packages)
    if ran.returncode:
        errors = [line for line in ran.stdout.splitlines() if line.startswith("E: ")]
        raise OSError(f"apt-get ended with status {ran.returncode}: {' '.join(errors) or ran.stdout[-500:]}")


def main() -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    packages = sorted({PACKAGES[command] for command in NEEDED if find(command) is None})
    if not packages:
        return
    print(f"installing {', '.join(packages)} … (Debian)", flush=True)
    try:
        install(packages)
    except (OSError, subprocess.TimeoutExpired) as exc:
        print(f"warning: {', '.join(packages)} could not be installed: {exc}", file=sys.stderr)


if __name__ == "__main__":
    main()
