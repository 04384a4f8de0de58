"""Device files: where they are found, and what may stand in them."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc_kit import RegistryClient
from rpc_kit.cli import UsageError, device_file
from rpc_kit.cli.device_file import Device, LogSettings, find_file, read_file, to_device
from tests.helpers import PROJECT, Program
from tests.test_cli_serve import OvenClient

NOBODY = 65534
EVERYTHING = """
class = "lab.ovens:Oven"
name = "left oven"
type = "oven"
registry = ["tcp://one:5555", "tcp://two:5555"]
url = "tcp://*:9000"
overwrite = false
max_missed = 3
alive_timeout = 20

[settings]
watts = 800
zones = [1, 2]

[metadata]
room = "B12"
floor = 2

[logging]
level = "debug"
filters = ["rpc_kit.calls=error"]
"""


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Path, Path]:
    """Where device files of the user and of the system are."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(device_file, "SYSTEM_FOLDER", tmp_path / "etc")
    made = tmp_path / "own" / "rpc-kit" / "devices", tmp_path / "etc" / "rpc-kit" / "devices"
    for each in made:
        each.mkdir(parents=True)
    return made


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a device file."""

    def write(text: str) -> Path:
        path = tmp_path / "oven.toml"
        path.write_text(text)
        return path

    return write


def test_everything(written: Callable[[str], Path]) -> None:
    """Each key comes where it belongs."""
    expected = Device(
        "lab.ovens:Oven",
        "left oven",
        "oven",
        ["tcp://one:5555", "tcp://two:5555"],
        "tcp://*:9000",
        False,
        3,
        20.0,
        {"watts": 800, "zones": [1, 2]},
        {"room": "B12", "floor": 2},
        LogSettings("debug", ["rpc_kit.calls=error"]),
    )

    assert expected == to_device(read_file(written(EVERYTHING)))


def test_little(written: Callable[[str], Path]) -> None:
    """The class is enough; the name is that of the file, and the device listens on this host only."""
    device = to_device(read_file(written('class = "lab:Oven"')))

    assert Device("lab:Oven", "oven") == device
    assert ("tcp://127.0.0.1:0", True, None, None, "") == (
        device.url, device.overwrite, device.max_missed, device.alive_timeout, device.registry,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "missing key `class`"),
        ("class = 1", "`class`: expected `str`, got `int`"),
        ("nmae = 'x'", "unknown key `nmae`; the keys are class, name, type, registry, url, overwrite, max_missed, "),
        ("name = ''\nclass = 'a:B'\nname = ''", "is no TOML: Cannot overwrite a value (at "),
        ("[logging]\nlevle = 'x'", "`logging`: unknown key `levle`"),
        ("[logging]\nlevel = 7", "`logging.level`: expected `str`, got `int`"),
        ("[logging]\nfilters = 'a=info'", "`logging.filters`: expected `array`, got `str`"),
        ("registry = 5555", "`registry`: expected `str | array`, got `int`"),
        ("registry = ['a', 5555]", "`registry[1]`: expected `str`, got `int`"),
        ("overwrite = 'no'", "`overwrite`: expected `bool`, got `str`"),
        ("max_missed = 0", "`max_missed`: expected `int` >= 1"),
        ("alive_timeout = -1", "`alive_timeout`: expected `float` > 0.0"),
        ("settings = 'none'", "`settings`: expected `object`, got `str`"),
        ("[metadata]\nrooms = ['a']", "`metadata[...]`: expected `bool | int | float | str | null`, got `array`"),
        ("a = [", "is no TOML: Invalid value (at end of document)"),
        ("a = " + "[" * 5000, "is no TOML: "),
    ],
)
def test_wrong_file(written: Callable[[str], Path], text: str, expected: str) -> None:
    """What is wrong is said with the path of the file, and the key."""
    complete = text if "class" in text or not text else f"class = 'a:B'\n{text}"
    path = written(complete)
    with pytest.raises(UsageError) as raised:
        read_file(path)

    assert str(raised.value).startswith(str(path))
    assert expected in str(raised.value)


def test_no_text(tmp_path: Path) -> None:
    """A file that is no text is refused."""
    (tmp_path / "oven.toml").write_bytes(b"class = '\xff'")
    with pytest.raises(UsageError, match="oven.toml is no TOML: 'utf-8' codec can't decode"):
        read_file(tmp_path / "oven.toml")


@pytest.mark.parametrize(("name", "text"), [("nosuch", "No such file or directory"), (".", "Is a directory")])
def test_unreadable_file(tmp_path: Path, name: str, text: str) -> None:
    """A file that cannot be read is named with the reason."""
    with pytest.raises(UsageError, match=f"cannot be read: {text}"):
        read_file(tmp_path / name)


def test_user_comes_first(folders: tuple[Path, Path]) -> None:
    """A file of the user is preferred to one of the system."""
    for folder in reversed(folders):
        (folder / "oven.toml").touch()
        assert folder / "oven.toml" == find_file("oven")


def test_no_file(folders: tuple[Path, Path]) -> None:
    """When there is no file, both places are named."""
    with pytest.raises(UsageError) as raised:
        find_file("oven")

    own, system = (folder / "oven.toml" for folder in folders)
    assert f"no device 'oven': there is no {own} and no {system}" == str(raised.value)


@pytest.mark.parametrize("home", ["", "relative/path"])
def test_home(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str) -> None:
    """Without XDG_CONFIG_HOME, or when it is no absolute path, the folder is in ~/.config."""
    monkeypatch.setenv("XDG_CONFIG_HOME", home)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config" / "rpc-kit" / "devices").mkdir(parents=True)
    (tmp_path / ".config" / "rpc-kit" / "devices" / "oven.toml").touch()

    assert tmp_path / ".config" / "rpc-kit" / "devices" / "oven.toml" == find_file("oven")


@pytest.mark.parametrize("name", ["", ".", "..", "../oven", "a/b", "/etc/passwd", "oven/", "./oven", ".hidden"])
def test_no_name(folders: tuple[Path, Path], name: str) -> None:
    """What could lead to another folder is no name of a device."""
    with pytest.raises(UsageError, match="is no name of a device"):
        find_file(name)


def test_folder_in_the_place_of_a_file(folders: tuple[Path, Path]) -> None:
    """What cannot be looked at is said, instead of taking another file."""
    folders[0].rmdir()
    folders[0].symlink_to(folders[0])
    (folders[1] / "oven.toml").touch()
    with pytest.raises(UsageError, match="own.*oven.toml cannot be read: Too many levels of symbolic links"):
        find_file("oven")


@pytest.mark.parametrize("arguments", [["oven"], ["--device", "oven"], ["--config", "{folder}/oven.toml"]])
def test_served(folders: tuple[Path, Path], spawn: Callable[..., Program], registry: Any, arguments: list[str]) -> None:
    """A device is served as its file says, whichever way that is named."""
    text = f'class = "tests.devices:InstrumentServer"\nregistry = "{registry.url}"\n'
    (folders[0] / "oven.toml").write_text(text)
    program = spawn("rpc_kit", "serve", *(each.format(folder=folders[0]) for each in arguments))

    assert {"oven": ("instrument", program.line)} == registry.get_devices()
    program.send_signal(signal.SIGTERM)
    assert 0 == program.end()[0]


def test_flags_win(folders: tuple[Path, Path], spawn: Callable[..., Program], registry: Any, context: Any) -> None:
    """Flags win over the file, each on its own."""
    text = """
class = "tests.test_cli_serve:OvenServer"
registry = "none"
type = "oven"

[settings]
watts = 800
label = "of the file"

[metadata]
room = "B12"
floor = 2

[logging]
level = "critical"
filters = ["rpc_kit.cli=critical"]
"""
    (folders[0] / "oven.toml").write_text(text)
    flags = ["--registry", registry.url, "--set", "watts=1200", "--metadata", "room=C1", "--log", "rpc_kit.cli=info"]
    program = spawn("rpc_kit", "serve", "oven", "--name", "grill", *flags)
    with OvenClient(context, program.line) as client, RegistryClient(registry.url, context) as names:
        made_with, entry = client.made_with(), names.find("grill")
    program.send_signal(signal.SIGTERM)
    _, errors = program.end()

    assert ("oven", "C1", 2) == (entry.device_type, entry.metadata["room"], entry.metadata["floor"])
    assert "'watts': 1200.0" in made_with and "'label': 'of the file'" in made_with
    assert {"rpc_kit.cli.serve:"} == {line.split()[3] for line in errors.splitlines()}


def test_wrong_log_level(folders: tuple[Path, Path], spawn: Callable[..., Program]) -> None:
    """A level that is none is an error of the configuration."""
    (folders[0] / "oven.toml").write_text('class = "a:B"\n[logging]\nlevel = "loud"')
    ended = spawn("rpc_kit", "serve", "oven").end()

    expected = "rpc-kit: a log level is one of debug, info, warning, error, critical, not 'loud'\n"
    assert (2, expected) == ended


@pytest.fixture
def without_rights() -> Iterator[None]:
    """What others have is closed to this process, also when it is root's."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(own)


def test_forbidden_file(tmp_path: Path, without_rights: None) -> None:
    """A file that may not be read is named."""
    path = tmp_path / "oven.toml"
    if os.geteuid() != NOBODY:
        path.touch(0)
    with pytest.raises(UsageError, match="oven.toml cannot be read: Permission denied"):
        read_file(path)


def test_example_of_the_page(written: Callable[[str], Path]) -> None:
    """The device file in the documentation is one."""
    page = (PROJECT / "docs" / "how-to" / "services.md").read_text()
    _, _, rest = page.partition("```ini file=cam0.toml\n")
    device = to_device(read_file(written(rest.partition("```")[0])))

    assert ("lab.cameras:CameraServer", {"serial": "SN-17", "exposure": 0.01}) == (device.class_, device.settings)
