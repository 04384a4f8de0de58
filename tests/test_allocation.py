"""Which slot of shared memory is given: sizes, the limit, growth, what is given back, and memory that is full."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from rpc_kit.errors import BufferLost
from rpc_kit.locked_file import MAX_SLOTS
from rpc_kit.sharedmem import PICK_UP_TIME, Ring, Usage
from tests.helpers import FakeClock
from tests.real.parts import require
from tests.rings import MIB, PAGE, filled, handed, lent, make_slots, memory_folder, opened, output_of, pattern


@pytest.fixture
def folder() -> Iterator[str]:
    """A folder in memory."""
    with memory_folder() as made:
        yield made


@pytest.fixture
def clock() -> FakeClock:
    """The clock of the ring."""
    return FakeClock()


@pytest.fixture
def create(folder: str, clock: FakeClock) -> Iterator[Callable[..., Ring]]:
    """Makes rings."""
    made = []

    def start(limit: int = 4 * MIB) -> Ring:
        ring = Ring.create(limit, folder, clock)
        assert ring is not None
        made.append(ring)
        return ring

    yield start
    for ring in made:
        ring.close()


@pytest.fixture
def ring(create: Callable[..., Ring]) -> Ring:
    """The ring of a server."""
    return create()


@pytest.mark.parametrize(
    ("size", "capacity"),
    [
        (1, PAGE), (PAGE + 1, 2 * PAGE), (100_000, 106_496), (MIB, MIB), (MIB + 1, MIB + MIB // 8),
        (3 * MIB + 1, 3 * MIB + MIB // 4), (4 * MIB - 1, 4 * MIB),
    ],
)  # fmt: skip
def test_capacity_has_steps(ring: Ring, size: int, capacity: int) -> None:
    """Sizes that differ by less than an eighth share a capacity."""
    ring.allocate(size)

    assert capacity == ring.usage().size


def test_steps_keep_to_the_limit(create: Callable[..., Ring]) -> None:
    """As many slots fit as the limit has room for, when it was made for a number of frames."""
    frame = 9 * 64 * PAGE + PAGE
    ring = create(4 * frame)
    slots = [ring.allocate(frame) for _ in range(5)]

    assert [True] * 3 == [slot is not None for slot in slots[:3]]
    assert slots[4] is None
    assert ring.usage().size <= 4 * frame


def test_sizes_that_vary_a_little_need_one_slot(ring: Ring) -> None:
    """Nothing is made anew for them."""
    for size in range(900_000, 917_000, 1000):
        filled(ring, size)

    assert 1 == ring.usage().slots


def test_limit(create: Callable[..., Ring]) -> None:
    """No more than the limit; what is released is used again."""
    ring = create(MIB)
    slots = [ring.allocate(MIB // 4) for _ in range(5)]
    assert [True] * 4 + [False] == [slot is not None for slot in slots]
    assert Usage(MIB, MIB, 4, 4) == ring.usage()
    del slots[1]

    assert ring.allocate(MIB // 4) is not None
    assert Usage(MIB, MIB, 4, 3) == ring.usage()


def test_large_slot_serves_what_is_small_when_there_is_no_room(create: Callable[..., Ring]) -> None:
    """A slot is better too large than none."""
    ring = create(MIB)
    ring.allocate(MIB)
    slot = ring.allocate(100)

    assert slot is not None
    assert Usage(MIB, MIB, 1, 1) == ring.usage()


def test_free_slots_are_retired_for_a_larger_one(create: Callable[..., Ring]) -> None:
    """Slots that nobody holds give their memory to what does not fit; those that are held stay as they are."""
    ring = create(MIB)
    client = opened(ring)
    views = [lent(ring, client, MIB // 8, seed) for seed in range(8)]
    old = client.reference(filled(client)) if client.allocate(1) else None
    assert old is None
    assert ring.allocate(MIB // 2) is None
    del views[1:5]
    before = os.stat(ring.path).st_blocks
    slot = filled(ring, MIB // 2, seed=77)

    assert Usage(MIB, MIB, 5, 5) == ring.usage()
    assert before == os.stat(ring.path).st_blocks
    view = client.view(handed(ring, client, slot))
    assert pattern(77, MIB // 2) == view.tobytes()
    assert [pattern(seed, MIB // 8) for seed in (0, 5, 6, 7)] == [each.tobytes() for each in views]
    client.close()


def test_room_for_the_size_alone_is_enough(create: Callable[..., Ring]) -> None:
    """Without room for the next step a slot has what is needed."""
    ring = create(99 * PAGE)
    kept = filled(ring, 36 * PAGE - 3)
    make_slots(ring, *[PAGE] * 63)
    slot = ring.allocate(63 * PAGE - 5)

    assert slot is not None and kept is not None
    assert 99 * PAGE == ring.usage().size


def test_nothing_is_retired_in_vain(create: Callable[..., Ring]) -> None:
    """Without enough room in the end all slots stay."""
    ring = create(MIB)
    slots = [ring.allocate(MIB // 4) for _ in range(4)]
    del slots[1:3]

    assert ring.allocate(MIB * 3 // 4) is None
    assert Usage(MIB, MIB, 4, 2) == ring.usage()


def test_reference_to_a_retired_slot_is_lost(create: Callable[..., Ring], clock: FakeClock) -> None:
    """Also before the slot is made anew nobody sees its empty memory."""
    ring = create(MIB)
    client = opened(ring)
    small, large = filled(ring, MIB // 4), filled(ring, MIB * 3 // 4)
    late = handed(ring, client, small)
    held_ref = handed(ring, client, large)
    del small, large
    assert pattern(0, 5) == client.view(held_ref)[:5].tobytes()
    clock.advance(PICK_UP_TIME)
    filled(ring, MIB)

    for ref in (late, held_ref):
        with pytest.raises(BufferLost):
            client.view(ref)
    client.close()


def test_memory_is_given_back(create: Callable[..., Ring]) -> None:
    """Sizes that grow and shrink do not take more memory than the limit."""
    ring = create(MIB)
    for step in range(50):
        filled(ring, (step * 37 % 16 + 1) * 64 * 1024 - 5)

    assert 0 < os.stat(ring.path).st_blocks * 512 <= MIB + 16 * PAGE
    assert ring.usage().size <= MIB


def test_number_of_slots_is_limited(create: Callable[..., Ring]) -> None:
    """There are 255; then a free one has to go for another size."""
    ring = create(64 * MIB)
    slots = [ring.allocate(PAGE) for _ in range(MAX_SLOTS)]
    assert None not in slots
    assert ring.allocate(PAGE) is None
    del slots[17]
    assert ring.allocate(MIB) is not None

    assert MAX_SLOTS == ring.usage().slots


FULL = """
import sys
from rpc_kit.sharedmem import Ring, RingClient
ring = Ring.create(64 << 20, sys.argv[1])
client = RingClient.open(ring.describe(), sys.argv[1])
slots = [ring.allocate(1 << 20) for _ in range(5)]
for slot in slots:
    if slot is not None:
        slot.array[:] = 7
print([slot is not None for slot in slots], ring.usage().size >> 20)
print(ring.allocate(3 << 20), ring.allocate(40 << 20))
del slot, slots[:]
print(ring.usage().held, ring.allocate(3 << 20).array[-1], ring.usage().slots)
print(len(client.allocate(3 << 20).array))
"""
MOUNTED = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", sys.argv[1]], check=True)
"""
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
"""
FILLED = "[True, True, True, False, False] 3\nNone None"


TAKEN_MEANWHILE = """
import os
system = os.statvfs("/")
os.fstatvfs = lambda _: system
"""


@pytest.mark.parametrize("before", [MOUNTED, MOUNTED + TAKEN_MEANWHILE], ids=["full", "taken meanwhile"])
def test_full_memory(folder: str, before: str) -> None:
    """When the system has no memory left there are no more slots, and nobody dies; what is free is put together."""
    require("unshare", "root", "process namespaces")
    prefix = ("unshare", "--mount", "--propagation", "private")

    assert f"{FILLED}\n0 0 1\n{3 << 20}" == output_of(before + FULL, folder, prefix=prefix)


def test_full_memory_is_not_filled_in_vain(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there is not asked for; a system that has no limit says so by zeros."""
    system, reserve = os.fstatvfs(0), os.posix_fallocate
    values = {name: getattr(system, name) for name in dir(system) if name.startswith("f_")}
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(**values | {"f_blocks": 9, "f_bavail": 0}))
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("reserved"))
    assert ring.allocate(1) is None
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(**values | {"f_blocks": 0, "f_bavail": 0}))
    monkeypatch.setattr(os, "posix_fallocate", reserve)

    assert ring.allocate(1) is not None


def test_limit_of_files(folder: str) -> None:
    """Nor does anybody die of the limit that a process has for its files."""
    assert f"{FILLED}" == "\n".join(output_of(LIMITED + FULL.split("del")[0], folder).splitlines()[:2])
