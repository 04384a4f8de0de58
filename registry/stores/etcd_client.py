"""An etcd cluster over its HTTP gateway: any member will do, and every wait has a limit. Needs the extra ``etcd``."""

import contextlib
import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import requests
from etcd3gw import Etcd3Client
from etcd3gw.exceptions import ConnectionFailedError, ConnectionTimeoutError, Etcd3Exception, InternalServerError
from msgspec import Struct

from rpc_kit.errors import StoreError

from .etcd_mirror import Behind, Event, KeyValue, Transaction

PATIENCE = 3.0
"""How long members are tried before a request has failed, s."""
PAUSE = 0.05
"""Between two rounds of all members, s."""
SILENCE = 1.0
"""A watch that says nothing for so long is made anew, s: its member, or the way there, may be gone without a word."""
PAGE = 1000
"""So many keys are listed at a time."""
MOST_LISTINGS = 3
"""So often all keys are listed, when etcd is compacted meanwhile."""
BATCH = 100
"""So many leases are renewed by one request."""

T = TypeVar("T")
FAILURES = (ConnectionFailedError, ConnectionTimeoutError, InternalServerError, OSError, msgspec.MsgspecError)
"""Another member may do better."""


class Header(Struct):
    """Where etcd stood when it answered."""

    revision: int = 0


class Range(Struct):
    """Some keys."""

    header: Header
    kvs: list[KeyValue] = []
    more: bool = False


class _Response(Struct):
    response_range: Range | None = None


class Outcome(Struct):
    """What became of a transaction; `responses` are those of its operations."""

    header: Header
    succeeded: bool = False
    responses: list[_Response] = []

    @property
    def found(self) -> list[KeyValue]:
        """What the keys are, if it failed."""
        return [kv for each in self.responses if each.response_range is not None for kv in each.response_range.kvs]


class _Grant(Struct):
    ID: int


class _Renewed(Struct):
    ID: int
    TTL: int = 0


class News(Struct):
    """A message of a watch."""

    header: Header
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    cancel_reason: str = ""
    events: list[Event] = []


class Member(Etcd3Client):
    """One member, for one thread at a time."""

    def __init__(self, url: str, timeout: float, tls: Mapping[str, str | None]) -> None:
        parts = urlsplit(url)
        port = parts.port or 2379
        files: dict[str, Any] = {**tls}
        super().__init__(parts.hostname or "", port, parts.scheme, timeout=timeout, api_path="/v3/", **files)
        self.url = url
        # Neither proxies nor certificates of the environment.
        self.session.trust_env = False
        # One that is cut off from the others says so, rather than what it remembers.
        self.session.headers["Grpc-Metadata-hasleader"] = "true"

    def ask(self, path: str, request: Mapping[str, Any], kind: type[T]) -> T:
        """The reply to one request."""
        return msgspec.convert(self.post(self.get_url(path), data=msgspec.json.encode(request)), kind, strict=False)

    @contextlib.contextmanager
    def stream(self, path: str, *asked: Mapping[str, Any]) -> Iterator[requests.Response]:
        """The lines of replies to several requests; each must come within the timeout."""
        body = b"\n".join(map(msgspec.json.encode, asked))
        with self.session.post(self.get_url(path), data=body, timeout=self.timeout, stream=True) as response:
            if response.status_code != 200:
                raise InternalServerError(response.text)
            yield response


def _results(response: requests.Response, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    for line in response.iter_lines(chunk_size=None):
        if line:
            found = decoder.decode(line)
            if "result" not in found:
                raise InternalServerError(line.decode(errors="replace"))
            yield msgspec.json.decode(found["result"], type=kind, strict=False)


class Watch:
    """Hears of changes below a prefix from one member, until that fails, is silent or the watch is closed.

    Iteration gives News. It raises StoreError, and the cluster goes on to another member then; it ends when nothing
    was heard for some time.
    """

    def __init__(self, cluster: "Cluster", prefix: bytes, revision: int) -> None:
        self._cluster = cluster
        self._request = {**_below(prefix), "start_revision": revision, "progress_notify": True}
        self._response: requests.Response | None = None
        self._closed = False

    def close(self) -> None:
        """End the iteration; from any thread."""
        self._closed = True
        if self._response is not None:
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self._response.raw.shutdown()

    def __iter__(self) -> Iterator[News]:
        index, member = self._cluster.connect(SILENCE)
        heard = False
        try:
            with contextlib.closing(member.session), member.stream("watch", {"create_request": self._request}) as lines:
                self._response = lines
                if self._closed:
                    return
                for news in _results(lines, News):
                    heard = True
                    if news.canceled and news.compact_revision:
                        raise Behind(f"etcd has compacted up to revision {news.compact_revision}")
                    if news.canceled:
                        raise InternalServerError(news.cancel_reason)
                    yield news
            raise ConnectionFailedError("the connection was closed")
        except StoreError:
            raise
        except FAILURES as exc:
            if self._closed or heard and "Read timed out" in str(exc):
                return
            self._cluster.avoid(index)
            raise StoreError(f"{member.url} {_explained(exc)}") from exc


class Cluster:
    """The members, for any number of threads; whoever finds that one fails moves all on to the next.

    Parameters
    ----------
    timeout
        For each request to one member, s.
    tls
        `ca_cert`, `cert_cert` and `cert_key` of etcd3gw.

    Raises
    ------
    ValueError
        When there is no endpoint, or one is no url.
    """

    def __init__(self, endpoints: Sequence[str], timeout: float, tls: Mapping[str, str | None]) -> None:
        self.endpoints = tuple(_checked(each) for each in endpoints)
        if not self.endpoints:
            raise ValueError("no endpoints of etcd")
        self._timeout = timeout
        self._tls = tls
        self._members: dict[tuple[int, int], Member] = {}
        self._current = 0
        self._closed = threading.Event()

    def close(self) -> None:
        """Let requests fail from now on; idempotent."""
        self._closed.set()

    def release(self) -> None:
        """Close all connections, when no thread uses them any more."""
        while self._members:
            self._members.popitem()[1].session.close()

    def avoid(self, index: int) -> None:
        """Ask the next member from now on, unless somebody has seen to that."""
        if self._current == index:
            self._current = (index + 1) % len(self.endpoints)

    def connect(self, timeout: float) -> tuple[int, Member]:
        """The index of the member that is asked now, and a connection of its own to it."""
        index = self._current
        return index, Member(self.endpoints[index], timeout, self._tls)

    def attempt(self, ask: Callable[[Member], T]) -> tuple[T, bool]:
        """What `ask` gets from the first member that answers, and whether another may have done it before, unheard.

        Raises
        ------
        StoreError
            When none answers in time, or one refuses.
        """
        deadline = time.monotonic() + PATIENCE
        reasons: dict[str, str] = {}
        tried = 0
        while not self._closed.is_set():
            index = self._current
            member = self._member(index)
            member.timeout = min(self._timeout, max(deadline - time.monotonic(), PAUSE))
            try:
                return ask(member), tried > 0
            except FAILURES as exc:
                reasons[member.url] = _explained(exc)
            except Etcd3Exception as exc:
                reason = _explained(exc)
                raise (Behind if "compacted" in reason else StoreError)(f"{member.url} refuses: {reason}") from exc
            tried += 1
            self.avoid(index)
            if time.monotonic() >= deadline:
                tried_members = "; ".join(f"{url} {reason}" for url, reason in sorted(reasons.items()))
                raise StoreError(f"etcd cannot be reached: {tried_members}")
            if tried % len(self.endpoints) == 0:
                self._closed.wait(PAUSE)
        raise StoreError("the connections to etcd are closed")

    def ask(self, path: str, request: Mapping[str, Any], kind: type[T]) -> T:
        """The reply of any member."""
        return self.attempt(lambda member: member.ask(path, request, kind))[0]

    def transact(self, wanted: Transaction) -> tuple[Outcome, bool]:
        """What becomes of a transaction; when it failed, whether an earlier attempt may have succeeded."""
        failure = [{"request_range": {"key": key}} for key in wanted.keys]
        request = {"compare": wanted.compare, "success": wanted.success, "failure": failure}
        return self.attempt(lambda member: member.ask("kv/txn", request, Outcome))

    def get(self, *keys: bytes) -> Outcome:
        """The keys as they are now, as if a transaction had failed."""
        never = [{"key": b"\0", "target": "VERSION", "version": -1}]
        return self.transact(Transaction(never, [], keys, 0, ()))[0]

    def revision(self) -> int:
        """The revision that most members agree on."""
        return self.ask("kv/range", {"key": b"\0", "count_only": True}, Range).header.revision

    def read(self, prefix: bytes) -> tuple[int, list[KeyValue]]:
        """All keys below a prefix, and the revision at which they were so."""
        for _ in range(MOST_LISTINGS):
            with contextlib.suppress(Behind):
                return self._read(prefix)
        raise StoreError("etcd is compacted too often")

    def watch(self, prefix: bytes, revision: int) -> Watch:
        """What becomes of the keys below a prefix from a revision on."""
        return Watch(self, prefix, revision)

    def grant(self, seconds: int) -> int:
        """The id of a new lease."""
        return self.ask("lease/grant", {"TTL": seconds}, _Grant).ID

    def revoke(self, lease_id: int) -> None:
        """End a lease; no matter when that fails, as it ends by itself."""
        with contextlib.suppress(StoreError):
            self.ask("lease/revoke", {"ID": lease_id}, dict)

    def keep_alive(self, lease_ids: Sequence[int]) -> set[int]:
        """Renew leases; those that are gone."""
        gone: set[int] = set()
        for first in range(0, len(lease_ids), BATCH):
            batch = lease_ids[first : first + BATCH]
            gone |= self.attempt(functools.partial(_keep_alive, lease_ids=batch))[0]
        return gone

    def _read(self, prefix: bytes) -> tuple[int, list[KeyValue]]:
        found: list[KeyValue] = []
        request = {**_below(prefix), "limit": PAGE}
        while True:
            page = self.ask("kv/range", request, Range)
            found += page.kvs
            request.setdefault("revision", page.header.revision)
            if not page.more:
                return int(request["revision"]), found
            request["key"] = found[-1].key + b"\0"

    def _member(self, index: int) -> Member:
        # Connections are not shared between threads; the number of a thread that has ended is given to another.
        key = threading.get_ident(), index
        if key not in self._members:
            self._members[key] = Member(self.endpoints[index], self._timeout, self._tls)
        return self._members[key]


def _keep_alive(member: Member, lease_ids: Iterable[int]) -> set[int]:
    with member.stream("lease/keepalive", *({"ID": each} for each in lease_ids)) as response:
        lasting = {each.ID: each.TTL for each in _results(response, _Renewed)}
    if missing := set(lease_ids) - lasting.keys():
        raise InternalServerError(f"no word of {len(missing)} leases")
    return {each for each, seconds in lasting.items() if seconds <= 0}


def _below(prefix: bytes) -> dict[str, Any]:
    return {"key": prefix, "range_end": prefix[:-1] + bytes([prefix[-1] + 1])}


def _checked(url: str) -> str:
    parts = urlsplit(url)
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    # Asking for the port raises ValueError when it is no number.
    if parts.scheme not in ("http", "https") or not parts.hostname or more or parts.port == 0:
        raise ValueError(f"an endpoint of etcd is http://host:2379 or https://host:2379, not {url!r}")
    return url.rstrip("/")


def _explained(exc: Exception) -> str:
    text = exc.detail_text or "" if isinstance(exc, Etcd3Exception) else str(exc)
    if isinstance(exc, ConnectionTimeoutError) or "timed out" in text and "etcdserver" not in text:
        return "does not answer in time"
    known = (r"\[(?:Errno -?\d+|SSL: \w+)\] ([^'\"()]+)", r'"(?:message|error)": ?"([^"]+)"')
    found = next(filter(None, (re.search(each, text) for each in known)), None)
    return found[1].strip() if found else text[:200]
