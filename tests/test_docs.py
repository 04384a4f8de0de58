"""The documentation does what it says: its programs are run, its links lead somewhere, its tables are complete.

A block ``python file=name`` is written to a folder, a block ``console`` is run there: after ``$`` a command, below it
what it prints, with ``...`` for what differs each time. With ``terminal=name`` the program goes on running, until
``^C``. Urls in the text stand for those that the programs print. Blocks ``shell not-run`` and all others are only read.
A block ``ini`` is a unit file, or with ``file=name.toml`` settings.
"""

import builtins
import configparser
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry.config import settings
from rpc_kit import errors
from rpc_kit.cli.device_file import read_file
from rpc_kit.convert import coerce_to_generic, decode_json, encode_json
from rpc_kit.discovery import VARIABLE, registry_urls
from rpc_kit.interface import RESERVED

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
DOCS = PROJECT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md")), *sorted((PROJECT / "examples").rglob("*.md"))]
# The files of the first pages are there when a page is run.
TYPES = DOCS / "types.md"
RUN = {
    README: [],
    DOCS / "tutorial.md": [],
    DOCS / "images.md": [],
    DOCS / "wire.md": [README],
    DOCS / "how-to" / "registry.md": [],
    TYPES: [],
}
PROGRAMS = {"python": [], "rpc-kit": ["-m", "rpc_kit"], "rpc-registry": ["-m", "registry"]}
"""What a command may begin with, after variables for it, and what Python is told to run."""
LIMIT = 60.0
"""How long a program has for what it is to print, and to end, s."""

FENCE = re.compile(r"^```(\S*)[ ]?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
URL = re.compile(r"tcp://[\w.*\[\]:]+:\d+")
KNOWN = {"python", "console", "shell", "text", "ini", "json"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    kind: str
    options: dict[str, str]
    text: str


def blocks(page: Path) -> Iterator[Block]:
    for kind, options, text in FENCE.findall(page.read_text()):
        pairs = (option.partition("=") for option in options.split())
        yield Block(kind, {key: value for key, _, value in pairs}, text)


def name_of(page: Path) -> str:
    return str(page.relative_to(PROJECT))


class Terminal:
    """A program, its output read line by line, with a limit."""

    def __init__(self, command: str, folder: Path) -> None:
        words = shlex.split(command)
        variables = dict(word.split("=", 1) for word in takewhile(re.compile("[A-Z_]+=").match, words))
        program, *arguments = words[len(variables) :]
        assert program in PROGRAMS, f"not run: {command}"
        # Nothing is read from the home of whoever runs the tests.
        given = {key: value for key, value in os.environ.items() if not key.startswith(VARIABLE)}
        given |= {"PYTHONPATH": str(PROJECT), "NO_COLOR": "1", "XDG_CONFIG_HOME": str(folder / "config")}
        self._process = subprocess.Popen(
            [sys.executable, "-u", *PROGRAMS[program], *arguments],
            cwd=folder,
            env={**given, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Who runs the tests in the background ignores SIGINT, and so would the program.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._text = b""

    def line(self) -> str:
        """The next line."""
        deadline = time.monotonic() + LIMIT
        while b"\n" not in self._text:
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            assert ready, f"nothing more within {LIMIT:.0f} s, after {self._text!r}"
            data = os.read(self._output.fileno(), 1 << 16)
            assert data, f"the program ended, after {self._text!r}"
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def rest(self) -> list[str]:
        """All further lines, until the program ends."""
        remaining, _ = self._process.communicate(timeout=LIMIT)
        return (self._text + remaining).decode().splitlines()

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def status(self) -> int:
        return self._process.wait(LIMIT)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=LIMIT)
        self._selector.close()


class Reader:
    """Follows a page in a folder: writes its files, types its commands, compares what is printed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._terminals: dict[str, Terminal] = {}
        self._urls: dict[str, str] = {}

    def write_files(self, page: Path) -> None:
        for block in blocks(page):
            if "file" in block.options:
                (self._folder / block.options["file"]).write_text(block.text)

    def follow(self, page: Path) -> None:
        for block in blocks(page):
            if "file" in block.options:
                (self._folder / block.options["file"]).write_text(block.text)
            elif block.kind == "console":
                self._type(block)

    def close(self) -> None:
        for terminal in self._terminals.values():
            terminal.close()

    def _type(self, block: Block) -> None:
        name = block.options.get("terminal", "")
        for command, expected in commands(block.text):
            if command == "^C":
                self._terminals[name].interrupt()
                self._compare(expected, self._terminals[name].rest())
                assert 0 == self._terminals[name].status()
                self._terminals.pop(name).close()
                continue
            if command:
                self._terminals[name] = Terminal(self._with_urls(command), self._folder)
            terminal = self._terminals[name]
            if name:
                self._compare(expected, [terminal.line() for _ in expected])
            else:
                self._compare(expected, terminal.rest())
                assert int(block.options.get("status", "0")) == terminal.status()
                self._terminals.pop(name).close()

    def _compare(self, expected: list[str], actual: list[str]) -> None:
        for written, printed in zip(expected, actual):
            for url, real in zip(URL.findall(written), URL.findall(printed)):
                self._urls.setdefault(url, real)
        pattern = re.escape("\n".join(map(self._with_urls, expected))).replace(re.escape("..."), ".*?")
        assert re.fullmatch(pattern, "\n".join(actual), re.DOTALL), (expected, actual)

    def _with_urls(self, text: str) -> str:
        return URL.sub(lambda found: self._urls.get(found[0], found[0]), text)


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Commands with the lines below them; before the first command stands what an earlier one goes on printing."""
    command, expected = "", list[str]()
    for line in text.splitlines():
        if line.startswith("$ ") or line == "^C":
            if command or expected:
                yield command, expected
            command, expected = line.removeprefix("$ "), []
        else:
            expected.append(line)
    yield command, expected


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Reads in an empty folder; ends what it started."""
    made = Reader(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_page_does_what_it_says(reader: Reader, page: Path) -> None:
    """The programs of a page print what the page says."""
    for earlier in RUN[page]:
        reader.write_files(earlier)
    reader.follow(page)


def test_every_page_with_commands_is_run() -> None:
    """No page has commands that nobody runs."""
    assert set(RUN) == {page for page in PAGES if any(block.kind == "console" for block in blocks(page))}


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name != "camera"], ids=name_of)
def test_blocks_are_run_or_marked(page: Path) -> None:
    """Each block is of a known kind, Python is in files that are run, and shell is marked as not run."""
    for block in blocks(page):
        assert block.kind in KNOWN
        assert block.kind != "python" or "file" in block.options
        assert block.kind != "shell" or "not-run" in block.options


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link is the path of a file, every anchor a heading of it."""
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if not re.match(r"\w+:", link):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def anchors(page: Path) -> set[str]:
    """The anchors that headings get, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_index_links_every_page() -> None:
    """From the index every page of the documentation is reached."""
    linked = {(DOCS / link).resolve() for link in LINK.findall((DOCS / "index.md").read_text())}

    assert set() == set(DOCS.rglob("*.md")) - linked - {DOCS / "index.md"}


def tables(text: str) -> Iterator[list[list[str]]]:
    """The tables of a page, as rows of cells."""
    rows: list[list[str]] = []
    for line in [*FENCE.sub("", text).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            yield rows
            rows = []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_well_formed(page: Path) -> None:
    """Below its head a table has a line of dashes, and each row has as many cells as the head."""
    for head, dashes, *rows in tables(page.read_text()):
        assert all(re.fullmatch(":?-+:?", cell) for cell in dashes)
        assert {len(head)} == {len(row) for row in [dashes, *rows]}, head


def test_table_of_figures() -> None:
    """The README has one table of measured figures between its marks, and a figure or a dash in each cell of it."""
    _, start, rest = README.read_text().partition("<!-- benchmark:begin -->\n")
    text, end, _ = rest.partition("<!-- benchmark:end -->\n")
    assert start and end
    (_, _, *rows), = tables(text)

    assert rows
    assert [] == [cell for row in rows for cell in row[1:] if not re.fullmatch(r"–|[\d.,]*\d( .*)?", cell)]


def declared_errors() -> dict[str, Any]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.RPCError) and kind.__module__ == errors.__name__
    }


def test_page_of_errors_is_complete() -> None:
    """The table of errors has every class of the tree, each with the builtin that it is."""
    documented = {row[0].strip("`"): row[1].strip("`") for row in next(tables((DOCS / "errors.md").read_text()))[2:]}
    declared = declared_errors()

    assert set(declared) == set(documented)
    for name, builtin in documented.items():
        assert issubclass(declared[name], getattr(builtins, builtin)), name
        others = [kind for kind in declared[name].__mro__[1:] if not issubclass(kind, errors.RPCError)]
        assert builtin == others[0].__name__, name


@pytest.fixture(scope="module")
def types_in_use() -> dict[str, Any]:
    """The names that the tables of the page of types use."""
    names: dict[str, Any] = {"Path": Path, "__name__": "scans"}
    exec(next(blocks(TYPES)).text, names)
    return names


def rows_of_types(number: int) -> list[list[str]]:
    """A table of the page of types; of a cell that begins with code only that."""
    _, _, *rows = list(tables(TYPES.read_text()))[number]
    return [[cell.split("`")[1].replace("\\|", "|") if cell.startswith("`") else cell for cell in row] for row in rows]


@pytest.mark.parametrize(("annotation", "value", "text"), rows_of_types(0))
def test_types_in_json(types_in_use: dict[str, Any], annotation: str, value: str, text: str) -> None:
    """Each value looks in JSON as the page says, and comes back as it was."""
    expected, given = eval(annotation, types_in_use), eval(value, types_in_use)
    found = coerce_to_generic(decode_json(text.encode(), msgspec.json.Decoder()), expected)

    assert text == encode_json(given).decode()
    assert (repr(given), type(given)) == (repr(found), type(found))


@pytest.mark.parametrize(("given", "annotation", "becomes"), rows_of_types(1))
def test_types_converted(types_in_use: dict[str, Any], given: str, annotation: str, becomes: str) -> None:
    """Each value is converted or refused as the page says."""
    value, expected = eval(given, types_in_use), eval(annotation, types_in_use)
    if becomes == "refused":
        with pytest.raises(TypeError):
            coerce_to_generic(value, expected)
    else:
        assert repr(eval(becomes, types_in_use)) == repr(coerce_to_generic(value, expected))


@pytest.mark.parametrize("value", [row[0] for row in rows_of_types(2)])
def test_types_without_json(types_in_use: dict[str, Any], value: str) -> None:
    """Each value of the last table is refused."""
    given = eval(value, types_in_use)
    with pytest.raises(TypeError, match="cannot be sent as JSON"):
        encode_json(given)


def test_page_of_types_has_the_reserved_names() -> None:
    """The names that no member may have are all on the page."""
    text, = (block.text for block in blocks(TYPES) if block.kind == "text")

    assert RESERVED == set(text.split())


INI = [block for page in PAGES for block in blocks(page) if block.kind == "ini"]


@pytest.mark.parametrize("block", [block for block in INI if "file" in block.options])
def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    """Each file of settings is taken: of a registry, of programs that look for one, or of a device."""
    for name in [name for name in os.environ if name.startswith(VARIABLE)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "rpc-kit" / block.options["file"]
    path.parent.mkdir()
    path.write_text(block.text)
    if path.name == "registry.toml":
        assert settings({}) != settings({}, Path(os.devnull))
    elif path.name == "config.toml":
        assert registry_urls()
    else:
        assert read_file(path)["class"]


@pytest.mark.parametrize("block", [block for block in INI if "file" not in block.options])
def test_drop_ins(block: Block) -> None:
    """Each drop-in can be parsed, and changes something of systemd or of a unit."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(block.text)

    assert {"Unit", "Service", "Journal", "Manager"}.issuperset(unit.sections())
    assert all(map(dict, map(unit.items, unit.sections())))
