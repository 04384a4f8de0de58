"""Requests from a client: a pool of REQ sockets, ids, deadlines, and the watch over a silent server."""

import contextlib
import logging
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol, TypeVar

import zmq
from msgspec import UNSET

from .addresses import Address
from .errors import (
    CallTimeout,
    ClientClosed,
    MessageTooLarge,
    ProtocolError,
    ServerLost,
    ServerReplaced,
    ServerStopping,
    type_name,
)
from .messages import Entry, Facts, GetInventory, Ping, Reply, Request
from .sockets import ZmqContext, ZmqSocket, client_socket, receive_rest, send_frame, send_tracked
from .wire import Buffer, failure_of, parse_facts, request_frame

logger = logging.getLogger(__name__)

LIVENESS = 3.0
"""Within this time the death of a server is noticed, s."""

LARGE = 64 << 10
"""A request of more bytes may be on its way for longer than it takes to ask after it."""
PATIENCE = 30.0
"""So long a large request or reply may be on its way, before it is taken for lost, s."""

QUIET = 1.0
"""After so long without a reply a server that was found by its name may have moved, s."""
PROBE_TIME = 1.0
"""How long each address of a server has to answer, s."""
PAUSE = 0.1
"""After a registry did not know where a server is, before it is asked again, s."""

MOST_ADDRESSES = 32
"""So many addresses of a device are tried."""
MOST_REPLACEMENTS = 3
"""So often a call is sent anew because another server has taken the address."""

LAST_READ = 1.0
"""How long libzmq may go on reading a buffer after its socket was closed, s."""

_STOPPING, _REPLACED = type_name(ServerStopping()), type_name(ServerReplaced())

R = TypeVar("R", bound=Reply)


class Locate(Protocol):
    """Asks a registry where a server is."""

    def __call__(self) -> Entry | None:
        """The server as it is registered now; None when that is not known."""

    def close(self) -> None:
        """Ask no more."""


_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


class _Line:
    """A REQ socket with the receive timeout it has, which costs much to ask for."""

    __slots__ = ("socket", "url", "wait", "tracked")

    def __init__(self, socket: ZmqSocket, url: str) -> None:
        self.socket = socket
        self.url = url
        self.wait = -1
        self.tracked: list[zmq.MessageTracker] = []

    def close(self) -> None:
        """Close the socket, and wait until libzmq reads no buffer any more: its owner may write to it."""
        self.socket.close()
        for each in self.tracked:
            with contextlib.suppress(zmq.NotDone):
                each.wait(LAST_READ)
        self.tracked = []


class _Wait:
    """A call that takes its time: since when, until when, of which run of the server, and where it seems to be."""

    __slots__ = ("started", "deadline", "since", "epoch", "what", "_is_large", "_lost_since", "_is_lost")

    def __init__(self, timeout: float | None, started: float, epoch: str, what: str, size: int) -> None:
        self.started = started
        self.deadline = None if timeout is None else started + timeout
        self.since = epoch, 0.0
        self.epoch = epoch
        self.what = what
        self._is_large = size > LARGE
        self._lost_since: float | None = None
        self._is_lost = False

    def note(self, state: str) -> None:
        """What the server says of the call; nothing when it was not asked in vain."""
        if state not in ("done", "sent", "unknown"):
            self._lost_since, self._is_lost = None, False
            return
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        # Much data may still be on its way, in either direction.
        patient = state == "sent" or (state == "unknown" and self._is_large)
        self._is_lost = not patient or now - self._lost_since > PATIENCE

    def seems_lost(self) -> bool:
        """Whether the call is to be repeated; says so once for each note."""
        lost, self._is_lost = self._is_lost, False
        return lost


class Calls:
    """Exchanges requests and replies with one server; usable from many threads at once.

    Each call has a socket of its own while it lasts. A socket whose reply did not come in time is thrown away, so that
    no late reply is taken for another.

    Parameters
    ----------
    url : str
        Where the server listens.
    liveness : float, default 3.0
        Within this time the death of the server is noticed during a call, s.
    locate : callable, optional
        Asked for the server when nothing answers at `url` any more.

    Attributes
    ----------
    route : str
        By which address of the server it is reached: another one of the same host may be faster than `url`.
    transport : str
        Of that address: tcp, ipc or inproc.
    """

    def __init__(
        self, context: ZmqContext, url: str, liveness: float = LIVENESS, locate: Locate | None = None
    ) -> None:
        self.client_id = secrets.token_hex(8)
        self.url = url
        self.use(url)
        self.epoch = ""
        self.max_request = sys.maxsize
        self.liveness = liveness
        self._context = context
        self._slice = int(liveness * 1000 / 3)
        self._numbers = count(1)
        self._idle: deque[_Line] = deque()
        self._forks = _forks
        self._closed = False
        self._locate = locate
        self._heard = time.monotonic()
        # The url is tried here, so that a wrong one is an error at once.
        self._idle.append(self._connect())

    def ask(self, request: Request, timeout: float | None, what: str) -> Facts:
        """Send a control message, wait for its reply; raises what `exchange` does, and what the server replies."""
        facts, _ = self.exchange(request, timeout, what, parse_facts)
        if not facts.success:
            raise failure_of(facts)
        return facts

    def exchange(
        self,
        request: Request,
        timeout: float | None,
        what: str,
        parse: Callable[[bytes], R],
        buffers: Sequence[Buffer] = (),
    ) -> tuple[R, list[memoryview]]:
        """Send a request, wait for its reply and the buffers that come with it.

        Parameters
        ----------
        request
            Gets an id and, with a timeout, the time that is left.
        timeout : float or None
            Seconds; None waits for as long as the server lives.
        what : str
            The member, for error texts.
        parse
            Makes the reply of its first frame.
        buffers
            Frames that go with the request; when this returns or raises, they may be written to again.

        Raises
        ------
        CallTimeout
            When `timeout` is over; the call may still be running.
        ServerLost
            When the server dies, restarts or becomes unreachable meanwhile.
        ClientClosed
            When the client is closed, also meanwhile, or belongs to the process this one was forked from.
        MessageTooLarge
            When the server would not take it; it was not asked.
        SerializationError
            When the request cannot be sent as JSON; the server was not asked.
        """
        if self._locate is None:
            return self._exchange(request, timeout, what, parse, buffers)
        for _ in range(MOST_REPLACEMENTS):
            if time.monotonic() - self._heard > QUIET:
                try:
                    self._follow(self._locate, what)
                except zmq.ZMQError as exc:
                    raise self._translated(exc, what) from None
            # Nobody else executes it, should another device get the address meanwhile.
            request.epoch = self.epoch or UNSET
            reply, received = self._exchange(request, timeout, what, parse, buffers)
            self._heard = 0.0 if reply.error_type in (_STOPPING, _REPLACED) else time.monotonic()
            if reply.error_type != _REPLACED:
                return reply, received
        raise ServerLost(f"{what}: other servers answer at the addresses of the device; not executed")

    def _exchange(
        self,
        request: Request,
        timeout: float | None,
        what: str,
        parse: Callable[[bytes], R],
        buffers: Sequence[Buffer],
    ) -> tuple[R, list[memoryview]]:
        request_id = request.id = (self.client_id, next(self._numbers))
        wait = self._slice
        if timeout is not None:
            request.timeout = timeout * 1000
            wait = max(1, min(wait, int(request.timeout)))
        frame = request_frame(request)
        size = len(frame) + sum(map(len, buffers)) if buffers else len(frame)
        if size > self.max_request:
            raise MessageTooLarge(f"{what}: the request has {size} bytes, the server takes {self.max_request}")
        line: _Line | None = None
        try:
            line = self._check_out()
            started, epoch = time.monotonic(), self.epoch
            if line.wait != wait:
                line.socket.rcvtimeo = line.wait = wait
            if buffers and self.transport == "inproc":
                buffers = [bytes(each) for each in buffers]  # else the server would have the memory of the caller
            if buffers:
                line.tracked = send_tracked(line.socket, [frame, *buffers])
            else:
                send_frame(line.socket, frame)
            try:
                received = line.socket.recv()
            except zmq.Again:
                self._wait_on(line, request, _Wait(timeout, started, epoch, what, size), buffers)
                received = line.socket.recv()
            reply = parse(received)
            # A server that could not even read the id replies without one.
            if reply.id != request_id and (reply.success or reply.id is not UNSET):
                raise ProtocolError(f"{what}: the reply of {self.url} belongs to another request")
            frames = receive_rest(line.socket) if reply.info is not UNSET or reply.buffers is not UNSET else []
        except BaseException as exc:
            if line is not None:
                line.close()
            self._heard = 0.0
            self.use(self.url)
            if isinstance(exc, zmq.ZMQError):
                raise self._translated(exc, what) from None
            raise
        self._idle.append(line)
        if self._closed:
            self._close_idle()
        return reply, frames

    def _follow(self, locate: Locate, what: str) -> None:
        """See that the server is where it was, or go to where it is now; before a call, so that none is in doubt.

        Raises
        ------
        ServerLost
            When it cannot be found within `liveness` and the time of one look-up; nothing was executed.
        """
        if self._closed or self._forks != _forks:
            return  # the call itself will say so
        deadline = time.monotonic() + self.liveness
        # Another device may have got the url meanwhile.
        known = Entry("", "", "", self.url, epoch=self.epoch) if self.epoch else None
        is_here = answering(self._context, [self.route], PROBE_TIME, known) is not None
        url = self.url if is_here else None
        while url is None and not self._closed:
            entry = locate()
            if entry is not None:
                url = answering(self._context, entry.addresses or [entry.address], PROBE_TIME, entry)
                if url is not None:
                    self.epoch = entry.epoch
                elif entry.stale and (url := answering(self._context, [self.url], PROBE_TIME)):
                    self.epoch = ""  # with no registry to ask: it was restarted where it was
            if url is None:
                if time.monotonic() > deadline:
                    raise ServerLost(
                        f"{what}: nothing answers at {self.url}, nor where the registry says; not executed"
                    )
                time.sleep(PAUSE)
        if url is not None and url != self.url:
            logger.info("the server at %s is at %s now", self.url, url)
            self.url = url
            self._close_idle()
        if not is_here:
            self.use(self.url)
        self._heard = time.monotonic()

    def _translated(self, exc: zmq.ZMQError, what: str) -> Exception:
        # Making a socket raises a plain ZMQError with that number.
        if self._context.closed or exc.errno == zmq.ETERM:
            return ClientClosed(f"{what}: the context of this client has been terminated")
        return ServerLost(f"{what}: nothing can be exchanged with {self.url}: {exc}")

    def close(self) -> None:
        """Close the sockets; calls that wait in other threads end within a third of `liveness`. Idempotent."""
        self._closed = True
        if self._locate is not None:
            self._locate.close()
        self._close_idle()

    def use(self, route: str) -> None:
        """Reach the server at that address of it from now on."""
        self.transport = Address.parse(route).transport
        self.route = route

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _close_idle(self) -> None:
        if self._forks != _forks:
            return  # the sockets are those of the parent process
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                return
            line.socket.close()

    def _connect(self) -> _Line:
        url = self.route
        made = client_socket(self._context, zmq.REQ, url)
        made.sndtimeo = self._slice
        return _Line(made, url)

    def _check_out(self) -> _Line:
        if self._closed:
            raise ClientClosed("this client is closed")
        if self._forks != _forks:
            raise ClientClosed("this client was made before a fork: make one, with a new context, in each process")
        try:
            line = self._idle.pop()
            while line.url != self.route:
                line.socket.close()  # to where the server was before, or not as near
                line = self._idle.pop()
        except IndexError:
            return self._connect()
        return line

    def _wait_on(self, line: _Line, request: Request, waiting: _Wait, buffers: Sequence[Buffer]) -> None:
        """Go on waiting: ask on a second socket whether the server is alive, and repeat a request that got lost."""
        probe: ZmqSocket | None = None
        try:
            while not line.socket.poll(self._left(waiting, self._slice if probe else 0)):
                if waiting.seems_lost():
                    # The reply, or the request, went down with a connection. The id makes repeating it safe.
                    line.close()
                    line.socket = self._connect().socket
                    line.wait = -1
                    request.since = waiting.since
                    line.tracked = send_tracked(line.socket, [request_frame(request), *buffers])
                probe = probe or self._connect().socket
                alive = self._is_alive(probe, line.socket, request, waiting)
                waiting.note(alive.call if alive is not None else "")
        finally:
            if probe is not None:
                probe.close()

    def _left(self, waiting: _Wait, most: int) -> int:
        """How long to wait now, ms: at most `most`, and not beyond the deadline.

        Raises
        ------
        CallTimeout, ClientClosed
            When there is no more reason to wait.
        """
        if self._closed:
            raise ClientClosed(f"{waiting.what}: the client was closed during the call")
        if waiting.deadline is None:
            return most
        left = waiting.deadline - time.monotonic()
        if left <= 0:
            limit = waiting.deadline - waiting.started
            raise CallTimeout(
                f"{waiting.what}: no reply from {self.url} within {limit:g} s: the server is busy, or gone; "
                "the call may still be running"
            )
        return min(most, int(left * 1000) + 1)

    def _is_alive(self, probe: ZmqSocket, socket: ZmqSocket, request: Request, waiting: _Wait) -> Facts | None:
        """What the server says of a call; None when its reply has come meanwhile.

        Raises
        ------
        ServerLost
            When it says nothing, or was restarted.
        """
        probe.send(request_frame(Ping(call=request.id)))
        poller = zmq.Poller()
        poller.register(probe, zmq.POLLIN)
        poller.register(socket, zmq.POLLIN)
        ready = dict(poller.poll(self._left(waiting, 2 * self._slice)))
        if socket in ready:
            return None
        what = waiting.what
        if probe not in ready:
            self._left(waiting, 0)
            raise ServerLost(f"{what}: {self.url} has not answered for {self.liveness:g} s; it may have been executed")
        alive = parse_facts(probe.recv())
        # The server's clock showed this at some time before now, so that the call was not sent before:
        waiting.since = str(alive.epoch), alive.clock - (time.monotonic() - waiting.started)
        if alive.epoch is not UNSET and alive.epoch != waiting.epoch:
            if self._locate is None:
                self.epoch = alive.epoch  # else it may be another device, and is looked for first
            # A server that knows the call was restarted before it.
            if waiting.epoch and alive.call == "unknown":
                raise ServerLost(f"{what}: {self.url} was restarted during the call; it may have been executed")
        return alive


def answering(
    context: ZmqContext, urls: Sequence[str], timeout: float, entry: Entry | None = None
) -> str | None:
    """The first of the urls at which a server answers within `timeout` seconds; None without one.

    Parameters
    ----------
    entry
        The registered device that it must be: an address of a private network may be that of another device here.
        There is no telling for one of protocol version 1, which has one address.
    """
    request = request_frame(GetInventory(id=(secrets.token_hex(8), 0)))
    deadline, poller = time.monotonic() + timeout, zmq.Poller()
    asked: dict[ZmqSocket, str] = {}
    try:
        for url in urls[:MOST_ADDRESSES]:
            try:
                made = client_socket(context, zmq.REQ, url)
            except ValueError as exc:
                logger.debug("%s is no address for this host: %s", url, exc)
                continue
            asked[made] = url
            poller.register(made, zmq.POLLIN)
            made.send(request)
        while asked and (left := deadline - time.monotonic()) > 0:
            for made, _ in poller.poll(int(left * 1000) + 1):
                poller.unregister(made)
                url = asked.pop(made)
                try:
                    facts = parse_facts(made.recv())
                except ProtocolError:
                    continue
                finally:
                    made.close()
                # An epoch is that of one server only, while other registries may have given the same name.
                if entry is None or entry.epoch in ("", facts.epoch):
                    return url
                logger.debug("%s is at %s, not %s", facts.name, url, entry.name)
    finally:
        for made in asked:
            made.close()
    return None
