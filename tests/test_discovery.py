"""Where the urls of the registries come from; mDNS itself is in test_mdns.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zeroconf
from hypothesis import given
from hypothesis import strategies as st

from rpc_kit.discovery import Announcement, registry_urls
from rpc_kit.errors import MissingExtra, NoRegistry

PROJECT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration file, which is not there yet; no variable is set, and mDNS is not available."""
    monkeypatch.delenv("RPC_REGISTRY", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    (tmp_path / "rpc-kit").mkdir()
    return tmp_path / "rpc-kit" / "config.toml"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("tcp://lab:6000", ["tcp://lab:6000"]),
        ("tcp://lab", ["tcp://lab:5555"]),
        ("lab", ["tcp://lab:5555"]),
        ("lab:6000", ["tcp://lab:6000"]),
        ("[::1]", ["tcp://[::1]:5555"]),
        ("tcp://[fd00::1]:6000", ["tcp://[fd00::1]:6000"]),
        ("ipc:///run/registry", ["ipc:///run/registry"]),
        ("one, tcp://two:6000 ,,three,", ["tcp://one:5555", "tcp://two:6000", "tcp://three:5555"]),
        ("two,one,tcp://two:5555", ["tcp://two:5555", "tcp://one:5555"]),
        (["one", "two,three"], ["tcp://one:5555", "tcp://two:5555", "tcp://three:5555"]),
        (("one", "two", "one"), ["tcp://one:5555", "tcp://two:5555"]),
    ],
)
def test_forms_of_urls(argument: Any, expected: list[str]) -> None:
    """Port and tcp may be missing, lists may have blanks, and what is there twice counts once."""
    assert expected == registry_urls(argument)


BAD = ["http://lab", "lab:port", "lab:70000", "::1", "tcp://", "a b", "lab:0", "lab:*", "*", "tcp://0.0.0.0", "[::]"]


@pytest.mark.parametrize("entry", BAD)
def test_bad_url_in_the_argument(entry: str) -> None:
    """A url that nobody can connect to is refused; the text says which."""
    with pytest.raises(ValueError) as caught:
        registry_urls(["lab", entry])

    assert str(caught.value).startswith(f"the argument: {entry!r} is no registry: ")


@pytest.mark.parametrize("entry", BAD)
def test_bad_url_in_the_environment(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """A bad url in the environment is an error, and not passed over."""
    monkeypatch.setenv("RPC_REGISTRY", f"lab,{entry}")
    with pytest.raises(ValueError) as caught:
        registry_urls()

    assert str(caught.value).startswith(f"RPC_REGISTRY: {entry!r} is no registry: ")


@pytest.mark.parametrize("entry", BAD)
def test_bad_url_in_the_file(file: Path, entry: str) -> None:
    """Of a bad url in the file the error says in which file."""
    file.write_text(f'registry = ["lab", "{entry}"]')
    with pytest.raises(ValueError) as caught:
        registry_urls()

    assert str(caught.value).startswith(f"{file}: {entry!r} is no registry: ")


@pytest.mark.parametrize("argument", ["", " , ", [], [""]])
def test_argument_without_a_url(monkeypatch: pytest.MonkeyPatch, argument: Any) -> None:
    """An argument that names none is an error, whatever else names some."""
    monkeypatch.setenv("RPC_REGISTRY", "lab")
    with pytest.raises(ValueError, match="the argument names no registry"):
        registry_urls(argument)


@pytest.mark.parametrize("argument", [5, b"tcp://lab", [5555], [["lab"]], {"lab": 5555}, {"lab"}])
def test_argument_of_a_wrong_type(argument: Any) -> None:
    """What is no text and no list of texts is a TypeError."""
    with pytest.raises(TypeError, match="the argument: registries are a url or a list of urls"):
        registry_urls(argument)


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("inf")])
def test_timeout_has_to_make_sense(timeout: float) -> None:
    """There is no search without a limit."""
    with pytest.raises(ValueError, match="a timeout is a number of seconds"):
        registry_urls("lab", timeout)


@given(
    hosts=st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True), min_size=1),
    blanks=st.lists(st.text(" \t", max_size=3), min_size=2),
)
def test_comma_lists(hosts: list[str], blanks: list[str]) -> None:
    """A list is taken apart into what it was made of, without what is there twice."""
    padded = [blanks[number % len(blanks)].join(["", host, ""]) for number, host in enumerate(hosts)]

    assert [f"tcp://{host}:5555" for host in dict.fromkeys(hosts)] == registry_urls(",".join(padded))


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable holds a list."""
    monkeypatch.setenv("RPC_REGISTRY", "tcp://one:6000 , two")

    assert ["tcp://one:6000", "tcp://two:5555"] == registry_urls()


@pytest.mark.parametrize("text", ['registry = "one, two"', 'registry = ["one", "two"]', 'registry = ["one,two"]'])
def test_file(file: Path, text: str) -> None:
    """The file holds a list in one of two forms, and may hold other things."""
    file.write_text(f'{text}\n[other]\nregistry = "no"\n')

    assert ["tcp://one:5555", "tcp://two:5555"] == registry_urls()


@pytest.mark.parametrize("folder", ["", "relative/path"])
def test_file_in_the_home(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    """Without XDG_CONFIG_HOME, or with one that is to be ignored, the file is below ~/.config."""
    file.write_text('registry = "no"')
    at_home = tmp_path / "home" / ".config" / "rpc-kit" / "config.toml"
    at_home.parent.mkdir(parents=True)
    at_home.write_text('registry = "lab"')
    monkeypatch.setenv("XDG_CONFIG_HOME", folder)

    assert ["tcp://lab:5555"] == registry_urls()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"registry = lab", "is no TOML: "),
        (b"registry = \"\xff\"", "is no TOML: "),
        (b"registry = 5555", ": registries are a url or a list of urls, not 5555"),
        (b"registry = [5555]", ": registries are a url or a list of urls, not [5555]"),
        (b'[registry]\nurl = "lab"', ": registries are a url or a list of urls, not {'url': 'lab'}"),
    ],
)
def test_damaged_file(file: Path, content: bytes, expected: str) -> None:
    """A damaged file is an error that names it, and not passed over."""
    file.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        registry_urls()

    assert str(caught.value).replace(f"{file} is", "is").removeprefix(str(file)).startswith(expected)


def test_argument_comes_first(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of argument, environment and file that names a registry counts; others are not even looked at."""
    file.write_text('registry = "from-file"')
    assert ["tcp://from-file:5555"] == registry_urls()

    file.write_text("damaged")
    monkeypatch.setenv("RPC_REGISTRY", "from-environment")
    assert ["tcp://from-environment:5555"] == registry_urls()

    monkeypatch.setenv("RPC_REGISTRY", "d a m a g e d")
    assert ["tcp://from-argument:5555"] == registry_urls("from-argument")


@pytest.mark.parametrize("value", ["", " ", ","])
def test_empty_environment_counts_as_not_set(file: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A variable without a url leaves it to the file."""
    file.write_text('registry = "lab"')
    monkeypatch.setenv("RPC_REGISTRY", value)

    assert ["tcp://lab:5555"] == registry_urls()


@pytest.mark.parametrize("content", [None, "", 'other = "lab"', 'registry = ""', "registry = []"])
def test_no_registry(file: Path, content: str | None) -> None:
    """When nothing names a registry, the error says where one can be named, and how to search for one."""
    if content is not None:
        file.write_text(content)
    with pytest.raises(NoRegistry) as caught:
        registry_urls()

    expected = (
        "no registry is known: pass its url, or set RPC_REGISTRY=tcp://host:5555, or write "
        f'registry = "tcp://host:5555" to {file}; '
        "mDNS is not available: zeroconf is not installed: pip install rpc-kit[discovery]"
    )
    assert expected == str(caught.value)


def test_folder_instead_of_the_file(file: Path) -> None:
    """What is no file is passed over."""
    file.mkdir()
    with pytest.raises(NoRegistry):
        registry_urls()


def test_announcement_without_zeroconf() -> None:
    """Without the extra, the error of an announcement says how to install it."""
    with pytest.raises(MissingExtra, match=r"zeroconf is not installed: pip install rpc-kit\[discovery\]"):
        Announcement(["127.0.0.1"], 5555)


@pytest.mark.parametrize(
    ("addresses", "port", "expected"),
    [
        ([], 5555, "there is no address to announce"),
        (["localhost"], 5555, "'localhost'"),
        (["*"], 0, "a port is a number from 1 to 65535, not 0"),
        (["[::1]"], 65536, "a port is a number from 1 to 65535, not 65536"),
    ],
)
def test_announcement_of_nothing(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], port: int, expected: str
) -> None:
    """What nobody could connect to is refused at once."""
    monkeypatch.setitem(sys.modules, "zeroconf", zeroconf)
    with pytest.raises(ValueError, match=expected):
        Announcement(addresses, port)


def test_import_is_light() -> None:
    """Who only imports the module pays neither for zeroconf nor for an event loop."""
    heavy = "{'zeroconf', 'ifaddr', 'asyncio', 'tomllib', 'ipaddress'}"
    # What an editable installation has imported by then does not count.
    program = (
        "import sys; before = set(sys.modules); import rpc_kit.discovery; "
        f"print(sorted({heavy} & set(sys.modules) - before))"
    )
    printed = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60)

    assert ("[]\n", "") == (printed.stdout, printed.stderr)
