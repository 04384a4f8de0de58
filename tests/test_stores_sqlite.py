"""What a file keeps of a registry, and every way in which it cannot: it is told, and the file left as it is."""

import contextlib
import hashlib
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.directory import Directory
from registry.stores.sqlite import SqliteStore, default_file
from registry.table import Change, Table
from rpc_kit.errors import StoreError
from rpc_kit.messages import Entry, Registration, Scalar
from tests.devices import LIMIT
from tests.helpers import PROJECT, FakeClock, Peer, Program, call, request
from tests.real.parts import path_of, require

NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home that stays empty."""
    made = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            monkeypatch.setenv(name, str(made))
        yield made
    assert [] == list(made.iterdir())


class Run:
    """A store and its table from one start of a registry to its end; `passed` seconds after the first start."""

    def __init__(self, file: Path, passed: float = 0.0) -> None:
        self.clock, self.wall = FakeClock(), FakeClock()
        self.clock.now = random.uniform(0, 1e6)  # of each start of the host another
        self.wall.now = 1.7e9 + passed
        self.table = Table(self.clock)
        self.registered = 0
        self.store = SqliteStore(file, self.wall)
        self.store.open(self.table.apply)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.store.close()

    def register(self, name: str = "", **more: Any) -> Entry:
        self.registered += 1
        asked = Registration("camera", more.pop("addr", f"tcp://h:{self.registered}-{name}"), name, **more)
        change = self.table.plan(asked, self.wall())
        self.store.save(change)
        assert change.added is not None
        return change.added

    def renew(self, entry: Entry, lease: float) -> None:
        assert set() == self.store.renew({entry.uuid: lease})
        assert self.table.renew(entry.uuid, lease)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.wall.advance(seconds)

    def leases(self) -> dict[str, float]:
        """How long each device still lives, as seen when time passes; takes all of them out."""
        found, begin = {}, self.clock.now
        while (end := self.table.next_end()) is not None:
            self.clock.now = max(end, self.clock.now)
            for entry in self.table.due():
                found[entry.name] = round(end - begin, 3)
                self.table.apply(Change((entry,)))
        return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.sqlite"


@pytest.fixture
def pristine(file: Path) -> bytes:
    """The bytes of a file with some devices, and with room that others have left."""
    with Run(file) as run:
        entries = [run.register("", metadata={"note": "x" * 200, "number": number}) for number in range(40)]
        run.store.save(Change(tuple(entries[5:15]), "unregistered"))
    return file.read_bytes()


def hashes(folder: Path) -> dict[str, str]:
    """What is in a folder."""
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir() if each.is_file()}


def refusal(file: Path) -> str:
    """Why a file cannot be opened; nothing in its folder is changed by the attempt."""
    before = hashes(file.parent)
    with pytest.raises(StoreError) as caught:
        Run(file)
    assert before == hashes(file.parent)
    assert str(file) in str(caught.value)
    assert str(caught.value).endswith("; it is left as it is")
    return str(caught.value)


def test_everything_is_there_after_a_restart(file: Path) -> None:
    """Names, uuids, addresses, metadata, order and what is left of the leases are as they were."""
    with Run(file) as run:
        first = run.register("", alive_timeout=60.0)
        gone = run.register()
        second = run.register(
            "left", addresses=["tcp://i:1"], interface="Camera", interface_hash="hash", epoch="epoch",
            metadata={"text": "é\u2713", "number": 7, "part": 0.1, "yes": True, "nothing": None, "most": float("inf")},
        )  # fmt: skip
        third = run.register()
        run.advance(5)
        run.renew(third, 600.0)
        first = run.register("ignored", addr="tcp://h:9", uuid=first.uuid, alive_timeout=30.0)
        run.store.save(Change((gone,), "unregistered"))
        last = run.register()
        run.advance(1)
        assert 4 == len(run.table)
    with Run(file, passed=10) as run:
        assert [first, second, third, last] == run.table.entries()
        assert ["camera-0", "left", "camera-2", "camera-1"] == [each.name for each in run.table.entries()]
        assert {"camera-0": 25.0, "left": 10.0, "camera-2": 595.0, "camera-1": 15.0} == run.leases()
    with Run(file, passed=20) as run:
        assert [first, second, third, last] == run.table.entries()
        again = run.register("left", addr=second.address)
        assert "left" == again.name != again.uuid
    with Run(file, passed=20) as run:
        assert [first, third, last, again] == run.table.entries()


def test_metadata_that_are_no_number(file: Path) -> None:
    """A NaN is one after a restart, too."""
    with Run(file) as run:
        run.register(metadata={"level": float("nan"), "other": None})
    with Run(file) as run:
        assert "{'level': nan, 'other': None}" == str(run.table.entries()[0].metadata)


@given(
    names=st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=20), max_size=5),
    metadata=st.dictionaries(
        st.text(st.characters(exclude_categories=["C", "Z"]), max_size=5),
        st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(allow_nan=False) | st.text(max_size=9),
        max_size=4,
    ),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_any_entry(names: list[str], metadata: dict[str, Scalar]) -> None:
    """Whatever a device may be called, and say of itself, is the same after a restart."""
    with tempfile.TemporaryDirectory() as folder:
        with Run(Path(folder, "file")) as run:
            entries = [run.register(name, metadata=metadata) for name in names]
        with Run(Path(folder, "file")) as run:
            assert entries == run.table.entries()
            assert [each.metadata for each in entries] == [each.metadata for each in run.table.entries()]


def test_device_that_died_meanwhile(file: Path) -> None:
    """A lease that ended while there was no registry has ended at once, others end at their time."""
    with Run(file) as run:
        run.register("dead", alive_timeout=10.0)
        run.register("dying", alive_timeout=30.0)
    with Run(file, passed=25) as run:
        assert ["dead"] == [each.name for each in run.table.due()]
        run.advance(5)
        assert ["dying"] == [each.name for each in run.table.due()]


@pytest.mark.parametrize("seconds", [-1e9, -100.0, -1.0, 0.0])
def test_clock_that_was_set_back(file: Path, seconds: float) -> None:
    """A lease is never longer than it was asked for."""
    with Run(file) as run:
        run.register("a", alive_timeout=10.0)
        run.renew(run.register("b"), 30.0)
    with Run(file, passed=seconds) as run:
        assert {"a": 10.0, "b": 30.0} == run.leases()


def test_clock_that_was_set_forward(file: Path) -> None:
    """A lease may have ended then; the device registers again."""
    with Run(file) as run:
        run.register("a", alive_timeout=10.0)
    with Run(file, passed=1e9) as run:
        assert ["a"] == [each.name for each in run.table.due()]


def test_renewals(file: Path) -> None:
    """Many at a time are kept; unknown ones are told."""
    with Run(file) as run:
        entries = [run.register() for _ in range(10)]
        leases = {each.uuid: 100.0 + number for number, each in enumerate(entries)}
        assert {"unknown"} == run.store.renew({**leases, "unknown": 1.0})
        assert {"unknown"} == run.store.renew({"unknown": 1.0})
        assert set() == run.store.renew({})
    with Run(file) as run:
        assert {f"camera-{number}": 100.0 + number for number in range(10)} == run.leases()


def test_removal_of_what_is_unknown(file: Path) -> None:
    """It is kept that there is nothing."""
    with Run(file) as run:
        entry = run.register()
        for _ in range(2):
            run.store.save(Change((entry,), "unregistered"))
        run.store.close()
    with Run(file) as run:
        assert 0 == len(run.table)


def test_without_an_orderly_end(file: Path, tmp_path: Path) -> None:
    """What was acknowledged is in the files at that moment, whatever becomes of the process."""
    copies = []
    with Run(file) as run:
        for number in range(5):
            run.register()
            copies.append(tmp_path / f"copy{number}")
            copies[-1].mkdir()
            for each in tmp_path.glob("registry.sqlite*"):
                shutil.copy(each, copies[-1])
        entries = run.table.entries()

    for number, copy in enumerate(copies, 1):
        with Run(copy / "registry.sqlite") as run:
            assert entries[:number] == run.table.entries()
        assert ["registry.sqlite"] == os.listdir(copy)


def test_file_is_private(tmp_path: Path) -> None:
    """It is made with its folder, and nobody else can read either; one that is there keeps its mode."""
    file = tmp_path / "some" / "folder" / "registry.sqlite"
    with Run(file) as run:
        run.register()
        modes = {each.name: each.stat().st_mode & 0o777 for each in file.parent.iterdir()}
    assert {"registry.sqlite": 0o600, "registry.sqlite-wal": 0o600} == modes
    assert 0o700 == file.parent.stat().st_mode & 0o777
    file.chmod(0o640)
    Run(file).store.close()

    assert 0o640 == file.stat().st_mode & 0o777


def test_odd_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name means a file, whatever SQLite would take it for."""
    monkeypatch.chdir(tmp_path)
    for name in (":memory:", "file:a?mode=memory", "a b%20#1?x=y.sqlite", "é"):
        with Run(Path(name)) as run:
            run.register()
        with Run(tmp_path / name) as run:
            assert ["camera-0"] == [each.name for each in run.table.entries()]


@pytest.mark.parametrize("size", [2, 15, 16, 99, 100, 511, 512, 4096, 20_000])
def test_random_bytes(file: Path, size: int) -> None:
    """What is no database is told to be damaged."""
    file.write_bytes(random.Random(size).randbytes(size))

    assert "it seems to be damaged (file is not a database): restore it from a backup, or move it away" in refusal(file)


def test_truncated(file: Path, pristine: bytes) -> None:
    """A file that lacks its end is told to be damaged, wherever that is."""
    some = random.Random(1)
    lengths = [2, 100, 4096, len(pristine) - 4096, len(pristine) - 1]
    for length in (*lengths, *(some.randrange(2, len(pristine)) for _ in range(40))):
        file.write_bytes(pristine[:length])
        assert "it seems to be damaged (" in refusal(file), length


def test_damaged_page(file: Path, pristine: bytes) -> None:
    """A page with the content of another, with noise or with nothing is noticed, unless it is one without data."""
    pages = [pristine[place : place + 4096] for place in range(0, len(pristine), 4096)]
    noise = random.Random(2).randbytes(4096)
    outcomes = []
    for number, other in itertools.product(range(len(pages)), (noise, bytes(4096), pages[0], pages[-1])):
        if other == pages[number]:
            continue
        file.write_bytes(b"".join([*pages[:number], other, *pages[number + 1 :]]))
        outcomes.append(opened(file))
    refused = [each for each in outcomes if isinstance(each, str)]

    assert len(refused) > 0.8 * len(outcomes)
    assert [30] * (len(outcomes) - len(refused)) == [len(each) for each in outcomes if isinstance(each, list)]


def opened(file: Path) -> list[Entry] | str:
    """The entries of a file that may be damaged, or why it is refused."""
    before = hashes(file.parent)
    try:
        with Run(file) as run:
            entries = run.table.entries()
            assert len(entries) == len({each.name for each in entries}) == len({each.address for each in entries})
            assert entries == [run.table.get(each.uuid) for each in entries]
            assert all(lease <= 604800 for lease in run.leases().values())
            return entries
    except StoreError as exc:
        assert before == hashes(file.parent)
        # The marks of the file may be damaged, too.
        why = ("cannot be opened: it seems to be damaged (", "is a database of another program", "has format")
        assert str(exc).partition(f"{file} ")[2].startswith(why)
        return str(exc)


@given(data=st.data())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_flipped_bits(data: st.DataObject) -> None:
    """A file with some wrong bits is refused and left as it is, or all that is taken from it makes sense."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "registry.sqlite")
        with Run(file) as run:
            for number in range(3):
                run.register(metadata={"number": number})
        damaged = bytearray(file.read_bytes())
        # Most of the file is empty: bits are flipped where there is something.
        used = [place for place, byte in enumerate(damaged) if byte]
        for place in data.draw(st.lists(st.sampled_from(used), min_size=1, max_size=3)):
            damaged[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(damaged)
        opened(file)


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE devices",
        "DROP TABLE leases",
        "DELETE FROM leases WHERE id = 1",
        "UPDATE leases SET ends = 'soon'",
        "UPDATE leases SET lease = 'long'",
        "UPDATE leases SET lease = 1e300, ends = 1e300",
        "UPDATE leases SET lease = -1",
        "UPDATE devices SET uuid = 'other' WHERE id = 1",
        "UPDATE devices SET entry = x'ff'",
        "UPDATE devices SET entry = 7",
        "UPDATE devices SET entry = '[]'",
        "UPDATE devices SET entry = x'7b7d'",
        "UPDATE devices SET entry = replace(entry, 'camera-1', 'camera-0')",
        "UPDATE devices SET entry = replace(entry, 'tcp://h:2-', 'tcp://h:1-')",
    ],
)
def test_wrong_content(file: Path, statement: str) -> None:
    """A file that is whole, but holds what no registry has written, is told to be damaged."""
    with Run(file) as run:
        for _ in range(3):
            run.register()
    change(file, statement)

    assert "it seems to be damaged (" in refusal(file)


def change(file: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def abandoned(file: Path, *statements: str) -> None:
    """Leave a file as a process that died leaves it: the last statement is in the file beside it only."""
    original = file.with_name("original")
    with contextlib.closing(sqlite3.connect(original, isolation_level=None)) as database:
        for statement in ("PRAGMA journal_mode = WAL", *statements[:-1], "PRAGMA wal_checkpoint", statements[-1]):
            database.execute(statement)
        for suffix in ("", "-wal"):
            shutil.copy(f"{original}{suffix}", f"{file}{suffix}")
    original.unlink()


OTHERS: dict[str, Callable[[Path], None]] = {
    "plain": lambda file: change(file, "CREATE TABLE notes (text)"),
    "with an id": lambda file: change(file, "PRAGMA application_id = 7"),
    "with a version": lambda file: change(file, "PRAGMA user_version = 1"),
    "with a log": lambda file: change(file, "PRAGMA journal_mode = WAL", "CREATE TABLE notes (text)"),
    "abandoned": lambda file: abandoned(file, "CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('a')"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_file_of_another_program(file: Path, kind: str) -> None:
    """A database of somebody else is refused without the least change."""
    OTHERS[kind](file)

    assert f"{file} is a database of another program: choose another file; it is left as it is" == refusal(file)


NEWER = ("PRAGMA application_id = 1919968107", "CREATE TABLE things (text)", "PRAGMA user_version = 2")


@pytest.mark.parametrize("is_abandoned", [False, True])
def test_file_of_a_later_version(file: Path, is_abandoned: bool) -> None:
    """A file whose format is not known yet is refused without the least change."""
    if is_abandoned:
        abandoned(file, *NEWER, "INSERT INTO things VALUES ('a')")
    else:
        change(file, *NEWER)

    assert f"{file} has format 2, this version of rpc-kit knows 1: install the version that wrote it" in refusal(file)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder in the place of the file, and a file in that of the folder."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("text")

    path = tmp_path / "text" / "registry.sqlite"
    with pytest.raises(StoreError, match=f"the registry's file {path} cannot be opened: "):
        Run(path)
    with pytest.raises(StoreError, match=f"^{tmp_path / 'folder'} is no file: choose another one$"):
        Run(tmp_path / "folder")


def test_pipe_in_place_of_the_file(tmp_path: Path) -> None:
    """A FIFO, which nobody may ever write to, is refused at once and stays."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(StoreError, match=f"^{tmp_path / 'pipe'} is no file: choose another one$"):
        Run(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


def test_second_registry(file: Path, spawn: Any) -> None:
    """While one registry uses a file, no other one does; when that is dead, the next one may."""
    first = spawn(*serve(file))
    with zmq.Context() as context, Peer(context, first.line, zmq.REQ) as peer:
        entry = register(peer, "camera-0")
        assert "another registry uses it: end that one, or choose another file" in refusal(file)
        second = spawn(*serve(file))
        assert f"the registry's file {file} cannot be opened: another registry uses it" in second.end()[1]
        assert (1, "") == (second.process.returncode, second.line)
        assert entry["uuid"] == peer.ask(call("find", "camera-0"))["result"]["uuid"]
    first.kill()
    with Run(file) as run:
        assert [entry["uuid"]] == [each.uuid for each in run.table.entries()]


OPEN = f"""
import os, sys
from pathlib import Path
from registry.stores.sqlite import SqliteStore
if os.geteuid() == 0 and sys.argv[2:]:
    os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
try:
    SqliteStore(Path(sys.argv[1])).open(lambda change: None)
    print("opened")
except Exception as exc:
    print(type(exc).__name__, exc)
"""


def open_elsewhere(file: Path, *options: str) -> str:
    """What becomes of it when another process opens a file, with --nobody one that may not do everything."""
    ran = subprocess.run(
        [sys.executable, "-c", OPEN, str(file), *options], cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT
    )
    return ran.stdout.strip() + ran.stderr


def test_vain_attempt_takes_no_lock_away(file: Path) -> None:
    """The file stays locked for other processes when this one has tried to open it twice."""
    with Run(file):
        with pytest.raises(StoreError, match="another registry uses it"):
            Run(file)
        assert "another registry uses it" in open_elsewhere(file)
    assert "opened" == open_elsewhere(file)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into, which belongs to whoever runs the tests; so do its files."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        os.chmod(folder, 0o755)


def to_nobody(path: Path, mode: int) -> Path:
    """Give a file to who opens it without all rights."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("folder", ["", "made"])
def test_folder_without_permission(open_folder: Path, folder: str) -> None:
    """A file that cannot be made."""
    open_folder.chmod(0o555)
    told = open_elsewhere(open_folder / folder / "registry.sqlite", "--nobody")

    assert "StoreError" == told.split()[0]
    assert "registry.sqlite cannot be opened: it, or its folder, cannot be written to: see to the permissions" in told
    assert {} == hashes(open_folder)


@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o755, 0o400), (0o755, 0o000), (0o555, 0o600)])
def test_file_without_permission(open_folder: Path, folder_mode: int, file_mode: int) -> None:
    """A file that cannot be written, or not be read, or for which there can be no file beside it."""
    file = open_folder / "registry.sqlite"
    with Run(file) as run:
        run.register()
    to_nobody(file, file_mode)
    if folder_mode == 0o755:
        to_nobody(open_folder, folder_mode)
    open_folder.chmod(folder_mode)
    before = hashes(open_folder) if os.geteuid() == 0 else {}
    told = open_elsewhere(file, "--nobody")

    assert "StoreError" == told.split()[0]
    assert f"{file} cannot be opened: it, or its folder, cannot be written to: see to the permissions" in told
    assert before == (hashes(open_folder) if before else {})


def serve(file: Path) -> list[str]:
    """The arguments of a registry with that file."""
    options = ["--addr", "127.0.0.1", "--port", "0", "--no-announce", "--log-level", "warning"]
    return ["registry", "serve", *options, "--store", f"sqlite:{file}"]


def register(peer: Peer, name: str, **more: Any) -> Any:
    """The reply of a registry: name and uuid, or the error."""
    more = {"addr": f"tcp://h:{name}", "alive_timeout": 600, **more}
    reply = peer.ask(request("REGISTER", payload={"device_type": "camera", "name": name, **more}))
    return reply["payload"] if reply["event"] == "REGISTER_ACK" else reply["error"]


class SmallDisk:
    """A disk of half a megabyte, which only processes with the prefix see; `folder` is where they see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        mount = 'mount -t tmpfs -o size=512k none "$0" && echo && exec cat'
        self._holder = subprocess.Popen(
            [path_of("unshare"), "--mount", "--propagation", "private", "sh", "-c", mount, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._holder.stdout is not None
        assert b"\n" == self._holder.stdout.readline(), "nothing can be mounted"
        namespace = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        self.prefix = [path_of("nsenter"), namespace, "--", "env", f"PYTHONPATH={PROJECT}"]
        self.seen_from_here = Path(f"/proc/{self._holder.pid}/root{folder}")
        self._filler = self.seen_from_here / "filler"
        self._programs: list[Program] = []

    def start(self, file: Path) -> Program:
        self._programs.append(Program(*serve(file), prefix=self.prefix))
        return self._programs[-1]

    def fill(self) -> None:
        with open(self._filler, "ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(4096))

    def make_room(self) -> None:
        self._filler.unlink()

    def close(self) -> None:
        for program in self._programs:
            program.kill()
        self._holder.communicate(timeout=LIMIT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    require("unshare", "nsenter", "root", "process namespaces")
    (tmp_path / "disk").mkdir()
    made = SmallDisk(tmp_path / "disk")
    yield made
    made.close()


def test_disk_that_is_full(small_disk: SmallDisk) -> None:
    """Neither a new file nor one that is there can be opened; that is not changed, and can be when there is room."""
    file = small_disk.folder / "registry.sqlite"
    first = small_disk.start(file)
    first.send_signal(signal.SIGTERM)
    assert (0, "") == first.end()
    small_disk.fill()
    before = hashes(small_disk.seen_from_here)
    for path in (file, small_disk.folder / "other.sqlite", small_disk.folder / "folder" / "registry.sqlite"):
        status, errors = small_disk.start(path).end()
        why = "the disk is full: make room; it is left as it is"
        assert (1, f"rpc-registry: the registry's file {path} cannot be opened: {why}\n") == (status, errors)
    after = hashes(small_disk.seen_from_here)
    small_disk.make_room()

    assert before == {name: each for name, each in after.items() if name != "other.sqlite"}
    for path in (file, small_disk.folder / "other.sqlite"):
        assert small_disk.start(path).line.startswith("tcp://")


def test_disk_that_becomes_full(small_disk: SmallDisk, context: Any) -> None:
    """Devices that are there stay, renew and can be found; new ones are refused until there is room."""
    file = small_disk.folder / "registry.sqlite"
    first = small_disk.start(file)
    with Peer(context, first.line, zmq.REQ) as peer:
        entries = {name: register(peer, name) for name in "abc"}
        small_disk.fill()
        for name in ("d", "a"):
            error = register(peer, name, overwrite=True)
            assert f"the registry's file {file} cannot be written: the disk is full: make room" in error
        for entry in entries.values():
            reply = peer.ask(request("CHECK_ALIVE", payload={"uuid": entry["uuid"], "alive_timeout": 600}))
            assert reply["payload"]["success"]
        assert peer.ask(request("RENEW", payload={"leases": {each["uuid"]: 600 for each in entries.values()}}))[
            "payload"
        ]["success"]
        assert ["a", "b", "c"] == [each["name"] for each in peer.ask(call("list"))["result"]]
        assert entries["b"]["uuid"] == peer.ask(call("find", "b"))["result"]["uuid"]
        assert peer.ask(request("UNREGISTER", payload={"uuid": entries["b"]["uuid"]}))["payload"]["success"]
        assert "c" == peer.ask(call("evict", "c"))["result"]["name"]
        assert "DeviceNotFound" in peer.ask(call("find", "b", id=["me", 1]))["error_type"]

        small_disk.make_room()
        entries["d"] = register(peer, "d")
        assert "b" == register(peer, "b", addr="tcp://other:1")["name"]
        listed = peer.ask(call("list"))["result"]
        assert ["a", "d", "b"] == [each["name"] for each in listed]
        assert entries["a"]["uuid"] == listed[0]["uuid"]
    first.kill()
    with Peer(context, small_disk.start(file).line, zmq.REQ) as peer:
        assert listed == peer.ask(call("list"))["result"]


def test_file_that_cannot_grow(file: Path) -> None:
    """A registration that does not fit is refused as a whole, and one that fits is taken afterwards."""
    store = SqliteStore(file)
    directory = Directory(store, lambda kind, entry, reason: None)
    try:
        first = directory.register(Registration("camera", "tcp://h:1", "a"))
        store._database.execute("PRAGMA max_page_count = 1")  # no page more than there are
        with pytest.raises(StoreError, match="cannot be written: the disk is full: make room; it is left as it is"):
            for number in range(100):
                asked = Registration("camera", f"tcp://h:{number}", "", metadata={"note": "x" * 4000})
                directory.register(asked)
        entries = directory.entries()
        assert entries == directory.entries() and first not in entries[1:]
        assert set() == directory.renew({each.uuid: 60.0 for each in entries})
        assert directory.remove(entries.pop(0).uuid, "unregistered")
        store._database.execute("PRAGMA max_page_count = 1000")
        entries.append(directory.register(Registration("camera", "tcp://h:999", "b")))
    finally:
        directory.close()
        directory.close()

    with Run(file) as run:
        assert entries == run.table.entries()


def test_store_that_is_closed(file: Path) -> None:
    """What is asked of it then fails as everything else does."""
    with Run(file) as run:
        entry = run.register()
        run.store.close()
        for attempt in (lambda: run.register(), lambda: run.store.renew({entry.uuid: 1.0})):
            with pytest.raises(StoreError, match=f"{file} cannot be written: Cannot operate on a closed database"):
                attempt()


@pytest.mark.parametrize(
    ("user", "variables", "expected"),
    [
        (0, {}, "/var/lib/rpc-kit/registry.sqlite"),
        (0, {"XDG_STATE_HOME": "/state"}, "/var/lib/rpc-kit/registry.sqlite"),
        (0, {"STATE_DIRECTORY": "/a:/b"}, "/a/registry.sqlite"),
        (1000, {"STATE_DIRECTORY": "/a"}, "/a/registry.sqlite"),
        (1000, {"XDG_STATE_HOME": "/state"}, "/state/rpc-kit/registry.sqlite"),
        (1000, {"XDG_STATE_HOME": "state"}, "/home/me/.local/state/rpc-kit/registry.sqlite"),
        (1000, {}, "/home/me/.local/state/rpc-kit/registry.sqlite"),
    ],
)
def test_default_file(
    monkeypatch: pytest.MonkeyPatch, user: int, variables: dict[str, str], expected: str
) -> None:
    """In the state folder of the unit, of the host or of the user."""
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert Path(expected) == default_file()


def test_user_without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no home has to choose a file."""
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(ValueError, match="this user has no home: choose a file, as sqlite:/folder/registry.sqlite"):
        default_file()
