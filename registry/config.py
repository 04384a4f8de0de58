"""The settings of the registry service: flags, then the environment (``RPC_REGISTRY_*``), then a file."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from rpc_kit.cli.device_file import SYSTEM_FOLDER
from rpc_kit.folders import config_folder

from .stores.base import Store
from .stores.memory import MemoryStore
from .stores.sqlite import SqliteStore, default_file

PREFIX = "RPC_REGISTRY_"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a registry is served; the names are the keys of the file, and of the environment in upper case.

    Attributes
    ----------
    addr : str, default "*"
        Host or interface to listen on.
    port : int, default 5555
        0 for any free one.
    store : str, default "sqlite"
        ``memory``, ``sqlite``, ``sqlite:FILE`` or ``etcd:http://host:2379,http://…``.
    announce : bool, default True
        By mDNS, if the extra ``discovery`` is installed.
    log_level : str, default "info"
    log : str, default ""
        Levels of single loggers, as ``registry=debug,rpc_kit=warning``.
    etcd_ca, etcd_cert, etcd_key : str
        Files for TLS to etcd: the authority, the certificate of this registry and its key.
    """

    addr: str = "*"
    port: int = 5555
    store: str = "sqlite"
    announce: bool = True
    log_level: str = "info"
    log: str = ""
    etcd_ca: str = ""
    etcd_cert: str = ""
    etcd_key: str = ""


def settings(flags: Mapping[str, Any], file: Path | None = None) -> Settings:
    """The settings that hold; a flag of None was not given.

    Parameters
    ----------
    file
        In the place of ``RPC_REGISTRY_CONFIG``, ``~/.config/rpc-kit/registry.toml`` and ``/etc/rpc-kit/registry.toml``.

    Raises
    ------
    ValueError
        When one is wrong or unknown; says where it stands.
    OSError
        When a file that was named cannot be read.
    """
    found: dict[str, Any] = {}
    named = file or (Path(name) if (name := os.environ.get(f"{PREFIX}CONFIG")) else None)
    for path in [named] if named else _usual_files():
        if named or path.is_file():
            found = _of_file(path)
            break
    variables = {
        key: value for key in Settings.__struct_fields__ if (value := os.environ.get(PREFIX + key.upper(), "")) != ""
    }
    _converted(variables, "the environment", strict=False)
    given = {key: value for key, value in flags.items() if value is not None}
    return _converted({**found, **variables, **given}, "the settings", strict=False)


def make_store(text: str, ca: str = "", cert: str = "", key: str = "") -> Store:
    """The store that a setting names; not yet opened. The files are those for TLS to etcd.

    Raises
    ------
    ValueError
        When it names none.
    MissingExtra
        When what it needs is not installed.
    """
    kind, _, rest = text.partition(":")
    if kind == "memory" and not rest:
        return MemoryStore()
    if kind == "sqlite":
        # Not that of Path, which raises RuntimeError when there is no home.
        return SqliteStore(Path(os.path.expanduser(rest)) if rest else default_file())
    if kind == "etcd" and rest:
        from .stores.etcd import EtcdStore  # brings an HTTP client with it

        endpoints = [each.strip() for each in rest.split(",") if each.strip()]
        return EtcdStore(endpoints, ca_cert=ca or None, cert_cert=cert or None, cert_key=key or None)
    raise ValueError(f"a store is memory, sqlite, sqlite:FILE or etcd:http://host:2379,http://…, not {text!r}")


def _usual_files() -> list[Path]:
    folders = [config_folder(), SYSTEM_FOLDER]
    return [Path(folder) / "rpc-kit" / "registry.toml" for folder in folders if folder is not None]


def _of_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except ValueError as exc:
        raise ValueError(f"{path} is no TOML: {exc}") from exc
    _converted(found, str(path), strict=True)
    return found


def _converted(found: dict[str, Any], where: str, strict: bool) -> Settings:
    try:
        made = msgspec.convert(found, Settings, strict=strict)
    except msgspec.ValidationError as exc:
        raise ValueError(f"{where}: {exc}") from exc
    if not 0 <= made.port <= 65535:
        raise ValueError(f"{where}: a port is a number from 0 to 65535, not {made.port}")
    return made
