"""Device files: what is served, and how, in TOML; one file for each device."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ..folders import config_folder
from ..messages import Scalar
from ..server import LONGEST_LEASE
from . import UsageError

SYSTEM_FOLDER = Path("/etc")
DEFAULT_URL = "tcp://127.0.0.1:0"

_TEXTS = {
    "Object contains unknown field": "unknown key",
    "Object missing required field": "missing key",
    "Expected ": "expected ",
    "`$.": "`",
}
"""How msgspec names things, and how files are read."""


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[logging]``, the arguments of `set_up_logging`."""

    level: str = "info"
    filters: list[str] = []


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"class_": "class"}):
    """What a device file says; the keys are the names of the attributes.

    Attributes
    ----------
    class_ : str
        ``package.module:ClassName``, a subclass of RPCServer; the key is ``class``.
    name : str
        The proposed name in the registry; empty for ``<type>-0``.
    type : str
        Device type; empty for that of the interface.
    registry : str or list of str
        Urls; ``none`` to serve without one, empty to find one.
    settings : dict
        Keyword arguments of the class.
    """

    class_: str
    name: str = ""
    type: str = ""
    registry: str | list[str] = ""
    url: str | list[str] = DEFAULT_URL
    overwrite: bool = True
    max_missed: Annotated[int, msgspec.Meta(ge=1)] | None = None
    alive_timeout: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_LEASE)] | None = None
    settings: dict[str, Any] = {}
    metadata: dict[str, Scalar] = {}
    logging: LogSettings = LogSettings()


def find_file(name: str) -> Path:
    """The file of a device, of the user or else of the system.

    Raises
    ------
    UsageError
        When it has none; says where it would be.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise UsageError(f"{name!r} is no name of a device; the path of a file is given with --config")
    candidates = [folder / "rpc-kit" / "devices" / f"{name}.toml" for folder in _folders()]
    for candidate in candidates:
        try:
            candidate.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            raise UsageError(f"{candidate} cannot be read: {exc.strerror}") from exc
        return candidate
    raise UsageError(f"no device {name!r}: there is no {' and no '.join(map(str, candidates))}")


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a device file, with the name of the device.

    Raises
    ------
    UsageError
        When it cannot be read, or says something wrong; names file and key.
    """
    try:
        table = {"name": path.stem, **tomllib.loads(path.read_text("utf-8"))}
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    except (ValueError, RecursionError) as exc:
        raise UsageError(f"{path} is no TOML: {exc}") from exc
    try:
        to_device(table)
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}") from exc
    return table


def to_device(table: Mapping[str, Any]) -> Device:
    """Check the keys; UsageError says which is wrong."""
    try:
        return msgspec.convert(table, Device)
    except msgspec.ValidationError as exc:
        text = str(exc)
        for theirs, ours in _TEXTS.items():
            text = text.replace(theirs, ours)
        what, _, where = text.partition(" - at ")
        if what.startswith("unknown key") and not where:
            what += f"; the keys are {', '.join(Device.__struct_encode_fields__)}"
        raise UsageError(f"{where}: {what}" if where else what) from exc


def _folders() -> Iterator[Path]:
    own = config_folder()
    if own is not None:
        yield Path(own)
    yield SYSTEM_FOLDER
