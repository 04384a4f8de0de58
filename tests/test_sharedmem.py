"""Shared memory: slots are lent, handed over, looked at, and used anew when nobody holds them."""

import contextlib
import gc
import json
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import psutil
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rpc_kit.errors import BufferLost
from rpc_kit.locked_file import MAX_SLOTS, TICKETS
from rpc_kit.sharedmem import PICK_UP_TIME, Ring, RingClient, Slot, SlotRef, Usage
from tests.devices import LIMIT
from tests.helpers import FakeClock, Program, in_thread, wait_until
from tests.rings import MIB, PAGE, filled, handed, held, lent, make_slots, memory_folder, opened, output_of, pattern

NOBODY = 12345


class Peer:
    """A process with shared memory; its methods are those of `tests.ring_user.User`."""

    def __init__(self, program: Program) -> None:
        self.program = program
        assert "ready" == program.line

    def __getattr__(self, order: str) -> Callable[..., Any]:
        def ask(*arguments: Any) -> Any:
            assert self.program.process.stdin is not None
            self.program.process.stdin.write(json.dumps([order, *arguments]) + "\n")
            self.program.process.stdin.flush()
            return json.loads(self.program.output.readline())

        return ask

    def kill(self) -> None:
        self.program.kill()


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


@pytest.fixture
def client(ring: Ring, folder: str) -> Iterator[RingClient]:
    """A client in the same process."""
    made = opened(ring)
    yield made
    made.close()


@pytest.fixture
def peer(spawn: Callable[..., Program]) -> Callable[..., Peer]:
    """Starts processes with shared memory."""
    return lambda *arguments: Peer(spawn("tests.ring_user", *map(str, arguments)))


@pytest.fixture
def reader(peer: Callable[..., Peer], ring: Ring) -> Peer:
    """A client in another process."""
    return peer("open", ring.path)


def test_client_sees_what_the_server_has_written(ring: Ring, client: RingClient) -> None:
    """Bytes that are written into a slot are those that its reader gets."""
    view = lent(ring, client, 100_000, seed=3)

    assert (numpy.uint8, (100_000,)) == (view.dtype, view.shape)
    assert pattern(3, 100_000) == view.tobytes()


def test_server_sees_what_the_client_has_written(ring: Ring, client: RingClient) -> None:
    """A client puts arguments into slots that the server has made."""
    filled(ring, 50_000)
    slot = filled(client, 40_000, seed=5)
    view = ring.view(client.reference(slot))

    assert pattern(5, 40_000) == view.tobytes()


def test_nothing_is_copied(ring: Ring, client: RingClient) -> None:
    """The reader looks at the memory to which the server has written."""
    slot = filled(ring)
    writable = memoryview(slot.array)
    view = client.view(handed(ring, client, slot))
    writable[7] = 99

    assert 99 == view[7]


def test_part_of_a_slot(ring: Ring, client: RingClient) -> None:
    """A reference may be to a part of a slot."""
    slot = filled(ring, 5000)
    view = client.view(handed(ring, client, slot, 100, 50))

    assert pattern(0, 5000)[100:150] == view.tobytes()


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, PAGE + 1])
def test_slot_has_exactly_the_size_that_was_asked_for(ring: Ring, client: RingClient, size: int) -> None:
    """Pages are not seen."""
    slot = ring.allocate(size)
    assert slot is not None
    view = client.view(handed(ring, client, slot))

    assert ((size,), (size,)) == (slot.array.shape, view.shape)


@pytest.mark.parametrize("size", [-1, 4 * MIB + 1, 1 << 70])
def test_impossible_sizes(ring: Ring, size: int) -> None:
    """What cannot be is None, not an error."""
    assert ring.allocate(size) is None


def test_view_is_read_only(ring: Ring, client: RingClient) -> None:
    """Whoever looks at a slot cannot write to it, whatever he tries."""
    make_slots(ring, PAGE, PAGE)
    from_server = lent(ring, client)
    slot = filled(client)
    from_client = ring.view(client.reference(slot))

    for view in (from_server, from_client):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True


def test_sealed_slot_is_read_only(ring: Ring, client: RingClient) -> None:
    """What was handed over is not written to any more, nor is what the loan was made of."""
    slot = ring.allocate(2 * PAGE)
    assert slot is not None
    loan = slot.array.view(numpy.uint16).reshape(64, 64)
    found = ring.find(loan)
    assert found is not None
    handed(ring, client, *found)
    found[0].seal()

    assert [False, False] == [slot.array.flags.writeable, loan.flags.writeable]
    late = slot.array.view()
    assert not late.flags.writeable


def test_writable_view_of_a_sealed_slot_is_sealed_when_it_is_found(ring: Ring) -> None:
    """Also an array that nobody knew of becomes read-only when it is sent."""
    slot = ring.allocate(PAGE)
    assert slot is not None
    unknown = slot.array[10:20]
    slot.seal()
    assert unknown.flags.writeable
    ring.find(unknown)

    assert not unknown.flags.writeable


def test_find(ring: Ring) -> None:
    """Any C-contiguous view of a loan is found, with its place in the slot."""
    slot = ring.allocate(8 * PAGE)
    assert slot is not None
    image = slot.array.view(numpy.uint16).reshape(64, 256)
    offsets = {}
    for name, array in {
        "all": image,
        "rows": image[3:5],
        "one value": image[1, 2:3],
        "bytes": numpy.frombuffer(memoryview(image[2:]).cast("B"), numpy.uint8),
        "transposed twice": image.T.T,
        "subclass": image[4].view(numpy.recarray),
    }.items():
        found = ring.find(array)
        assert found is not None
        assert found[0].array is slot.array
        offsets[name] = found[1]

    expected = {"all": 0, "rows": 3 * 512, "one value": 516, "bytes": 1024, "transposed twice": 0, "subclass": 2048}
    assert expected == offsets


def test_not_found(ring: Ring, create: Callable[..., Ring], client: RingClient) -> None:
    """Other arrays are not found: of ordinary memory, of another ring, of a client, with gaps, or beyond the slot."""
    slot, other = ring.allocate(PAGE), create().allocate(PAGE)
    assert slot is not None and other is not None
    beyond = numpy.lib.stride_tricks.as_strided(slot.array[-2:], (4,), (1,))
    arrays = [
        numpy.zeros(5), numpy.frombuffer(b"123", numpy.uint8), slot.array[::2], slot.array[5:5], beyond, other.array,
        lent(ring, client), slot.array.copy(), numpy.array(3),
    ]  # fmt: skip

    assert [None] * len(arrays) == [ring.find(array) for array in arrays]


def test_argument_is_found_and_sent_back(ring: Ring, client: RingClient) -> None:
    """What a client has placed goes back to it, or to another client, without a copy."""
    filled(ring, 2 * PAGE)
    argument = filled(client, 2 * PAGE, seed=4)
    index, generation, _, size, ticket = client.reference(argument)
    view = ring.view((index, generation, 512, size - 512, ticket))
    found = ring.find(view[10:])
    assert found is not None
    assert 522 == found[1]

    with contextlib.closing(opened(ring)) as other:
        assert pattern(4, 2 * PAGE)[522:600] == other.view(handed(ring, other, *found, 78)).tobytes()


def test_slot_is_used_again(ring: Ring, client: RingClient) -> None:
    """A slot that nobody holds is taken again, the last one first."""
    views = [lent(ring, client, seed=seed) for seed in range(3)]
    assert Usage(4 * MIB, 3 * PAGE, 3, 3) == ring.usage()
    del views[2], views[0]
    assert 1 == held(ring)
    slot = ring.allocate(PAGE)
    assert slot is not None

    assert [2, 3] == [handed(ring, client, slot)[0], ring.usage().slots]


HOLDERS: dict[str, Callable[[Slot], Any]] = {
    "slot": lambda slot: slot,
    "array": lambda slot: slot.array,
    "view of the array": lambda slot: slot.array[5:7],
    "memoryview": lambda slot: memoryview(slot.array)[3:4],
    "shaped": lambda slot: slot.array.view(numpy.float64).reshape(2, -1).T[1:],
    "in a list": lambda slot: [[slot.array[0:0]]],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_a_loan(ring: Ring, holder: str) -> None:
    """A slot is held by its object, by its array, and by all that was made of that without a copy."""
    slot = ring.allocate(PAGE)
    assert slot is not None
    kept = HOLDERS[holder](slot)
    del slot
    assert 1 == held(ring)
    del kept

    assert 0 == held(ring)


@pytest.mark.parametrize("by_client", [False, True])
def test_array_in_a_cycle_is_released(ring: Ring, client: RingClient, by_client: bool) -> None:
    """The garbage collector releases slots, too."""
    cycle: list[Any] = [lent(ring, client) if by_client else filled(ring).array]
    cycle.append(cycle)
    assert 1 == held(ring)
    del cycle
    gc.collect()

    assert 0 == held(ring)


def test_held_view_is_never_overwritten(ring: Ring, client: RingClient) -> None:
    """However much is allocated, what is held stays as it is."""
    views = {seed: lent(ring, client, 10_000, seed) for seed in range(0, 200, 7)}
    for seed in range(500):
        filled(ring, 5000 + 13 * seed, seed)
        slot = client.allocate(seed)
        if slot is not None:
            slot.array[:] = 1

    assert {seed: pattern(seed, 10_000) for seed in views} == {seed: view.tobytes() for seed, view in views.items()}


def test_two_readers_of_one_slot(ring: Ring, client: RingClient) -> None:
    """A slot is free when all of its readers have let go of it."""
    with contextlib.closing(opened(ring)) as other:
        slot = filled(ring, seed=9)
        refs = [handed(ring, each, slot) for each in (client, other)]
        del slot
        views = [client.view(refs[0]), other.view(refs[1])]
        assert views[0].tobytes() == views[1].tobytes() == pattern(9, PAGE)
        del views[0]
        assert 1 == held(ring)
        views.clear()

        assert 0 == held(ring)


def test_slot_waits_for_its_reader(ring: Ring, client: RingClient, clock: FakeClock) -> None:
    """What was handed over is held until the reader has it, though the server has forgotten it."""
    ref = handed(ring, client, filled(ring, seed=1))
    clock.advance(PICK_UP_TIME - 1)
    filled(ring, seed=2)
    assert 1 == held(ring)
    view = client.view(ref)

    assert pattern(1, PAGE) == view.tobytes()


def test_slot_does_not_wait_for_ever(ring: Ring, client: RingClient, clock: FakeClock) -> None:
    """After 30 s the slot is used for something else, and the reader is told."""
    late = handed(ring, client, filled(ring))
    clock.advance(PICK_UP_TIME)
    assert 0 == held(ring)
    ref = handed(ring, client, filled(ring, seed=1))
    assert late[0] == ref[0]
    with pytest.raises(BufferLost, match="something else"):
        client.view(late)
    assert 1 == held(ring)

    assert pattern(1, PAGE) == client.view(ref).tobytes()


def test_late_reader_may_be_lucky(ring: Ring, client: RingClient, clock: FakeClock) -> None:
    """A slot that was not used since still has what was handed over."""
    late = handed(ring, client, filled(ring, seed=6))
    clock.advance(PICK_UP_TIME)
    assert 0 == held(ring)

    assert pattern(6, PAGE) == client.view(late).tobytes()


def test_late_reader_does_not_clear_the_ticket_of_another(ring: Ring, client: RingClient, clock: FakeClock) -> None:
    """Tickets are told from those that had their place before."""
    late = handed(ring, client, filled(ring, seed=6))
    clock.advance(PICK_UP_TIME)
    ring.usage()
    kept = filled(ring, 2 * PAGE)
    refs = [handed(ring, client, kept) for _ in range(TICKETS)]
    assert late[4] % TICKETS in {ref[4] % TICKETS for ref in refs}
    del kept
    for ref in refs[:-1]:
        client.view(ref)
    client.view(late)

    assert 1 == held(ring)


def test_slot_in_use_is_lost(ring: Ring, client: RingClient) -> None:
    """A reference to what is being written is refused."""
    ref = handed(ring, client, filled(ring))
    client.view(ref)
    slot = filled(ring)

    with pytest.raises(BufferLost):
        client.view(ref)
    slot.seal()
    with pytest.raises(BufferLost):
        client.view(ref)


@pytest.mark.parametrize(
    "ref",
    [
        (0, 1, 0, PAGE + 1, -1), (0, 1, PAGE, 1, -1), (0, 1, -1, 1, -1), (0, 1, 5, -2, -1), (0, 2, 0, 1, -1),
        (1, 0, 0, 0, -1), (1, 0, 0, 1, -1), (-1, 1, 0, 1, -1), (MAX_SLOTS, 0, 0, 1, -1), (MAX_SLOTS - 1, 0, 0, 1, -1),
        (1 << 70, 1, 0, 1, -1), (0, 1, 1 << 70, 1, -1), (0, 1, 0, 1 << 70, -1), (0, -1, 0, 1, 1 << 70),
    ],
)  # fmt: skip
def test_bad_references(ring: Ring, client: RingClient, ref: SlotRef) -> None:
    """What is no place in a slot is refused by both sides, and held by nobody."""
    valid = handed(ring, client, filled(ring))
    index, generation, *place = ref  # a generation of 1 stands for the present one
    for side in (ring, client):
        with pytest.raises(BufferLost):
            side.view((index, valid[1] + generation - 1, *place))

    client.view(valid)
    assert 0 == held(ring)


def test_references_of_another_run(create: Callable[..., Ring]) -> None:
    """What one run of a server has said of its slots never fits those of another, nor do its tickets."""
    refs = []
    for _ in range(2):
        ring = create()
        refs.append(handed(ring, opened(ring), filled(ring)))

    assert [True, True] == [refs[0][1] != refs[1][1], refs[0][4] != refs[1][4]]


def test_tickets_are_limited(ring: Ring, client: RingClient) -> None:
    """Without a ticket nothing is handed over; each one that is cleared can be had again."""
    slot = filled(ring)
    refs = [handed(ring, client, slot) for _ in range(TICKETS)]
    assert ring.hand_over(slot, 0, 1, client.proof[1]) is None
    client.view(refs[500])

    assert ring.hand_over(slot, 0, 1, client.proof[1]) is not None
    assert ring.hand_over(slot, 0, 1, client.proof[1]) is None


def test_nothing_is_handed_to_nobody(ring: Ring, client: RingClient, create: Callable[..., Ring]) -> None:
    """What nobody will pick up is not waited for, and nobody gets a slot of another ring."""
    row = client.proof[1]
    slot, other = filled(ring), filled(create())
    client.close()
    for reader in (row, NOBODY, -1, 1 << 40, 1 << 70):
        ring.hand_over(slot, 0, 1, reader)
    del slot

    assert 0 == held(ring)
    assert ring.hand_over(other, 0, 1, row) is None


def test_tickets_of_a_closed_reader_are_dropped(ring: Ring, client: RingClient) -> None:
    """Nothing waits for somebody who has closed."""
    handed(ring, client, filled(ring))
    assert 1 == held(ring)
    client.close()

    assert 0 == held(ring)


def test_proof(ring: Ring, client: RingClient, create: Callable[..., Ring]) -> None:
    """Who has had the ring open can prove it; nobody else."""
    secret, row = client.proof
    assert [32, True] == [len(secret), ring.admits(client.proof)]
    wrong = [("", row), ("é\ud800", row), ("0" * 32, row)]
    assert [False] * len(wrong) == [ring.admits(proof) for proof in wrong]

    assert not create().admits(client.proof)


def test_readers_are_told_from_each_other(ring: Ring) -> None:
    """Each client is a reader of its own."""
    clients = [opened(ring) for _ in range(50)]
    assert 50 == len({client.proof for client in clients})
    assert {True} == {ring.admits(client.proof) for client in clients}
    for client in clients:
        client.close()


def test_client_does_not_make_slots(ring: Ring, client: RingClient) -> None:
    """A client takes what is there: the smallest that is large enough."""
    assert client.allocate(1) is None
    make_slots(ring, 3 * PAGE, PAGE, 2 * PAGE)
    sizes = [PAGE + 1, PAGE + 1, PAGE, 3 * PAGE, 4 * PAGE, 0]
    slots = [client.allocate(size) for size in sizes]

    assert [2, 0, 1, None, None, None] == [slot and client.reference(slot)[0] for slot in slots]
    assert 3 == held(ring)


def test_client_takes_a_slot_in_its_new_size(create: Callable[..., Ring]) -> None:
    """A slot that was retired and made anew is mapped anew."""
    ring = create(MIB)
    client = opened(ring)
    filled(ring, MIB // 2)
    for seed, size in ((1, MIB // 2), (2, MIB)):
        filled(ring, size)
        slot = filled(client, size, seed)
        assert pattern(seed, size) == ring.view(client.reference(slot)).tobytes()
        del slot
    client.close()


def test_slot_is_retired_while_a_client_takes_it(
    create: Callable[..., Ring], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that has chosen a slot by a size that it has no longer goes without."""
    ring = create(MIB)
    client = opened(ring)
    make_slots(ring, MIB // 4)
    hold = client._file.hold

    def late(*arguments: Any, **options: Any) -> Any:
        make_slots(ring, MIB)
        return hold(*arguments, **options)

    monkeypatch.setattr(client._file, "hold", late)
    assert client.allocate(9) is None
    assert 0 == held(ring)
    assert client.allocate(MIB) is not None
    client.close()


def test_views_outlive_their_ring(ring: Ring, client: RingClient) -> None:
    """What was received, and what was lent, can be read and written after both sides are closed."""
    view, slot = lent(ring, client, seed=8), filled(ring, seed=9)
    ring.close()
    client.close()
    gc.collect()

    assert [pattern(8, PAGE), pattern(9, PAGE)] == [view.tobytes(), slot.array.tobytes()]
    slot.array[:] = 1
    slot.seal()


def test_closed_ring(ring: Ring, client: RingClient) -> None:
    """A closed ring gives nothing, and does not mind being closed again."""
    slot = filled(ring)
    loan, ref = slot.array, handed(ring, client, slot)
    path = ring.path
    ring.close()
    ring.close()

    assert not os.path.exists(path)
    assert [None, None] == [ring.allocate(1), ring.hand_over(slot, 0, 1, client.proof[1])]
    assert [False, Usage(4 * MIB, 0, 0, 0)] == [ring.admits(client.proof), ring.usage()]
    assert ring.find(loan) is None
    with pytest.raises(BufferLost, match="closed"):
        ring.view(ref)


def test_closed_client(ring: Ring, client: RingClient) -> None:
    """So does a client."""
    ref = handed(ring, client, filled(ring))
    client.close()
    client.close()

    assert client.allocate(1) is None
    with pytest.raises(BufferLost, match="closed"):
        client.view(ref)


def test_client_goes_on_after_the_server_has_unlinked(ring: Ring, client: RingClient) -> None:
    """What was handed over before the end can still be received."""
    slot = filled(ring, seed=2)
    ref = handed(ring, client, slot)
    os.unlink(ring.path)
    assert pattern(2, PAGE) == client.view(ref).tobytes()
    ring.close()

    assert pattern(2, PAGE) == client.view(ref).tobytes()


def use_all(ring: Ring, client: RingClient) -> list[Any]:
    make_slots(ring, *[PAGE] * 5)
    views = [lent(ring, client, size, seed=1) for size in (PAGE, MIB // 2, 10)]
    slot = filled(client, 100)
    views.append(ring.view(client.reference(slot)))
    handed(ring, client, filled(ring))
    filled(ring, 3 * MIB + 5)
    filled(ring, 3 * MIB + MIB // 4 + 5)
    with contextlib.suppress(BufferLost):
        client.view((9, 9, 0, 9, -1))
    return views


def test_no_descriptor_is_left(folder: str) -> None:
    """Neither by rings that are closed, whatever is held then, nor by those that are only dropped."""
    process = psutil.Process()
    before = process.num_fds()
    for ending in ("closed, then views", "views, then closed", "dropped"):
        ring = Ring.create(8 * MIB, folder)
        assert ring is not None
        client = opened(ring)
        seen = use_all(ring, client)
        if ending.startswith("views"):
            seen.clear()
        if ending != "dropped":
            client.close()
            ring.close()
        del ring, client
        seen.clear()
        assert before == process.num_fds(), ending

    assert [] == os.listdir(folder)


def test_no_descriptor_is_left_by_use(create: Callable[..., Ring], clock: FakeClock) -> None:
    """What was used often leaves no more than what was used a few times: the mappings of the slots."""
    process, ring = psutil.Process(), create(8 * MIB)
    client = opened(ring)
    counted = []
    for _ in range(30):
        use_all(ring, client)
        clock.advance(PICK_UP_TIME)
        ring.usage()
        counted.append(process.num_fds())
    client.close()

    assert counted[5] == counted[-1]


def test_only_holds_are_left_after_close(folder: str) -> None:
    """A closed ring keeps what its views need, and no lock of its own."""
    ring = Ring.create(MIB, folder)
    assert ring is not None
    client = opened(ring)
    view = lent(ring, client)
    # With its traceback the exception keeps what the ring was used with.
    with pytest.raises(BufferLost) as lost:
        client.view((0, 9, 0, 9, -1))
    client.close()
    with pytest.raises(BufferLost) as also_lost:
        ring.view((0, 9, 0, 9, -1))
    ring.close()

    assert lost.value is not also_lost.value
    assert RingClient.open({"path": ring.path}, folder) is None
    assert PAGE == view.nbytes


def test_no_shared_memory(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something is missing there is no ring: no folder, no room, another platform."""
    assert Ring.create(0, folder) is None
    assert Ring.create(-1, folder) is None
    assert Ring.create(MIB, f"{folder}/nowhere") is None
    assert Ring.create(MIB, "/proc") is None
    ring = Ring.create(MIB, folder)
    assert ring is not None
    monkeypatch.delattr(os, "O_TMPFILE")

    assert Ring.create(MIB, folder) is None
    assert RingClient.open(ring.describe(), folder) is None
    ring.close()


def test_threads(ring: Ring) -> None:
    """Servers and clients use a ring from many threads; nobody sees what is not meant for him."""
    failures: list[object] = []

    def use(number: int) -> None:
        client = opened(ring)
        kept = []
        for step in range(150):
            seed, size = (number * 150 + step) % 256, (step * 977) % 90_000
            slot = ring.allocate(size) if step % 3 else client.allocate(size)
            if slot is None:
                continue
            slot.array.data[:] = expected = pattern(seed, size)
            if step % 3:
                view = client.view(handed(ring, client, slot))
            else:
                view = ring.view(client.reference(slot))
            kept = [*kept[-2:], (view, expected)]
            del slot
            failures.extend((number, step) for view, expected in kept if view.tobytes() != expected)
        client.close()

    with contextlib.ExitStack() as stack:
        outcomes = [stack.enter_context(in_thread(lambda number=number: use(number))) for number in range(4)]

    assert [[None]] * 4 == outcomes
    assert [] == failures
    assert 0 == held(ring)


def test_closing_while_others_use_it(folder: str) -> None:
    """A ring is closed under the hands of other threads: they get what they can have, or nothing."""
    process = psutil.Process()
    before = process.num_fds()
    for _ in range(20):
        ring = Ring.create(MIB, folder)
        assert ring is not None
        client = opened(ring)
        begun = threading.Barrier(3)

        def use(ring: Ring = ring, client: RingClient = client, begun: threading.Barrier = begun) -> None:
            begun.wait(LIMIT)
            while (slot := ring.allocate(100)) is not None:
                ref = ring.hand_over(slot, 0, 100, client.proof[1])
                if ref is not None:
                    with contextlib.suppress(BufferLost):
                        client.view(ref)

        with in_thread(use) as one, in_thread(use) as other:
            begun.wait(LIMIT)
            client.close()
            ring.close()
        assert [[None], [None]] == [one, other]
        del ring, client, use

    assert [before, []] == [process.num_fds(), os.listdir(folder)]


def test_signal_handler_closes_in_the_middle(ring: Ring, client: RingClient) -> None:
    """A handler of a signal that closes both sides does not wait for what it has interrupted."""

    def close(*_: object) -> None:
        client.close()
        ring.close()

    before = signal.signal(signal.SIGALRM, close)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        while (slot := ring.allocate(100)) is not None:
            ref = ring.hand_over(slot, 0, 100, client.proof[1])
            if ref is not None:
                with contextlib.suppress(BufferLost):
                    client.view(ref)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert not os.path.exists(ring.path)


def test_frames_between_processes(ring: Ring, reader: Peer) -> None:
    """Frames arrive as they were sent, both ways."""
    row = reader.proof()[1]
    make_slots(ring, *[MIB // 2] * 5)
    for seed in range(50):
        size = 1 + seed * 7919
        expected = zlib.crc32(pattern(seed, size))
        assert expected == reader.view(f"view {seed % 3}", handed(ring, row, filled(ring, size, seed)))
        assert reader.allocate("argument", size // 2, seed)
        assert pattern(seed, size // 2) == ring.view(reader.reference("argument")).tobytes()


def test_killed_reader_frees_all_it_had(ring: Ring, reader: Peer) -> None:
    """Its slots, its arguments and what waits for it are free when it is dead."""
    row = reader.proof()[1]
    reader.view("view", handed(ring, row, filled(ring)))
    handed(ring, row, filled(ring))
    ring.allocate(10 * PAGE)
    assert reader.allocate("argument", 9 * PAGE, 1)
    assert 3 == held(ring)
    os.kill(reader.program.pid, signal.SIGKILL)
    reader.program.process.wait(LIMIT)

    assert 0 == held(ring)
    handed(ring, row, filled(ring))
    assert 0 == held(ring)


def test_view_outlives_a_killed_server(peer: Callable[..., Peer], folder: str) -> None:
    """A view is valid though the server is dead; so is what was handed over. The next server removes the file."""
    server = peer("create", folder, MIB)
    path = server.path()
    client = RingClient.open({"path": path}, folder)
    assert client is not None
    refs = []
    for name, seed in (("one", 1), ("two", 2)):
        server.allocate(name, MIB // 2, seed)
        refs.append(server.hand_over(name, client.proof[1]))
    view = client.view(refs[0])
    server.kill()
    assert [True, None] == [os.path.exists(path), RingClient.open({"path": path}, folder)]
    next_ring = Ring.create(MIB, folder)
    assert next_ring is not None

    assert [os.path.basename(next_ring.path)] == os.listdir(folder)
    assert pattern(1, MIB // 2) == view.tobytes()
    assert pattern(2, MIB // 2) == client.view(refs[1]).tobytes()
    client.close()
    next_ring.close()


def test_forked_child_keeps_a_view(ring: Ring, reader: Peer) -> None:
    """A slot is held until the child, too, has let go of it; neither ends the other's use of the ring."""
    row = reader.proof()[1]
    expected = reader.view("view", handed(ring, row, filled(ring, 2 * PAGE)))
    waiting = handed(ring, row, filled(ring, seed=3))
    assert "lost None" == reader.fork()["said"]
    assert expected == reader.checksum("view")
    reader.drop("view")
    assert 2 == held(ring)
    assert zlib.crc32(pattern(3, PAGE)) == reader.view("waiting", waiting)
    reader.drop("waiting")
    assert 1 == held(ring)
    reader.end_child()

    assert 0 == held(ring)


def test_forked_child_does_not_keep_its_parent_alive(ring: Ring, reader: Peer) -> None:
    """When a reader is killed, what waits for it is dropped, though a child of it lives."""
    row = reader.proof()[1]
    reader.view("view", handed(ring, row, filled(ring)))
    handed(ring, row, filled(ring))
    child = psutil.Process(reader.fork()["child"])
    child.suspend()
    os.kill(reader.program.pid, signal.SIGKILL)
    reader.program.process.wait(LIMIT)
    assert 1 == held(ring)
    handed(ring, row, filled(ring))
    assert 1 == held(ring)
    child.resume()

    wait_until(lambda: held(ring) == 0)


def test_child_of_a_server(peer: Callable[..., Peer], folder: str) -> None:
    """It neither removes the file nor keeps what waits for readers; and the ring dies with the server."""
    server = peer("create", folder, MIB)
    described = {"path": server.path()}
    client = RingClient.open(described, folder)
    assert client is not None
    assert server.allocate("frame", MIB, 1)
    ref = server.hand_over("frame", client.proof[1])
    server.drop("frame")
    assert "lost None" == server.fork()["said"]
    view = client.view(ref)
    assert not server.allocate("next", MIB, 2)
    del view
    assert server.allocate("next", MIB, 2)
    server.end_child()
    assert RingClient.open(described, folder) is not None
    child = psutil.Process(server.fork()["child"])
    child.suspend()
    os.kill(server.program.pid, signal.SIGKILL)
    server.program.process.wait(LIMIT)

    assert RingClient.open(described, folder) is None
    client.close()
    child.resume()


CHILD_EXITS = """
import os, sys
from rpc_kit.sharedmem import Ring
ring = Ring.create(1 << 20, sys.argv[1])
if os.fork() == 0:
    sys.exit()
os.wait()
print(os.path.exists(ring.path), ring.allocate(5) is not None)
"""


def test_ring_that_was_not_closed_is_removed_at_exit(folder: str) -> None:
    """By the process that has made it, not by its child."""
    assert "True True" == output_of(CHILD_EXITS, folder)

    assert [] == os.listdir(folder)


END = """
import os, sys
from rpc_kit.sharedmem import Ring, RingClient
os.cycle = lambda: os  # then the module is gone before all objects
ring = Ring.create(1 << 20, sys.argv[1])
client = RingClient.open(ring.describe(), sys.argv[1])
slot = ring.allocate(9)
view = client.view(ring.hand_over(slot, 0, 9, client.proof[1]))
cycle = [view, ring, client]
cycle.append(cycle)
sys.kept = sys.modules["rpc_kit.errors"].kept = cycle
"""


def test_end_of_the_interpreter(folder: str) -> None:
    """Whatever lives until the end, and in whatever order it goes: nothing is left, and nothing said."""
    assert "" == output_of(END, folder)

    assert [] == os.listdir(folder)


DESCRIPTORS = """
import contextlib, os, resource, sys
from rpc_kit.errors import BufferLost
from rpc_kit.sharedmem import Ring, RingClient
ring = Ring.create(1 << 20, sys.argv[1])
client = RingClient.open(ring.describe(), sys.argv[1])
import numpy
def lend():
    slot = ring.allocate(9)
    return ring.hand_over(slot, 0, 9, client.proof[1])
client.view(lend())
ref = lend()
spares = [each for used in (ring, client) for each in iter(used._file.spares.take, None)]
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
wasted = []
with contextlib.suppress(OSError):
    while True:
        wasted.append(os.dup(1))
print(ring.allocate(9), client.allocate(9), Ring.create(9, sys.argv[1]), RingClient.open(ring.describe(), sys.argv[1]))
try:
    client.view(ref)
except BufferLost as exc:
    print(exc)
for each in wasted + spares:
    os.close(each)
print(len(client.view(ref)), len(os.listdir("/proc/self/fd")))
"""


def test_too_many_descriptors(folder: str) -> None:
    """A process without descriptors gets no slots, and says why it cannot look at one."""
    refused, lost, well = output_of(DESCRIPTORS, folder).splitlines()

    assert "None None None None" == refused
    assert "Too many open files" in lost
    assert "9" == well.split()[0]


class Shuffle(RuleBasedStateMachine):
    """A server and its clients do anything in any order; a model knows who holds what, and what is in it."""

    @initialize()
    def start(self) -> None:
        self.closing = contextlib.ExitStack()
        self.clock = FakeClock()
        made = Ring.create(128 * PAGE, self.closing.enter_context(memory_folder()), self.clock)
        assert made is not None
        self.ring = made
        self.clients = [opened(made), opened(made)]
        self.seed = 0
        # What is held by slots and views (array, slot, index, seed), and by tickets (ref, client, seed, deadline).
        self.arrays: list[tuple[Any, Slot | None, int, int]] = []
        self.tickets: list[tuple[SlotRef, RingClient, int, float]] = []

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            for each in (*self.clients, self.ring):
                each.close()
            self.closing.close()

    def indexes(self) -> set[int]:
        return {index for _, _, index, _ in self.arrays} | {ref[0] for ref, *_ in self.tickets}

    def keep(self, slot: Slot) -> None:
        self.seed += 1
        slot.array[:] = self.seed % 251
        self.arrays.append((slot.array, slot, slot._hold.index, self.seed % 251))

    @rule(size=st.integers(0, 60 * PAGE))
    def allocate(self, size: int) -> None:
        used = sum(self.ring._extent(index)[1] for index in self.indexes())
        slot = self.ring.allocate(size)
        if slot is None:
            assert used + -(-max(size, 1) // PAGE) * PAGE > self.ring.limit
        else:
            assert slot._hold.index not in self.indexes()
            self.keep(slot)

    @rule(size=st.integers(0, 60 * PAGE), which=st.integers(0, 1))
    def allocate_argument(self, size: int, which: int) -> None:
        free = [self.ring._extent(index)[1] for index in range(MAX_SLOTS) if index not in self.indexes()]
        slot = self.clients[which].allocate(size)
        assert (slot is not None) == (max([0, *free]) >= max(size, 1))
        if slot is not None:
            assert slot._hold.index not in self.indexes()
            self.keep(slot)
            if size % 2:
                ref = self.clients[which].reference(slot)
                self.arrays[-1] = self.ring.view(ref), None, ref[0], self.arrays[-1][3]

    @precondition(lambda self: any(slot is not None for _, slot, *_ in self.arrays))
    @rule(data=st.data(), which=st.integers(0, 1))
    def hand_over(self, data: st.DataObject, which: int) -> None:
        # What is drawn itself, Hypothesis would hold.
        numbers = [number for number, each in enumerate(self.arrays) if each[1] is not None]
        array, slot, _, seed = self.arrays[data.draw(st.sampled_from(numbers))]
        assert slot is not None
        ref = self.ring.hand_over(slot, 0, len(array), self.clients[which].proof[1])
        if slot._hold.ring is not self.ring._own:
            assert ref is None
        else:
            assert ref is not None
            self.tickets.append((ref, self.clients[which], seed, self.clock.now + PICK_UP_TIME))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def view(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(range(len(self.tickets))))
        ref, client, seed, _ = self.tickets.pop(chosen)
        self.arrays.append((client.view(ref), None, ref[0], seed))

    @precondition(lambda self: self.arrays)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        del self.arrays[data.draw(st.sampled_from(range(len(self.arrays))))]

    @rule(seconds=st.sampled_from([5.0, 29.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.tickets = [each for each in self.tickets if self.clock.now < each[3]]

    @rule(which=st.integers(0, 1))
    def replace_client(self, which: int) -> None:
        gone = self.clients[which]
        self.tickets = [each for each in self.tickets if each[1] is not gone]
        gone.close()
        self.clients[which] = opened(self.ring)

    @invariant()
    def holds_are_known_and_what_is_held_stays(self) -> None:
        if hasattr(self, "ring"):
            assert len(self.indexes()) == self.ring.usage().held
            assert self.ring.usage().size <= self.ring.limit
            for array, _, _, seed in self.arrays:
                assert (array == seed).all()


TestShuffle = Shuffle.TestCase
TestShuffle.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
