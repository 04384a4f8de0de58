"""The settings of a registry: which one wins, and what is said of wrong ones."""

from pathlib import Path
from typing import Any

import pytest

from registry import config
from registry.config import Settings, make_store, settings
from registry.stores.etcd import EtcdStore
from registry.stores.memory import MemoryStore
from registry.stores.sqlite import SqliteStore, default_file

OF_FILE = """
addr = "10.0.0.1"
port = 1
store = "memory"
announce = false
log_level = "error"
log = "registry=debug"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any settings, and an environment without any."""
    for name in ("CONFIG", *map(str.upper, Settings.__struct_fields__)):
        monkeypatch.delenv(f"RPC_REGISTRY_{name}", raising=False)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(config, "SYSTEM_FOLDER", tmp_path / "etc")
    return tmp_path


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    return file


def test_defaults() -> None:
    """Everybody is served, and everything kept."""
    assert Settings("*", 5555, "sqlite", True, "info", "") == settings({})
    assert settings({}) == settings(dict.fromkeys(Settings.__struct_fields__))


def test_precedence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags win over the environment, and that over the file."""
    write(home / "XDG_CONFIG_HOME/rpc-kit/registry.toml", OF_FILE)
    of_file = Settings("10.0.0.1", 1, "memory", False, "error", "registry=debug")
    assert of_file == settings({})
    monkeypatch.setenv("RPC_REGISTRY_PORT", "2")
    monkeypatch.setenv("RPC_REGISTRY_ANNOUNCE", "true")
    monkeypatch.setenv("RPC_REGISTRY_LOG", "")
    assert Settings("10.0.0.1", 2, "memory", True, "error", "registry=debug") == settings({})
    flags = {"addr": "::1", "port": 3, "announce": False, "log_level": None}

    assert Settings("::1", 3, "memory", False, "error", "registry=debug") == settings(flags)


@pytest.mark.parametrize("key", Settings.__struct_fields__)
def test_each_setting(home: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Each may be set in the file, in the environment and by a flag."""
    text = {"port": "7", "announce": "0"}.get(key, "some text")
    value: Any = {"port": 7, "announce": False}.get(key, text)
    expected = Settings(**{key: value})
    of_file = {"port": "7", "announce": "false"}.get(key, f'"{text}"')
    assert expected == settings({}, write(home / "file", f"{key} = {of_file}"))
    assert expected == settings({key: getattr(expected, key)})
    monkeypatch.setenv(f"RPC_REGISTRY_{key.upper()}", text)

    assert expected == settings({})


def test_which_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the argument, of the environment, of the user or of the host; the first only."""
    for number, name in enumerate(("etc/rpc-kit", "XDG_CONFIG_HOME/rpc-kit", "named", "argument"), 1):
        file = write(home / name / "registry.toml", f"port = {number}")
        if name == "named":
            monkeypatch.setenv("RPC_REGISTRY_CONFIG", str(file))
        assert Settings(port=number) == settings({}, file if name == "argument" else None)
    write(home / "etc/rpc-kit/registry.toml", 'addr = "of no account"')

    assert Settings(port=3) == settings({})


def test_relative_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative XDG_CONFIG_HOME is no folder for settings."""
    write(home / "HOME/.config/rpc-kit/registry.toml", "port = 1")
    write(home / "relative/rpc-kit/registry.toml", "port = 2")
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")

    assert Settings(port=1) == settings({})


def test_no_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has none has the settings of the host."""
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    write(home / "etc/rpc-kit/registry.toml", "port = 1")

    assert Settings(port=1) == settings({})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("prot = 1", "contains unknown field `prot`"),
        ('port = "1"', "Expected `int`, got `str` - at `$.port`"),
        ("port = true", "Expected `int`, got `bool` - at `$.port`"),
        ("port = 65536", "a port is a number from 0 to 65535, not 65536"),
        ("port = -1", "a port is a number from 0 to 65535, not -1"),
        ("announce = 1", "Expected `bool`, got `int` - at `$.announce`"),
        ("addr = 127001", "Expected `str`, got `int` - at `$.addr`"),
        ("[store]", "Expected `str`, got `object` - at `$.store`"),
        ("port = ", "is no TOML: Invalid value"),
        ("\0", "is no TOML: "),
    ],
)
def test_wrong_file(home: Path, text: str, error: str) -> None:
    """The file and what is wrong in it are named, also when a flag would win."""
    file = write(home / "registry.toml", text)
    with pytest.raises(ValueError) as caught:
        settings({"port": 1}, file)

    assert str(caught.value).startswith(str(file))
    assert error in str(caught.value)


def test_file_that_is_no_text(home: Path) -> None:
    """It is named, too."""
    file = home / "registry.toml"
    file.write_bytes(b'addr = "\xff"')
    with pytest.raises(ValueError, match=f"{file} is no TOML: 'utf-8' codec can't decode"):
        settings({}, file)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_missing_file(home: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """One that was named has to be there."""
    file = home / "missing.toml"
    if by == "environment":
        monkeypatch.setenv("RPC_REGISTRY_CONFIG", str(file))
    with pytest.raises(FileNotFoundError, match=str(file)):
        settings({}, file if by == "argument" else None)


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("PORT", "many", "the environment: Expected `int`, got `str` - at `$.port`"),
        ("PORT", "99999", "the environment: a port is a number from 0 to 65535, not 99999"),
        ("ANNOUNCE", "perhaps", "the environment: Expected `bool`, got `str` - at `$.announce`"),
    ],
)
def test_wrong_environment(monkeypatch: pytest.MonkeyPatch, name: str, text: str, error: str) -> None:
    """It is said that it stands there, also when a flag would win."""
    monkeypatch.setenv(f"RPC_REGISTRY_{name}", text)
    with pytest.raises(ValueError) as caught:
        settings({"port": 1, "announce": True})

    assert error == str(caught.value)


def test_wrong_flag() -> None:
    """A port that is none."""
    with pytest.raises(ValueError, match="the settings: a port is a number from 0 to 65535, not 70000"):
        settings({"port": 70000})


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("sqlite", None),
        ("sqlite:", None),
        ("sqlite:/a/b:c.sqlite", "/a/b:c.sqlite"),
        ("sqlite:~/a", "HOME/a"),
        ("sqlite:a", "a"),
    ],
)
def test_sqlite_store(home: Path, monkeypatch: pytest.MonkeyPatch, text: str, file: str | None) -> None:
    """A file anywhere, or the usual one; neither is made yet."""
    monkeypatch.chdir(home)
    made = make_store(text)

    assert isinstance(made, SqliteStore)
    assert (default_file() if file is None else home / file) == made._file
    assert [] == list(home.iterdir())


def test_file_of_a_user_without_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tilde stays what it is."""
    monkeypatch.chdir(home)
    made = make_store("sqlite:~nobody-of-that-name/a")

    assert isinstance(made, SqliteStore)
    assert home / "~nobody-of-that-name/a" == made._file


def test_memory_store() -> None:
    """The store that keeps nothing."""
    assert isinstance(make_store("memory"), MemoryStore)


@pytest.mark.parametrize("text", ["etcd:http://a:2379", "etcd:http://a:2379, http://b:2379,"])
def test_etcd_store(text: str) -> None:
    """A cluster, by its members; nobody is asked yet."""
    made: Any = make_store(text)
    made.close()

    assert isinstance(made, EtcdStore)


@pytest.mark.parametrize("text", ["", "memory:x", "Memory", "etcd", "etcd:", "redis:host", "/a/file", "sqlite3:a"])
def test_wrong_store(text: str) -> None:
    """It is said which there are."""
    with pytest.raises(ValueError) as caught:
        make_store(text)

    expected = f"a store is memory, sqlite, sqlite:FILE or etcd:http://host:2379,http://…, not {text!r}"
    assert expected == str(caught.value)
