"""Replies that come later, without sockets."""

import threading
from concurrent.futures import Future
from typing import Any

from rpc_kit.dispatch import Pending
from rpc_kit.postponed import Postponed
from tests.devices import LIMIT


def pending() -> Pending:
    future: Future[Any] = Future()
    return Pending(future, lambda value: [value])


def settle(call: str, later: Pending) -> list[Any]:
    return later.finish(later.future.result(0))


def test_reply_comes_once() -> None:
    """A future that is done rings; its reply is taken once, the others wait."""
    rings: list[str] = []
    postponed: Postponed[str] = Postponed(settle, lambda: rings.append("ring"))
    first, second = pending(), pending()
    postponed.add("first", first)
    postponed.add("second", second)
    assert ([], []) == (rings, [*postponed.take_finished()])
    first.future.set_result(b"1")

    assert (["ring"], [("first", [b"1"])]) == (rings, [*postponed.take_finished()])
    assert [] == [*postponed.take_finished()]
    assert ["second"] == postponed.give_up()


def test_done_before_it_is_added() -> None:
    """A future that is done already is replied to like all others."""
    postponed: Postponed[str] = Postponed(settle, lambda: None)
    later = pending()
    later.future.set_result(b"1")
    postponed.add("call", later)

    assert [("call", [b"1"])] == [*postponed.take_finished()]


def test_reply_after_giving_up_is_dropped() -> None:
    """Who was told that nothing comes gets nothing more; after the end nobody is woken."""
    rings: list[str] = []
    postponed: Postponed[str] = Postponed(settle, lambda: rings.append("ring"))
    later = pending()
    postponed.add("call", later)
    assert ["call"] == postponed.give_up()
    postponed.close()
    later.future.set_result(b"1")

    assert ([], []) == (rings, [*postponed.take_finished()])


def test_many_threads() -> None:
    """However many futures are done at once, none is lost and none is taken twice."""
    postponed: Postponed[int] = Postponed(settle_number, lambda: None)
    waiting = [pending() for _ in range(200)]
    for number, each in enumerate(waiting):
        postponed.add(number, each)
    start = threading.Barrier(4)

    def finish(part: int) -> None:
        start.wait(LIMIT)
        for each in waiting[part::4]:
            each.future.set_result(b"")

    threads = [threading.Thread(target=finish, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    taken: list[int] = []
    while any(thread.is_alive() for thread in threads):
        taken += [call for call, _ in postponed.take_finished()]
    taken += [call for call, _ in postponed.take_finished()]

    assert [*range(200)] == sorted(taken)


def settle_number(call: int, later: Pending) -> list[Any]:
    return later.finish(later.future.result(0))
