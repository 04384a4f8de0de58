"""Files in memory with locks: who may make, open and remove them."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rpc_kit import locked_file
from rpc_kit.locked_file import LockedFile
from rpc_kit.sharedmem import Ring, RingClient
from tests.real.parts import require
from tests.rings import memory_folder

NAME = "rpc-kit-0123456789abcdef"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory."""
    with memory_folder() as made:
        yield Path(made)


@pytest.fixture
def ring(folder: Path) -> Iterator[Ring]:
    """The ring of a server."""
    made = Ring.create(1 << 20, str(folder))
    assert made is not None
    yield made
    made.close()


def opened(path: Any, folder: Path) -> RingClient | None:
    return RingClient.open({"path": path}, str(folder))


def copy_of(ring: Ring, folder: Path) -> Path:
    """A file that looks like that of a ring whose owner is dead."""
    made = folder / NAME
    made.write_bytes(Path(ring.path).read_bytes())
    made.chmod(0o600)
    return made


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_the_user_may_read_it(folder: Path, umask: int) -> None:
    """Whatever others set, the mode is 0600."""
    before = os.umask(umask)
    try:
        ring = Ring.create(1 << 20, str(folder))
    finally:
        os.umask(before)
    assert ring is not None
    found = os.stat(ring.path)
    ring.close()

    assert [0o600, os.geteuid(), True] == [
        stat.S_IMODE(found.st_mode), found.st_uid, locked_file.NAME.fullmatch(Path(ring.path).name) is not None
    ]  # fmt: skip


def test_description(ring: Ring, folder: Path) -> None:
    """A description leads to its ring, also when more is said in it."""
    assert {"path": ring.path} == ring.describe()
    client = RingClient.open({**ring.describe(), "later": 1}, str(folder))
    assert client is not None
    client.close()


@pytest.mark.parametrize("described", [{}, {"path": None}, {"path": 3}, {"path": ["x"]}, [], None, "x"])
def test_no_description(described: Any) -> None:
    """What says nothing of a ring leads to none."""
    assert RingClient.open(described) is None


def elsewhere(ring: Ring, folder: Path) -> Any:
    return "/etc/passwd"


def other_folder(ring: Ring, folder: Path) -> Any:
    (folder / "below").mkdir()
    copy = folder / "below" / Path(ring.path).name
    os.link(ring.path, copy)
    return str(copy)


def up_and_down(ring: Ring, folder: Path) -> Any:
    return f"{folder}/../{folder.name}/{Path(ring.path).name}"


def other_name(ring: Ring, folder: Path) -> Any:
    os.link(ring.path, folder / "rpc-kit-0123")
    return str(folder / "rpc-kit-0123")


def with_newline(ring: Ring, folder: Path) -> Any:
    os.link(ring.path, f"{ring.path}\n")
    return f"{ring.path}\n"


def with_zero(ring: Ring, folder: Path) -> Any:
    return f"{folder}\0/{NAME}"


def nothing(ring: Ring, folder: Path) -> Any:
    return str(folder / NAME)


def symlink(ring: Ring, folder: Path) -> Any:
    os.symlink(ring.path, folder / NAME)
    return str(folder / NAME)


def directory(ring: Ring, folder: Path) -> Any:
    (folder / NAME).mkdir()
    return str(folder / NAME)


def fifo(ring: Ring, folder: Path) -> Any:
    os.mkfifo(folder / NAME, 0o600)
    return str(folder / NAME)


def empty(ring: Ring, folder: Path) -> Any:
    (folder / NAME).touch(0o600)
    return str(folder / NAME)


def wrong_magic(ring: Ring, folder: Path) -> Any:
    os.pwrite(opening := os.open(ring.path, os.O_RDWR), b"x", 0)
    os.close(opening)
    return ring.path


def other_version(ring: Ring, folder: Path) -> Any:
    os.pwrite(opening := os.open(ring.path, os.O_RDWR), b"\x09", 8)
    os.close(opening)
    return ring.path


def too_short(ring: Ring, folder: Path) -> Any:
    made = copy_of(ring, folder)
    os.truncate(made, 4096)
    return str(made)


def open_to_others(ring: Ring, folder: Path) -> Any:
    os.chmod(ring.path, 0o660)
    return ring.path


def dead(ring: Ring, folder: Path) -> Any:
    return str(copy_of(ring, folder))


@pytest.mark.parametrize(
    "make",
    [
        elsewhere, other_folder, up_and_down, other_name, with_newline, with_zero, nothing, symlink, directory, fifo,
        empty, wrong_magic, other_version, too_short, open_to_others, dead,
    ],
)  # fmt: skip
def test_hostile_descriptions(ring: Ring, folder: Path, make: Callable[..., Any]) -> None:
    """Nobody is led to anything else than the live ring of the same user, in its place."""
    path = make(ring, folder)
    before = len(os.listdir("/proc/self/fd"))

    assert opened(path, folder) is None
    assert before == len(os.listdir("/proc/self/fd"))


def test_file_of_another_user(ring: Ring, folder: Path) -> None:
    """Shared memory is that of one user."""
    require("root")
    os.chown(ring.path, 12345, 12345)

    assert opened(ring.path, folder) is None


def test_leftovers_are_removed(ring: Ring, folder: Path) -> None:
    """What dead servers have left goes, and nothing else: neither what lives nor what is no ring."""
    copy_of(ring, folder)
    others = [folder / name for name in ("rpc-kit-0", "rpc-kit-0123456789abcdeF", "rpc-kit-fedcba9876543210")]
    for other in others:
        other.write_bytes(b"x" * 50_000)
        other.chmod(0o600)
    (folder / "rpc-kit-0123456789abcde0").symlink_to(others[0])
    made = Ring.create(1 << 20, str(folder))
    assert made is not None
    made.close()

    expected = {*(other.name for other in others), "rpc-kit-0123456789abcde0", Path(ring.path).name}
    assert expected == set(os.listdir(folder))


def test_name_that_is_taken(ring: Ring, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another name is tried."""
    taken = Path(ring.path).name.removeprefix("rpc-kit-")
    names = iter([taken, "0" * 16])
    monkeypatch.setattr(locked_file.secrets, "token_hex", lambda _: next(names))
    made = Ring.create(1 << 20, str(folder))
    assert made is not None
    made.close()

    assert f"{folder}/rpc-kit-{'0' * 16}" == made.path


def test_broken_table_does_no_harm(ring: Ring, folder: Path) -> None:
    """A table that leads beyond the file gives no slots: reading there would end the process."""
    slot = ring.allocate(5)
    client = opened(ring.path, folder)
    assert slot is not None and client is not None
    ref = ring.hand_over(slot, 0, 5, client.proof[1])
    assert ref is not None
    del slot
    words = ring._file._words
    for offset, capacity in ((1 << 40, 4096), ((1 << 64) - 1, (1 << 64) - 1), (4096, 1 << 60), (0, 0), (5, 4096)):
        words[9], words[10] = offset, capacity
        with pytest.raises(ConnectionError):
            client.view(ref)
        assert client.allocate(4000) is None
    words[4] = 1 << 63
    assert client.allocate(10_000) is None
    client.close()
    next_slot = ring.allocate(4096)
    assert next_slot is not None
    next_slot.array[:] = 1


def test_use_ends_before_the_close_of_others(folder: Path) -> None:
    """The descriptor is closed when nobody uses it any more, and not used again."""
    file = LockedFile.create(str(folder))
    assert file is not None
    with file as is_open:
        file.close()
        other = LockedFile.open(file.path)
        assert [True, True] == [is_open, other is not None]
        del other
        with file as is_open:
            assert not is_open
        assert LockedFile.open(file.path) is not None

    assert LockedFile.open(file.path) is None
    os.unlink(file.path)
