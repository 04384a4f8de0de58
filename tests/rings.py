"""What the tests of shared memory share: folders, slots with patterns, programs."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from rpc_kit.sharedmem import Ring, RingClient, Slot, SlotRef
from tests.devices import LIMIT
from tests.helpers import PROJECT

MIB = 1 << 20
PAGE = 4096


@contextlib.contextmanager
def memory_folder() -> Iterator[str]:
    """A folder in memory in which no other program removes anything."""
    made = tempfile.mkdtemp(prefix="rpc-kit-tests-", dir="/dev/shm")
    try:
        yield made
    finally:
        shutil.rmtree(made)


def pattern(seed: int, size: int) -> bytes:
    """Bytes that tell one frame from another."""
    return (bytes((seed + number) % 256 for number in range(256)) * (size // 256 + 1))[:size]


def opened(ring: Ring) -> RingClient:
    made = RingClient.open(ring.describe(), os.path.dirname(ring.path))
    assert made is not None
    return made


def filled(ring: Ring | RingClient, size: int = PAGE, seed: int = 0) -> Slot:
    """A slot with a pattern."""
    slot = ring.allocate(size)
    assert slot is not None
    slot.array.data[:] = pattern(seed, size)
    return slot


def make_slots(ring: Ring, *sizes: int) -> None:
    """Free slots of certain sizes."""
    _ = [filled(ring, size) for size in sizes]


def handed(ring: Ring, client: RingClient | int, slot: Slot, offset: int = 0, size: int | None = None) -> SlotRef:
    """A whole slot, or a part of it, on its way to a reader."""
    row = client if isinstance(client, int) else client.proof[1]
    ref = ring.hand_over(slot, offset, slot.array.nbytes if size is None else size, row)
    assert ref is not None
    return ref


def lent(ring: Ring, client: RingClient, size: int = PAGE, seed: int = 0) -> Any:
    """What a client sees of a new slot."""
    return client.view(handed(ring, client, filled(ring, size, seed)))


def held(ring: Ring) -> int:
    return ring.usage().held


def output_of(source: str, *arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """What a program prints; it has to end well."""
    ran = subprocess.run(
        [*prefix, sys.executable, "-W", "ignore", "-c", source, *arguments],
        cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert [0, ""] == [ran.returncode, ran.stderr]
    return ran.stdout.strip()
