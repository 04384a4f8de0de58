"""What became of each request id."""

import pytest

from rpc_kit.journal import Journal
from tests.helpers import FakeClock

NAN = float("nan")


def finished(journal: Journal, *numbers: int, size: int = 1) -> None:
    for number in numbers:
        assert journal.begin(("client", number))
        journal.finish(("client", number), [b"x" * size])


def states(journal: Journal, *numbers: int) -> list[str]:
    return [journal.state(("client", number)) for number in numbers]


def test_life_of_a_request() -> None:
    """An id is unknown, then pending, then done, and can be begun once."""
    journal, request_id = Journal(), ("client", 1)

    assert "unknown" == journal.state(request_id)
    assert journal.begin(request_id)
    assert "pending" == journal.state(request_id)
    assert not journal.begin(request_id)
    journal.finish(request_id, [b"head", b"body"])
    assert "done" == journal.state(request_id)
    assert not journal.begin(request_id)
    assert [b"head", b"body"] == journal.reply(request_id)


def test_ids_of_clients_are_their_own() -> None:
    """The same counter of another client is another id."""
    journal = Journal()
    finished(journal, 1)

    assert journal.begin(("other", 1))


@pytest.mark.parametrize(("size", "state"), [(10, "done"), (11, "sent")])
def test_large_reply_is_not_kept(size: int, state: str) -> None:
    """Of a reply over the limit only that it was given is known; all frames count."""
    journal = Journal(largest=10)
    assert journal.begin(("client", 1))
    journal.finish(("client", 1), [b"x" * 5, memoryview(b"x" * (size - 5))])

    assert [state] == states(journal, 1)
    assert (state == "done") is (journal.reply(("client", 1)) is not None)


def test_latest_ids_are_known() -> None:
    """At least the given number of finished ids is known at any time, and at most twice as many."""
    journal = Journal(entries=10)
    for number in range(100):
        finished(journal, number)
        latest = range(max(0, number - 9), number + 1)
        assert ["done"] * len(latest) == states(journal, *latest)

    assert ["unknown"] * 80 == states(journal, *range(80))
    assert journal.begin(("client", 3))


def test_replies_of_older_generation_are_there() -> None:
    """A reply is found when its generation is the older one."""
    journal = Journal(entries=2)
    finished(journal, 1, 2, 3)

    assert [[b"x"]] * 3 == [journal.reply(("client", number)) for number in (1, 2, 3)]


def test_memory_is_bounded() -> None:
    """Replies beyond the capacity make room by forgetting, however few they are."""
    journal = Journal(entries=1000, largest=100, capacity=250)
    finished(journal, *range(10), size=100)

    assert ["unknown"] * 6 + ["done"] * 4 == states(journal, *range(10))


def test_large_replies_take_no_room() -> None:
    """What is not kept does not push others out."""
    journal = Journal(largest=10, capacity=20)
    finished(journal, 1)
    finished(journal, *range(2, 50), size=1000)

    assert ["done"] + ["sent"] * 48 == states(journal, *range(1, 50))


def test_pending_ids_are_never_forgotten() -> None:
    """A call that runs for long is pending however many others end meanwhile."""
    journal = Journal(entries=2)
    assert journal.begin(("client", 0))
    finished(journal, *range(1, 50))

    assert ["pending"] == states(journal, 0)


@pytest.mark.parametrize(("since", "covered"), [(0.1, True), (11.0, True), (0.0, False), (-0.1, False), (NAN, False)])
def test_young_journal_covers_its_own_time(since: float, covered: bool) -> None:
    """A journal that has forgotten nothing knows every id since it was made, and none of before."""
    clock = FakeClock()
    journal = Journal(clock=clock)
    made = clock()
    clock.advance(10.0)

    assert covered is journal.covers(made + since)


def test_journal_covers_what_it_has_not_forgotten() -> None:
    """With each generation that is forgotten the covered time begins anew where the next one began."""
    clock = FakeClock()
    journal = Journal(entries=2, clock=clock)
    covered = []
    for number in range(8):
        finished(journal, number)
        clock.advance(1.0)
        covered.append(sum(journal.covers(clock() - age) for age in range(10)))

    assert [1, 2, 3, 3, 4, 3, 4, 3] == covered
    assert ["unknown"] * 6 + ["done"] * 2 == states(journal, *range(8))


def test_every_covered_id_is_known() -> None:
    """Whatever the load, an id is known for as long as the time it came at is covered."""
    clock = FakeClock()
    journal = Journal(entries=5, capacity=30, clock=clock)
    begun: dict[int, float] = {}
    for number in range(300):
        begun[number] = clock()
        finished(journal, number, size=1 + number % 17)
        clock.advance(0.1 * (number % 7))
        wrong = [each for each, at in begun.items() if journal.covers(at) and states(journal, each) != ["done"]]

        assert [] == wrong


def test_reply_is_a_copy() -> None:
    """A device that uses its buffer again does not change the kept reply, and may let go of it."""
    journal, buffer = Journal(), bytearray(b"picture")
    assert journal.begin(("client", 1))
    journal.finish(("client", 1), [b"head", memoryview(buffer).toreadonly()])
    buffer[:] = b"another"
    buffer.clear()  # a BufferError, if a view of it were left

    assert [b"head", b"picture"] == journal.reply(("client", 1))
