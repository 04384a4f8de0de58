"""The table of a registry together with its store, for many threads: every change is stored, applied and announced."""

import heapq
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import Literal

from rpc_kit.errors import DeviceNotFound, ServerBusy, StoreError
from rpc_kit.messages import Entry, Registration, Scalar

from .stores.base import Conflict, Store
from .table import LONGEST_TEXT, Change, Reason, Table, check_lease

logger = logging.getLogger(__name__)

Kind = Literal["added", "changed", "removed"]
Listener = Callable[[Kind, Entry, Reason | None], None]

MOST_ATTEMPTS = 100
"""So often a change is planned again because another registry was faster."""
MOST_WAITERS = 10_000
"""So many may wait for a name at once."""
LONGEST_LAG = 5.0
"""After so long without news from a shared store look-ups are refused: other registries know better, s."""
LONGEST_WAIT = 3600.0
"""How long anybody may wait for a name, s."""


class Directory:
    """The entries of one registry.

    Parameters
    ----------
    store
        Opened here; closed by `close`.
    listener
        Called with each change, in order; must not block.

    Raises
    ------
    StoreError
        When the store cannot be opened.
    """

    def __init__(self, store: Store, listener: Listener) -> None:
        self._table = Table(time.monotonic)
        self._store = store
        self._listener: Listener | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._waiters: dict[str, dict[int, Future[Entry]]] = {}
        self._waiting = 0
        self._numbers = count()
        # When each of them, and some that wait no more, will have waited for long enough.
        self._patience: list[tuple[float, int, str]] = []
        self._unkept: tuple[Entry, ...] = ()
        store.open(self._apply)
        # What was kept is no news; what comes from now on is.
        self._listener = listener
        store.follow()

    def register(self, asked: Registration) -> Entry:
        """Enter a device; raises ValueError when it cannot be entered, StoreError when it cannot be kept."""
        for _ in range(MOST_ATTEMPTS):
            with self._store.exclusive:
                with self._changed:
                    change = self._table.plan(asked, time.time())
                try:
                    self._save(change)
                except Conflict:
                    continue
            assert change.added is not None
            return change.added
        raise StoreError(f"{asked.name or asked.device_type}: other registries change the same names all the time")

    def renew(self, leases: Mapping[str, float]) -> set[str]:
        """Let entries live on, uuid to seconds; the unknown ones. Raises ValueError on an impossible lease."""
        for lease in leases.values():
            check_lease(lease)
        with self._store.exclusive:
            with self._changed:
                known = {key: lease for key, lease in leases.items() if key in self._table}
            try:
                forgotten = self._store.renew(known)
            except StoreError as exc:
                if self._store.is_remote:
                    raise
                # They live: a lease that is kept in memory only is better than none.
                logger.error("leases are not kept: %s", exc)
                forgotten = set()
            with self._changed:
                first = self._table.next_end()
                renewed = {key for key, lease in known.items() if self._table.renew(key, lease)}
                if self._table.next_end() != first:
                    self._changed.notify()
        return leases.keys() - (renewed - forgotten)

    def remove(self, key: str, reason: Reason) -> bool:
        """Remove the entry with that uuid; False when there is none."""
        for _ in range(MOST_ATTEMPTS):
            with self._store.exclusive:
                with self._changed:
                    entry = self._table.get(key)
                if entry is None:
                    return False
                try:
                    self._save_removal(Change((entry,), reason))
                except Conflict:
                    continue
                return True
        raise StoreError("other registries change the same entry all the time")

    def evict(self, name: str) -> Entry:
        """Remove the entry of that name; raises DeviceNotFound when there is none."""
        entry = self.find(name)
        logger.info("%s at %s is evicted", entry.name, entry.address)
        self.remove(entry.uuid, "evicted")
        return entry

    def find(self, name: str) -> Entry:
        """The entry of that name; raises DeviceNotFound when there is none, StoreError when there is no telling."""
        self._check_news()
        with self._changed:
            entry = self._table.find(name)
        if entry is None:
            raise DeviceNotFound(f"no device is registered as {name!r}")
        return entry

    def entries(self, device_type: str | None = None, metadata: Mapping[str, Scalar] | None = None) -> list[Entry]:
        """The entries in the order of their registration; raises StoreError when there is no telling."""
        self._check_news()
        with self._changed:
            return self._table.entries(device_type, metadata)

    def wait_for(self, name: str, timeout: float) -> "Future[Entry]":
        """The entry of that name as soon as there is one; DeviceNotFound when `timeout` seconds are over."""
        if not 0 <= timeout <= LONGEST_WAIT:
            raise ValueError(f"timeout is a number of seconds up to {LONGEST_WAIT:.0f}, not {timeout}")
        if len(name) > 2 * LONGEST_TEXT:
            # It would be kept until then.
            raise ValueError(f"no device has a name of {len(name)} characters")
        self._check_news()
        future: Future[Entry] = Future()
        with self._changed:
            entry = self._table.find(name)
            if entry is None and self._waiting >= MOST_WAITERS:
                raise ServerBusy(f"{MOST_WAITERS} others wait for devices already")
            if entry is None:
                number = next(self._numbers)
                self._waiters.setdefault(name, {})[number] = future
                self._waiting += 1
                heapq.heappush(self._patience, (time.monotonic() + timeout, number, name))
                if len(self._patience) > 2 * self._waiting + 64:
                    self._patience = [each for each in self._patience if each[1] in self._waiters.get(each[2], {})]
                    heapq.heapify(self._patience)
                self._changed.notify()
        if entry is not None:
            future.set_result(entry)
        return future

    def keep_time(self) -> None:
        """Remove entries as their leases end, and give up waiting in time, until `close`."""
        while True:
            self._expire()
            self._give_up()
            with self._changed:
                if self._closed:
                    return
                ends = [self._patience[0][0]] if self._patience else []
                if (end := self._table.next_end()) is not None:
                    ends.append(end)
                self._changed.wait(max(0.0, min(ends) - time.monotonic()) if ends else None)

    def close(self) -> None:
        """End `keep_time`, and close the store; idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        with self._store.exclusive:
            self._store.close()

    def _check_news(self) -> None:
        lag = self._store.lag()
        if lag > LONGEST_LAG:
            raise StoreError(f"the store has not been heard of for {lag:.0f} s: ask another registry")

    def _apply(self, change: Change) -> None:
        with self._changed:
            known = change.added is not None and change.added.uuid in self._table
            gone = [entry for entry in change.removed if entry.uuid in self._table]
            self._table.apply(change)
            waiting = self._waiters.pop(change.added.name, {}) if change.added is not None else {}
            self._waiting -= len(waiting)
            if self._listener is not None:
                for entry in gone:
                    self._listener("removed", entry, change.reason)
                if change.added is not None:
                    self._listener("changed" if known else "added", change.added, None)
            self._changed.notify()
        for future in waiting.values():
            if change.added is not None and future.set_running_or_notify_cancel():
                future.set_result(change.added)

    def _expire(self) -> None:
        with self._store.exclusive:
            with self._changed:
                due = () if self._closed else self._table.due()
            for entry in due:
                logger.info("%s at %s has not renewed its lease", entry.name, entry.address)
            for _ in range(MOST_ATTEMPTS):
                if not due:
                    break
                try:
                    self._save_removal(Change(due, "expired"))
                    break
                except Conflict:
                    with self._changed:
                        # What somebody else has changed lives on.
                        due = tuple(each for each in due if self._table.get(each.uuid) is each)

    def _save_removal(self, change: Change) -> None:
        try:
            self._save(change)
        except Conflict:
            raise
        except StoreError as exc:
            if self._store.is_remote:
                raise
            # They are gone all the same: what is still in the store goes with the next change, or ends with its lease.
            logger.error("a removal is not kept: %s", exc)
            self._unkept += change.removed
            self._apply(change)

    def _save(self, change: Change) -> None:
        """Save a change, with the removals that were not kept so far."""
        self._store.save(replace(change, removed=(*self._unkept, *change.removed)) if self._unkept else change)
        self._unkept = ()

    def _give_up(self) -> None:
        now = time.monotonic()
        late: list[tuple[str, Future[Entry]]] = []
        with self._changed:
            while self._patience and self._patience[0][0] <= now:
                _, number, name = heapq.heappop(self._patience)
                waiting = self._waiters.get(name, {})
                if number in waiting:
                    late.append((name, waiting.pop(number)))
                    self._waiting -= 1
                    if not waiting:
                        del self._waiters[name]
        for name, future in late:
            if future.set_running_or_notify_cancel():
                future.set_exception(DeviceNotFound(f"no device was registered as {name!r} in time"))
