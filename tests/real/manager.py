"""PID 1 of a private `systemd --user`, inside its namespaces: mounts, starts journald and the manager, ends with it.

It is run as a file, and so uses the standard library only.
"""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# As in a session of root: by these paths the journal tells the units of a user from those of the system.
FIRST = CGROUPS / "init.scope"
MANAGER = CGROUPS / "user.slice" / "user-0.slice" / "user@0.service"
JOURNALD = """
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToSyslog=no
ForwardToWall=no
"""


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def see_own_cgroup() -> None:
    """Make the own cgroup the root of all; a manager that saw more would take over the processes of the host."""
    mount("-t", "cgroup2", "none", str(CGROUPS))
    # Only what is not the root of all cgroups has events.
    if os.getpid() != 1 or not (CGROUPS / "cgroup.events").exists():
        raise SystemExit("no manager is started outside of namespaces and a cgroup of its own")
    FIRST.mkdir()
    (FIRST / "cgroup.procs").write_text(str(os.getpid()))


def start_journald(command: str, journal: Path, limit: float = 10.0) -> None:
    """Start journald, and wait until it listens."""
    mount("-t", "tmpfs", "tmpfs", "/run")
    for folder in ("systemd/system", "systemd/journald.conf.d", "log/journal"):
        Path("/run", folder).mkdir(parents=True)
    mount("--bind", str(journal), "/run/log/journal")
    Path("/run/systemd/journald.conf.d/tests.conf").write_text(JOURNALD)
    subprocess.Popen([command])
    deadline, pause = time.monotonic() + limit, threading.Event()
    while not Path("/run/systemd/journal/stdout").exists():
        if time.monotonic() > deadline:
            raise SystemExit("journald does not start")
        pause.wait(0.01)


def start_manager(command: str) -> int:
    """Start the manager in its cgroup; its process id."""
    MANAGER.mkdir(parents=True)
    into_cgroup = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(MANAGER / "cgroup.procs")]
    return subprocess.Popen([*into_cgroup, command, "--user"]).pid


def main(journald: str, manager: str, journal: str) -> None:
    mount("-t", "proc", "proc", "/proc")
    see_own_cgroup()
    start_journald(journald, Path(journal))
    started = start_manager(manager)
    # Processes without a parent come to PID 1.
    while os.wait()[0] != started:
        pass


if __name__ == "__main__":
    main(*sys.argv[1:])
