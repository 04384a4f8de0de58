"""Callbacks on a thread of their own: in order, and harmless whatever they do."""

import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from registry import callbacks as module
from registry.callbacks import Callbacks
from rpc_kit.messages import Entry
from tests.devices import LIMIT
from tests.helpers import in_thread, wait_until


@pytest.fixture
def callbacks() -> Iterator[Callbacks]:
    made = Callbacks()
    yield made
    made.stop()


def entry_of(name: str) -> Entry:
    return Entry("uuid", name, "camera", "tcp://h:1")


def tell(callbacks: Callbacks, *names: str, removed: bool = False) -> None:
    for name in names:
        callbacks.tell(removed, entry_of(name))


def test_callbacks_hear_what_they_asked_for(callbacks: Callbacks) -> None:
    """Those for added and those for removed devices, in the order of what happened and of their being added."""
    heard: list[Any] = []
    for which in (1, 2):
        callbacks.add(lambda *device, which=which: heard.append((which, "added", *device)), removed=False)
        callbacks.add(lambda *device, which=which: heard.append((which, "removed", *device)), removed=True)
    callbacks.start()
    tell(callbacks, "a")
    tell(callbacks, "a", removed=True)
    tell(callbacks, "b")

    expected = [("added", "a"), ("removed", "a"), ("added", "b")]
    wait_until(lambda: len(heard) == 6)
    assert [
        (which, kind, "camera", "tcp://h:1", name) for kind, name in expected for which in (1, 2)
    ] == heard


def test_one_thread(callbacks: Callbacks) -> None:
    """All are called on one thread, which is not that of who tells."""
    threads = []
    for removed in (False, True):
        callbacks.add(lambda *device: threads.append(threading.current_thread().name), removed)
    callbacks.start()
    tell(callbacks, "a")
    tell(callbacks, "a", removed=True)

    wait_until(lambda: ["rpc-registry-callbacks"] * 2 == threads)


def test_what_is_told_before_the_start(callbacks: Callbacks) -> None:
    """It is heard after it."""
    names: list[str] = []
    callbacks.add(lambda type_, addr, name: names.append(name), removed=False)
    tell(callbacks, "a", "b")
    assert [] == names
    callbacks.start()

    wait_until(lambda: ["a", "b"] == names)


def test_who_comes_late(callbacks: Callbacks) -> None:
    """What nobody wanted to hear is kept for nobody; a callback may be added by a callback."""
    names: list[str] = []
    callbacks.start()
    tell(callbacks, *map(str, range(1000)))
    assert callbacks._news.empty()

    callbacks.add(
        lambda *device: callbacks.add(lambda type_, addr, name: names.append(name), removed=True), removed=False
    )
    tell(callbacks, "a")
    wait_until(lambda: callbacks._removed)
    tell(callbacks, "a", removed=True)
    wait_until(lambda: ["a"] == names)


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_callback_that_raises(callbacks: Callbacks, caplog: pytest.LogCaptureFixture, error: type) -> None:
    """It is logged with the device, and keeps nothing from the others nor later devices from itself."""
    names: list[str] = []

    def fail(type_: str, addr: str, name: str) -> None:
        raise error(f"not {name}")

    callbacks.add(fail, removed=False)
    callbacks.add(lambda type_, addr, name: names.append(name), removed=False)
    callbacks.start()
    tell(callbacks, "a", "b")

    wait_until(lambda: ["a", "b"] == names)
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [(error, "not a"), (error, "not b")] == [(type(each), str(each)) for each in logged]
    assert "failed for device a" in caplog.text


def test_callback_that_blocks(callbacks: Callbacks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever tells is not kept waiting; stopping waits for it for a while."""
    monkeypatch.setattr(module, "STOP_TIME", 0.05)
    entered, released, names = threading.Event(), threading.Event(), []

    def block(type_: str, addr: str, name: str) -> None:
        entered.set()
        released.wait(LIMIT)
        names.append(name)

    callbacks.add(block, removed=False)
    callbacks.start()
    tell(callbacks, *map(str, range(1000)))
    assert entered.wait(LIMIT)
    with in_thread(callbacks.stop) as stopped:
        wait_until(lambda: stopped)
    assert ([None], [], True) == (stopped, names, callbacks._thread.is_alive())
    released.set()
    callbacks._thread.join(LIMIT)
    assert [str(number) for number in range(1000)] == names


def test_too_many_wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Behind a callback that blocks so many are kept; of the others the log tells; stopping needs no room."""
    monkeypatch.setattr(module, "LONGEST_BACKLOG", 3)
    callbacks, names = Callbacks(), []
    entered, released = threading.Event(), threading.Event()

    def block(type_: str, addr: str, name: str) -> None:
        entered.set()
        released.wait(LIMIT)
        names.append(name)

    callbacks.add(block, removed=False)
    callbacks.start()
    tell(callbacks, "a")
    assert entered.wait(LIMIT)
    tell(callbacks, "b", "c", "d", "e", "f")
    lost = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [f"a callback blocks: {name} is not announced to callbacks" for name in "ef"] == lost
    with in_thread(callbacks.stop):
        wait_until(lambda: callbacks._news.queue[-1] is None)
        released.set()

    assert (["a", "c", "d"], False) == (names, callbacks._thread.is_alive())


def test_stop(callbacks: Callbacks) -> None:
    """It waits for the callbacks that run or wait; nothing is called afterwards; any number of times."""
    names: list[str] = []
    callbacks.add(lambda type_, addr, name: names.append(name), removed=False)
    callbacks.start()
    tell(callbacks, *map(str, range(100)))
    for _ in range(3):
        callbacks.stop()
    tell(callbacks, "late")

    assert ([str(number) for number in range(100)], False) == (names, callbacks._thread.is_alive())


def test_stop_without_start() -> None:
    """There is nothing to wait for."""
    callbacks = Callbacks()
    callbacks.add(lambda *device: sys.exit(), removed=False)
    tell(callbacks, "a")
    callbacks.stop()
    callbacks.stop()

    assert not callbacks._thread.is_alive()


def test_stop_by_a_callback(callbacks: Callbacks) -> None:
    """It does not wait for itself."""
    names: list[str] = []
    callbacks.add(lambda *device: callbacks.stop(), removed=False)
    callbacks.add(lambda type_, addr, name: names.append(name), removed=False)
    callbacks.start()
    tell(callbacks, "a")
    callbacks._thread.join(LIMIT)

    assert (["a"], False) == (names, callbacks._thread.is_alive())


@pytest.mark.parametrize("callback", [None, "print", 7])
def test_what_cannot_be_called(callbacks: Callbacks, callback: Any) -> None:
    """It is refused at once."""
    with pytest.raises(TypeError, match=f"a callback is a callable, not {type(callback).__name__}"):
        callbacks.add(callback, removed=False)
