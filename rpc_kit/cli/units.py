"""``rpc-kit units``: the unit files by which systemd runs devices and the registry."""

import argparse
import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from ..folders import config_folder
from . import CommandError, UsageError
from .device_file import SYSTEM_FOLDER

NAMES = ("rpc-device@.service", "rpc-registry.service")
SYSTEM_UNITS = SYSTEM_FOLDER / "systemd" / "system"
MARK = '# Written by "rpc-kit units install"; to change it: systemctl edit. The rest has the hash '
HIDDEN = (Path("/tmp"), Path("/var/tmp"))
"""What a service with PrivateTmp sees nothing of."""


def add_command(commands: Any) -> None:
    """Add the command to those of ``rpc-kit``."""
    text = "Unit files by which systemd runs devices and the registry."
    parser = commands.add_parser("units", help="run devices and the registry under systemd", description=text)
    actions = parser.add_subparsers(required=True, metavar="action")
    install = actions.add_parser("install", help="write the unit files")
    install.set_defaults(run=run_install)
    install.add_argument("--directory", type=Path, metavar="DIR", help="write them there")
    install.add_argument("--force", action="store_true", help="overwrite files that were changed by hand")
    show = actions.add_parser("show", help="print the unit files")
    show.set_defaults(run=run_show, directory=None)
    for each in (install, show):
        each.add_argument("--user", action="store_true", help="for the services of a user, not of the system")


def run_show(options: argparse.Namespace) -> int:
    """Print what would be installed."""
    folder = _folder(options)
    for name in NAMES:
        print(f"# {folder / name}\n{unit_text(name, options.user)}")
    return 0


def run_install(options: argparse.Namespace) -> int:
    """Write the unit files, all or none, and say what to do next."""
    folder = _folder(options)
    texts = {folder / name: unit_text(name, options.user) for name in NAMES}
    for path in texts:
        if not options.force and _is_changed(path):
            raise CommandError(f"{path} was changed by hand; it is overwritten with --force only")
    for path, text in texts.items():
        _write(path, text)
        print(f"wrote {path}")
    obstacle = "" if options.user else _obstacle(_python())
    if obstacle:
        print(f"but a service cannot run {_python()}: {obstacle}")
    systemctl = "systemctl --user" if options.user else "systemctl"
    print(f"next: {systemctl} daemon-reload")
    print(f"then, for a device cam0 with the file {_device_file(options.user)}:")
    print(f"      {systemctl} enable --now rpc-device@cam0")
    return 0


def unit_text(name: str, for_user: bool) -> str:
    """A unit file; its first line has the hash of the others.

    Paragraphs of the template that begin with ``# [system]`` or ``# [user]`` are for the one manager only.
    """
    template = (resources.files(__package__) / "units" / name).read_text("utf-8")
    ours, others = ("# [user] ", "# [system] ") if for_user else ("# [system] ", "# [user] ")
    paragraphs = [each.replace(ours, "# ") for each in template.split("\n\n") if not each.startswith(others)]
    target = "default.target" if for_user else "multi-user.target"
    text = "\n\n".join(paragraphs).replace("{python}", _quoted(_python())).replace("{target}", target)
    return f"{MARK}{_hash(text)}\n{text}"


def _python() -> str:
    # Not resolved: what makes a virtual environment of it is its path.
    return os.path.abspath(sys.executable)


def _quoted(path: str) -> str:
    """A path as the program of ExecStart."""
    if not path.isprintable() or any(each in path for each in "\\\"'"):
        raise UsageError(f"systemd runs no program whose path has quotes, backslashes or control characters: {path!r}")
    text = path.replace("%", "%%")
    return f'"{text}"' if " " in text else text


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder(options: argparse.Namespace) -> Path:
    if options.directory is not None:
        return Path(os.path.abspath(options.directory))
    return _user_folder() / "systemd" / "user" if options.user else SYSTEM_UNITS


def _user_folder() -> Path:
    folder = config_folder()
    if folder is None:
        raise UsageError("this user has no home: set XDG_CONFIG_HOME")
    return Path(folder)


def _device_file(for_user: bool) -> Path:
    return (_user_folder() if for_user else SYSTEM_FOLDER) / "rpc-kit" / "devices" / "cam0.toml"


def _is_changed(path: Path) -> bool:
    """Whether there is something else than what was written by us."""
    try:
        found = path.read_text("utf-8")
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    except OSError as exc:
        raise CommandError(f"cannot read {path}: {exc.strerror}") from exc
    mark, _, rest = found.partition("\n")
    return mark != MARK + _hash(rest)


def _write(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".rpc-kit-", dir=path.parent)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(descriptor, 0o644)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError as exc:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        hint = "; run it as root, or with --user for services of your own" if isinstance(exc, PermissionError) else ""
        raise CommandError(f"cannot write {path}: {exc.strerror}{hint}") from exc


def _obstacle(python: str) -> str:
    """Why a service of the system, with a user of its own, cannot run this Python; empty when it can."""
    for folder in Path(python).parents:
        if folder in HIDDEN:
            return f"it sees nothing of {folder}"
        if not folder.stat().st_mode & stat.S_IXOTH:
            return f"{folder} is closed to others"
    return ""
