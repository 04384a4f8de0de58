"""A real `systemd --user` with a journal of its own, in namespaces and a cgroup beyond which it sees nothing."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

import psutil

from tests.devices import LIMIT
from tests.helpers import PROJECT, wait_until
from tests.real.parts import cgroups, path_of, require

# Of the units that the host has, only these are there.
_UNITS = [f"{name}.target" for name in ("default", "basic", "sockets", "timers", "paths", "shutdown", "exit")]
_UNITS += ["systemd-exit.service", "app.slice", "session.slice", "background.slice"]
_NAMESPACES = ("--mount", "--cgroup", "--pid", "--fork", "--kill-child=KILL", "--propagation", "private")
_numbers = itertools.count(1)


class UserSystemd:
    """A service manager as a user has it; a context manager.

    Its processes have `home` as their home, and the project on PYTHONPATH. Units that are installed are in `units`.
    """

    def __init__(self) -> None:
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._first = 0
        self._closing = contextlib.ExitStack()

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def units(self) -> Path:
        """Where a user's own units are."""
        return self.home / ".config" / "systemd" / "user"

    @property
    def environment(self) -> dict[str, str]:
        """What the manager, its services and the commands inherit."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "SYSTEMD_UNIT_PATH": f"{self.units}:{self.folder / 'base'}",
            "SYSTEMD_GENERATOR_PATH": "",
            "SYSTEMD_ENVIRONMENT_GENERATOR_PATH": "",
            "SYSTEMD_LOG_TARGET": "journal",
            "PYTHONPATH": str(PROJECT),
        }

    def __enter__(self) -> Self:
        require("systemd", "systemctl", "journalctl", "systemd-journald", "nsenter", "unshare", "setpriv")
        require("root", "process namespaces", "cgroup v2")
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="rpc-kit-systemd-", dir="/dev/shm"))
            stack.callback(shutil.rmtree, self.folder)
            self._fill_folder()
            cgroup = cgroups() / f"test-{os.getpid()}-{next(_numbers)}"
            cgroup.mkdir()
            stack.callback(_remove_cgroup, cgroup)
            self._process = self._start(cgroup)
            stack.callback(self._end)
            wait_until(self._is_up)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.close()

    def install(self, unit: str, text: str) -> None:
        """Write a unit, and let the manager read it."""
        (self.units / unit).write_text(text)
        self.systemctl("daemon-reload").check_returncode()

    def systemctl(self, *arguments: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """Run `systemctl --user`."""
        return self.command("systemctl", "--user", *arguments, limit=limit)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, such as ActiveState."""
        shown = self.systemctl("show", f"--property={name}", "--value", "--", unit)
        shown.check_returncode()
        return shown.stdout.strip()

    def kill(self, unit: str, number: int) -> None:
        """Send a signal to all processes of a unit."""
        self.systemctl("kill", f"--signal={signal.Signals(number).name}", "--", unit).check_returncode()

    def journal(self, unit: str) -> str:
        """What a unit has printed and logged, and what the manager says of it."""
        self.command("journalctl", "--sync").check_returncode()
        read = self.command("journalctl", f"--user-unit={unit}", "--output=cat", "--quiet")
        read.check_returncode()
        return read.stdout

    def command(self, command: str, *arguments: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """Run any command as a user of the manager would."""
        assert self._process is not None
        enter = [path_of("nsenter"), f"--target={self._first}", "--mount", "--pid", f"--wd={PROJECT}", "--"]
        # Who is killed outside leaves what it started inside.
        limited = ["timeout", "--signal=KILL", str(limit)]
        ran = subprocess.run(
            [*enter, *limited, command, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit + LIMIT,
        )
        if ran.returncode == -signal.SIGKILL:
            raise subprocess.TimeoutExpired([command, *arguments], limit, ran.stdout, ran.stderr)
        return ran

    def _fill_folder(self) -> None:
        for each in (self.units, self.folder / "base", self.folder / "journal"):
            each.mkdir(parents=True)
        (self.folder / "run").mkdir(mode=0o700)
        for name in _UNITS:
            shutil.copy(Path("/usr/lib/systemd/user", name), self.folder / "base")

    def _start(self, cgroup: Path) -> "subprocess.Popen[bytes]":
        # The cgroup comes first: a manager without one of its own would move every process of the host. All of them end
        # with the thread that started them (pdeathsig), and so even when the tests are killed.
        into_cgroup = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(cgroup / "cgroup.procs")]
        into_namespaces = [path_of("setpriv"), "--pdeathsig", "KILL", path_of("unshare"), *_NAMESPACES]
        first = [sys.executable, "-I", "-S", str(Path(__file__).with_name("manager.py"))]
        parts = [path_of("systemd-journald"), path_of("systemd"), str(self.folder / "journal")]
        with (self.folder / "manager.log").open("wb") as log:
            return subprocess.Popen(
                [*into_cgroup, *into_namespaces, *first, *parts],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise OSError(f"no systemd: {(self.folder / 'manager.log').read_text().strip()}")
        if not (self.folder / "run" / "systemd" / "private").exists():
            return False
        self._first = psutil.Process(self._process.pid).children()[0].pid
        return self.systemctl("show-environment").returncode == 0

    def _end(self) -> None:
        assert self._process is not None
        # Services that end by themselves remove what they have elsewhere, as in /tmp; there is no waiting for others.
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._first:
                self.systemctl("exit", limit=1.0)
                self._process.wait(2.0)
        self._process.kill()
        self._process.wait(LIMIT)


def _remove_cgroup(cgroup: Path) -> None:
    """End what is left in a cgroup of ours, and remove it."""

    def is_gone() -> bool:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not cgroup.exists()

    with contextlib.suppress(FileNotFoundError):
        (cgroup / "cgroup.kill").write_text("1")
    wait_until(is_gone)
