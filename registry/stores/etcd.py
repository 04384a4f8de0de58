"""A store in an etcd cluster: any number of registries serve the same devices."""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rpc_kit.errors import MissingExtra, StoreError

from ..table import Change
from .base import Apply, Conflict, Store
from .etcd_mirror import Behind, Mirror, Record, Transaction

if TYPE_CHECKING:
    from .etcd_client import News, Outcome, Watch

logger = logging.getLogger(__name__)

FORMAT = 1
"""Data with a higher number were written by a later version."""
HEARING_TIME = 3.0
"""How long a change that is kept may take until it is heard of, s."""
FAR = 10_000
"""When etcd is so many revisions ahead it is not asked for each, most of which are of other programs."""
CONNECTIONS = 8
"""So many leases of other lengths are asked for at a time."""
ATTEMPTS = 5
"""So often a renewal is tried again because another registry renewed the same device."""
MOST_KEYS = 100
"""etcd takes 128 operations in a transaction."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
"""Between two attempts to hear of changes, s."""
RENEWAL_TIME = 10.0
"""How long any of several renewals may take, s."""
LONGEST_TURN = 3.0
"""How long a thread waits for its turn after a conflict, s."""
CLOSE_TIME = 5.0
"""How long closing waits for the thread that hears of changes, s."""


@dataclass(frozen=True, slots=True)
class _Lease:
    """A lease in etcd, and when it was granted."""

    id: int
    seconds: int
    granted: float


class _Turns(threading.local):
    """Lets threads pass all at once, but those whose last change met a conflict one after the other.

    Those also keep the lease for their change. Otherwise a crowd that wants the same name would hinder itself, and
    somebody would always be late.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._is_locked = False
        self.lost = False
        self.lease: _Lease | None = None

    def __enter__(self) -> None:
        self._is_locked = self.lost and self._lock.acquire(timeout=LONGEST_TURN)

    def __exit__(self, *exc_info: object) -> None:
        if self._is_locked:
            self._lock.release()


class EtcdStore(Store):
    """Keeps the entries in etcd, for all registries with the same endpoints and prefix.

    What is in the table comes from etcd alone, in its order; leases end there.

    Parameters
    ----------
    endpoints : sequence of str
        Urls of the members, such as ``http://host:2379``; any that answers is used.
    prefix : str
        What the keys begin with.
    timeout : float, default 1.0
        For one request to one member, s; each is tried for three seconds.
    ca_cert, cert_cert, cert_key : str, optional
        Files for TLS: the authority, the certificate of this client and its key.

    Raises
    ------
    MissingExtra
        When etcd3gw is not installed.
    ValueError
        When an endpoint is no url, or the prefix is empty.
    """

    is_remote = True

    def __init__(
        self,
        endpoints: Sequence[str],
        prefix: str = "/rpc-kit/registry/",
        timeout: float = 1.0,
        *,
        ca_cert: str | None = None,
        cert_cert: str | None = None,
        cert_key: str | None = None,
    ) -> None:
        try:
            from . import etcd_client
        except ModuleNotFoundError as exc:
            raise MissingExtra("etcd3gw is not installed: pip install rpc-kit[etcd]") from exc
        if not prefix:
            raise ValueError("the prefix of the keys in etcd is empty")
        self.exclusive = self._turns = _Turns(threading.Lock())
        tls = {"ca_cert": ca_cert, "cert_cert": cert_cert, "cert_key": cert_key}
        self._cluster = etcd_client.Cluster(endpoints, timeout, tls)
        self._mirror = Mirror(prefix.encode())
        self._pool = ThreadPoolExecutor(CONNECTIONS, "etcd-store")
        self._thread = threading.Thread(target=self._follow, name="etcd-watch", daemon=True)
        self._watch: Watch | None = None
        self._closing = threading.Event()
        # Notified when something was heard; the table is what the mirror is whenever nobody holds it.
        self._news = threading.Condition()
        self._seen = 0
        self._heard = time.monotonic()

    def open(self, apply: Apply) -> None:
        self._apply = apply
        try:
            self._check_format()
            self._list()
        except BaseException:
            self.close()
            raise

    def follow(self) -> None:
        self._thread.start()

    def save(self, change: Change) -> None:
        self._turns.lost = False
        try:
            self._commit(change)
        except Conflict:
            self._turns.lost = True
            raise

    def renew(self, leases: Mapping[str, float]) -> set[str]:
        unknown: set[str] = set()
        pending = {key: _whole(lease) for key, lease in leases.items()}
        for _ in range(ATTEMPTS):
            records = self._records(pending)
            unknown |= pending.keys() - records.keys()
            same = {key: each for key, each in records.items() if each.lease_id and each.lease == pending[key]}
            lost, again = self._keep_alive(same)
            unknown |= lost
            again |= self._change_leases({key: each for key, each in records.items() if key not in same}, pending)
            if not again:
                return unknown
            pending = {key: pending[key] for key in again}
        raise StoreError("other registries renew the same devices all the time")

    def lag(self) -> float:
        """For how long nothing was heard of etcd, s; about one when all is well."""
        return time.monotonic() - self._heard

    def close(self) -> None:
        self._closing.set()
        self._cluster.close()
        if self._watch is not None:
            self._watch.close()
        with self._news:
            self._news.notify_all()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIME)
        self._pool.shutdown(cancel_futures=True)
        self._cluster.release()

    def _check_format(self) -> None:
        key = self._mirror.prefix + b"format"
        missing = [{"key": key, "target": "MOD", "mod_revision": 0}]
        put = [{"request_put": {"key": key, "value": str(FORMAT).encode()}}]
        outcome, _ = self._cluster.transact(Transaction(missing, put, (key,), 0, ()))
        if outcome.succeeded:
            return
        found = outcome.found[0].value.decode(errors="replace")
        where = f"the keys below {self._mirror.prefix.decode()} in etcd"
        if not (found.isascii() and found.isdigit()):
            raise StoreError(f"{where} are of another program: choose another prefix; they are left as they are")
        if int(found) > FORMAT:
            raise StoreError(
                f"{where} have format {found}, this version of rpc-kit knows {FORMAT}: install the version that wrote "
                "them, or choose another prefix; they are left as they are"
            )

    def _list(self) -> None:
        """Make the table what is in etcd."""
        revision, found = self._cluster.read(self._mirror.prefix)
        with self._news:
            for change in self._mirror.replace(found):
                self._apply(change)
            self._seen, self._heard = revision, time.monotonic()
            self._news.notify_all()

    def _follow(self) -> None:
        """Make every change that happens in etcd in the table, until `close`."""
        failures, is_behind = 0, False
        while not self._closing.is_set():
            try:
                if is_behind:
                    self._list()
                    is_behind = False
                watch = self._watch = self._cluster.watch(self._mirror.prefix, self._seen + 1)
                if self._closing.is_set():
                    return
                for news in watch:
                    self._hear(news)
                    if not news.created:
                        failures = 0
                    # That a watch was made says nothing when others were refused right after that.
                    if failures == 0:
                        self._heard = time.monotonic()
                failures = 0
            except Behind as exc:
                logger.info("all is read from etcd again: %s", exc)
                is_behind = True
            except Exception as exc:
                if failures == 0 and not self._closing.is_set():
                    unforeseen = None if isinstance(exc, StoreError) else exc
                    logger.warning("etcd is not heard: %s", exc, exc_info=unforeseen)
                failures += 1
                self._closing.wait(min(failures * SHORTEST_PAUSE, LONGEST_PAUSE))

    def _hear(self, news: "News") -> None:
        if news.created:
            ahead = news.header.revision - self._seen
            if ahead > FAR:
                raise Behind(f"it is {ahead} revisions ahead")
            # This member may be slow.
            if ahead < 0 and self._cluster.revision() < self._seen:
                raise Behind("it has older data than before")
            return
        with self._news:
            for revision, events in groupby(news.events, lambda event: event.kv.mod_revision):
                for change in self._mirror.hear(events):
                    self._apply(change)
                self._seen = revision
            if not news.events:
                self._seen = max(self._seen, news.header.revision)
            self._news.notify_all()

    def _wait_until_heard(self, outcome: "Outcome", keys: Iterable[bytes]) -> None:
        """Wait until the table is not older than what a transaction did, or found below the keys."""
        last = outcome.header.revision
        found = {each.key: each.mod_revision for each in outcome.found}
        revision = last if outcome.succeeded else max(found.values(), default=0)
        # The revision of a deletion is not told; that of etcd may be due to other programs.
        absent = set() if outcome.succeeded else set(keys) - found.keys()

        def is_heard() -> bool:
            deleted = self._seen >= last or not any(key in self._mirror for key in absent)
            return self._closing.is_set() or self._seen >= revision and deleted

        with self._news:
            if not self._news.wait_for(is_heard, HEARING_TIME):
                raise StoreError("etcd tells nothing of what is changed there")
        if self._closing.is_set():
            raise StoreError("the store is closed")

    def _commit(self, change: Change, own: Record | None = None) -> None:
        """Make a change in etcd and hear of it; `own` is what it puts anew."""
        before = self._turns.lease
        lease = None if change.added is None else self._lease(_whole(change.lease or 0.0))
        try:
            with self._news:
                if own is not None and self._mirror.get(own.entry.uuid) is not own:
                    raise Conflict(f"{own.entry.name} has changed meanwhile")
                wanted = self._mirror.transaction(change, *((lease.seconds, lease.id) if lease else (0, 0)))
            outcome, is_repeated = self._cluster.transact(wanted)
            self._wait_until_heard(outcome, wanted.keys)
            if not outcome.succeeded and not (is_repeated and wanted.is_done(outcome.found)):
                raise Conflict("another registry was faster")
        except Conflict:
            self._turns.lease = lease
            raise
        self._revoke(*wanted.old_leases)
        if lease is not None and lease is before:
            # Some of its time had passed.
            with contextlib.suppress(StoreError):
                self._cluster.keep_alive([lease.id])

    def _lease(self, seconds: int) -> _Lease:
        """The lease that this thread had got for a change that met a conflict, or a new one."""
        left, self._turns.lease = self._turns.lease, None
        now = time.monotonic()
        if left is not None and left.seconds == seconds and now - left.granted < seconds / 2:
            return left
        if left is not None:
            self._revoke(left.id)
        return _Lease(self._cluster.grant(seconds), seconds, now)

    def _records(self, keys: Iterable[str]) -> dict[str, Record]:
        with self._news:
            found = {key: self._mirror.get(key) for key in keys}
        return {key: each for key, each in found.items() if each is not None}

    def _keep_alive(self, records: Mapping[str, Record]) -> tuple[set[str], set[str]]:
        """Renew leases; the uuids of those that are gone, and of those that have another one by now."""
        ended = self._cluster.keep_alive([each.lease_id for each in records.values()])
        gone = {key: each for key, each in records.items() if each.lease_id in ended}
        names = [self._mirror.device_key(each.entry.name) for each in gone.values()]
        for first in range(0, len(names), MOST_KEYS):
            some = names[first : first + MOST_KEYS]
            self._wait_until_heard(self._cluster.get(*some), some)
        now = self._records(gone)
        again = {key for key, each in now.items() if each.lease_id != gone[key].lease_id}
        return gone.keys() - again, again

    def _change_leases(self, records: Mapping[str, Record], seconds: Mapping[str, int]) -> set[str]:
        """Give devices leases of other lengths; the uuids of those that somebody else has changed."""

        def succeeds(key: str) -> bool:
            try:
                self._commit(Change(added=records[key].entry, lease=seconds[key]), records[key])
            except Conflict:
                return False
            return True

        if len(records) == 1:
            return {key for key in records if not succeeds(key)}
        asked = {key: self._pool.submit(succeeds, key) for key in records}
        try:
            return {key for key, future in asked.items() if not future.result(RENEWAL_TIME)}
        except (CancelledError, TimeoutError) as exc:
            raise StoreError("etcd does not renew leases in time") from exc
        finally:
            for future in asked.values():
                future.cancel()

    def _revoke(self, *lease_ids: int) -> None:
        for each in lease_ids:
            # Not when the store is closed; they end by themselves.
            with contextlib.suppress(RuntimeError):
                self._pool.submit(self._cluster.revoke, each)


def _whole(lease: float) -> int:
    return max(1, math.ceil(lease))
