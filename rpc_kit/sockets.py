"""The only maker of ZeroMQ sockets, and how messages go through them frame by frame."""

import contextlib
import errno
import logging
import os
import random
import secrets
import selectors
import socket
from collections.abc import Callable, Sequence
from typing import Any, Self

import zmq
import zmq.backend

from .addresses import RANDOM_PORTS, Address
from .wire import MAX_FRAMES, Buffer, Frames

logger = logging.getLogger(__name__)

ZmqContext = zmq.Context[zmq.Socket[bytes]]
ZmqSocket = zmq.Socket[bytes]

HARD_LIMIT = 256 << 20
"""A connection that announces a larger frame is closed by libzmq, bytes."""
ZERO_COPY = 512 << 10
"""From this size on it pays to hand a buffer to libzmq without a copy, bytes; measured (benchmarks)."""
LONGEST_MARK = 256
"""Longest frame that a client may put before the empty one (REQ_CORRELATE: 4), bytes."""
LONGEST_TOPIC = 1024
"""Longest message that a subscriber may send, bytes."""
EVENT_BACKLOG = 20_000
"""Events kept for a subscriber that reads slowly."""
PORT_ATTEMPTS = 20
"""So many ports are tried until one is free on all hosts of a server."""
DRAIN_TIME = 500
"""How long replies under way may take after the server has closed its socket, ms."""

send_frame = zmq.backend.Socket.send
"""``send_frame(socket, frame, flags=0, copy=True)``: zmq.Socket.send without its options, of 2 µs a frame."""

_get_option: Callable[[ZmqSocket, int], Any] = zmq.backend.Socket.get
_MORE, _EVENTS, _POLLIN = int(zmq.SNDMORE), int(zmq.EVENTS), int(zmq.POLLIN)

Envelope = list[bytes]


def check_context(context: object) -> None:
    """Raise TypeError when it is no context."""
    if not isinstance(context, zmq.Context):
        raise TypeError(f"the first argument is a zmq.Context, the second a url; got {type(context).__name__}")


def is_terminated(exc: BaseException) -> bool:
    """Whether an error comes from a context that has been terminated, or, where a socket was to be made, is gone."""
    return isinstance(exc, zmq.ZMQError) and exc.errno in (zmq.ETERM, errno.EFAULT)


def make_socket(context: ZmqContext, kind: int, address: Address | None = None) -> ZmqSocket:
    """A socket with the limits every socket of ours has; not yet bound or connected."""
    made = context.socket(kind)
    made.linger = 0
    made.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    made.setsockopt(zmq.TCP_KEEPALIVE, 1)
    made.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 10)
    made.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 5)
    made.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
    if address is not None and address.is_ipv6:
        made.setsockopt(zmq.IPV6, 1)
    return made


def server_socket(context: ZmqContext, kind: int, address: Address) -> tuple[ZmqSocket, Address]:
    """A bound socket of kind ROUTER, PUB or XPUB, and the address with the port it got.

    Raises
    ------
    OSError
        When the address cannot be bound; names it.
    """
    made = make_socket(context, kind, address)
    if kind == zmq.ROUTER:
        made.setsockopt(zmq.MAXMSGSIZE, HARD_LIMIT)
        made.setsockopt(zmq.BACKLOG, 1024)
    else:
        made.setsockopt(zmq.MAXMSGSIZE, LONGEST_TOPIC)
        made.sndhwm = EVENT_BACKLOG
    try:
        return made, _bind(made, address)
    except BaseException:
        made.close()
        raise


def server_socket_beside(
    context: ZmqContext, kind: int, server: Address, further: Sequence[Address], what: str
) -> tuple[ZmqSocket, Address]:
    """A further socket of a server, bound on all its hosts at one port: clients know the host already.

    Parameters
    ----------
    server, further
        Where the server is bound.
    what
        Ends the name of an ipc or inproc address.

    Raises
    ------
    OSError
        When no port can be bound.
    """
    if server.transport != "tcp":
        return server_socket(context, kind, server.with_host(f"{server.host}.{what}"))
    for attempt in range(PORT_ATTEMPTS):
        made, bound = server_socket(context, kind, server.with_port(0))
        try:
            for each in further:
                bind_also(made, each.with_port(bound.port or 0))
        except OSError:
            made.close()
            if attempt == PORT_ATTEMPTS - 1:
                raise
        else:
            return made, bound
    raise AssertionError


def bind_beside(made: ZmqSocket, address: Address) -> Address | None:
    """Bind a server's socket to ipc as well, for clients on the same host; None when it is not possible."""
    beside = address.beside
    if beside is None:
        return None
    try:
        return _bind(made, beside)
    except OSError as exc:
        logger.debug("clients on this host use tcp: %s", exc)
        return None


def bind_also(made: ZmqSocket, address: Address) -> Address:
    """Bind a server's socket to a further address; the address with the port it got.

    Raises
    ------
    OSError
        When it cannot be bound; names it.
    """
    if address.is_ipv6:
        made.setsockopt(zmq.IPV6, 1)
    return _bind(made, address)


def _bind(made: ZmqSocket, address: Address) -> Address:
    numeric = address.to_bind()
    if address.transport != "tcp":
        candidates = [address]
    elif address.port is None:
        candidates = [numeric.with_port(port) for port in random.sample(RANDOM_PORTS, 200)]
    else:
        candidates = [numeric]
    for candidate in candidates:
        try:
            made.bind(_bind_text(candidate))
        except zmq.ZMQError as exc:
            if exc.errno == zmq.EADDRINUSE and candidate is not candidates[-1]:
                continue
            raise OSError(exc.errno, f"cannot bind to {candidate}: {os.strerror(exc.errno or 0)}") from exc
        break
    if address.transport != "tcp":
        return address
    bound: Any = made.getsockopt(zmq.LAST_ENDPOINT)
    return address.with_port(int(bound.rstrip(b"\0").rsplit(b":", 1)[1]))


def _bind_text(address: Address) -> str:
    return str(address.with_host("*") if address.is_wildcard else address)


def client_socket(context: ZmqContext, kind: int, url: str, identity: bytes = b"") -> ZmqSocket:
    """A connected socket of kind REQ, DEALER or SUB; a ROUTER knows it by `identity` if that is given.

    Raises
    ------
    ValueError
        When nothing can connect to such a url.
    """
    address = Address.parse(url)
    if address.is_wildcard:
        raise ValueError(f"{url!r} cannot be connected to: put the server's host name in the place of {address.host!r}")
    if address.transport == "tcp" and not address.port:
        raise ValueError(f"{url!r} has no port to connect to")
    made = make_socket(context, kind, address)
    try:
        made.setsockopt(zmq.RECONNECT_IVL, 20)
        made.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        made.setsockopt(zmq.MAXMSGSIZE, -1)
        if identity:
            made.setsockopt(zmq.ROUTING_ID, identity)
        if kind == zmq.SUB:
            made.rcvhwm = EVENT_BACKLOG
            # A connection that died without a word is noticed: events have no deadline that would show it.
            made.setsockopt(zmq.HEARTBEAT_IVL, 1000)
            made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        made.connect(str(address))
    except zmq.ZMQError as exc:
        made.close()
        if isinstance(exc, zmq.ContextTerminated):
            raise
        raise ValueError(f"{url!r} cannot be connected to: {os.strerror(exc.errno or 0)}") from exc
    return made


def receive_request(router: ZmqSocket, flags: int = 0) -> tuple[Envelope, Frames]:
    """The envelope of a request (all of it is echoed, as REQ_CORRELATE adds a frame) and its body."""
    identity = router.recv(flags)
    frame = router.recv(copy=False)
    if not frame.more:
        return [identity], [frame.buffer]
    if not len(frame):
        # The usual case: a REQ socket puts an empty frame between envelope and body.
        body = router.recv(copy=False)
        if not body.more:
            return [identity, b""], [body.buffer]
        return [identity, b""], _rest(router, [body.buffer])
    frames = _rest(router, [frame.buffer])
    # With REQ_CORRELATE the empty frame comes second. A DEALER may send none at all.
    if not len(frames[1]) and len(frames[0]) <= LONGEST_MARK:
        return [identity, bytes(frames[0]), b""], frames[2:]
    return [identity], frames


def _rest(made: ZmqSocket, frames: Frames) -> Frames:
    """The frames with those that follow; of too many some are dropped, and they are too many still."""
    more = True
    while more:
        frame = made.recv(copy=False)
        more = frame.more
        if len(frames) <= MAX_FRAMES:
            frames.append(frame.buffer)
    return frames


def send_reply(router: ZmqSocket, envelope: Envelope, frames: Sequence[Buffer]) -> None:
    """Send a reply; a peer that is gone loses it, nobody waits."""
    for part in envelope:
        send_frame(router, part, _MORE)
    for frame in frames[:-1]:
        _send_fixed(router, frame, _MORE)
    _send_fixed(router, frames[-1], 0)


def _send_fixed(made: ZmqSocket, frame: Buffer, flags: int) -> None:
    # Without a copy only when it pays; then nobody may change it any more, see transfer.keep().
    if len(frame) < ZERO_COPY:
        send_frame(made, frame, flags)
    else:
        send_frame(made, frame, flags, False)


def send_tracked(made: ZmqSocket, frames: Sequence[Buffer]) -> list[zmq.MessageTracker]:
    """Send a request; what libzmq reads from its owner's memory may be written to again when these are done."""
    trackers = []
    for number, frame in enumerate(frames, 1):
        flags = _MORE if number < len(frames) else 0
        if len(frame) < ZERO_COPY:
            send_frame(made, frame, flags)
        else:
            trackers.append(made.send(frame, flags, copy=False, track=True))
    return trackers


def receive_rest(made: ZmqSocket) -> list[memoryview]:
    """The frames that follow one that was received: read-only views of the data, without a copy."""
    return [memoryview(view).toreadonly() for view in _rest(made, [])] if made.getsockopt(zmq.RCVMORE) else []


def ask_once(context: ZmqContext, url: str, request: bytes, timeout: float) -> bytes:
    """One request on a socket of its own.

    Raises
    ------
    TimeoutError
        When no reply comes within `timeout` seconds.
    ConnectionError
        When nothing can be sent, as the context has been terminated.
    """
    made: ZmqSocket | None = None
    try:
        made = client_socket(context, zmq.REQ, url)
        made.rcvtimeo = made.sndtimeo = max(1, int(timeout * 1000))
        made.send(request)
        return made.recv()
    except zmq.Again:
        raise TimeoutError(f"no reply from {url} within {timeout:g} s") from None
    except zmq.ZMQError as exc:
        raise ConnectionError(f"nothing can be sent to {url}: {exc}") from exc
    finally:
        if made is not None:
            made.close()


def monitor_connections(made: ZmqSocket) -> ZmqSocket:
    """A socket that tells when `made` accepts a connection, one ends, or a stranger speaks no ZeroMQ."""
    url = f"inproc://monitor-{secrets.token_hex(8)}"
    made.monitor(url, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    monitor = make_socket(made.context, zmq.PAIR)
    monitor.rcvhwm = 0  # with a limit, a monitor that nobody reads would block libzmq's own thread
    monitor.connect(url)
    return monitor


def end_monitor(made: ZmqSocket, monitor: ZmqSocket) -> None:
    """To be called before `made` is closed: an event that nobody can read would block libzmq's own thread for ever."""
    with contextlib.suppress(zmq.ContextTerminated):
        made.disable_monitor()
    monitor.close()


class Waker:
    """Wakes a thread that waits on file descriptors: an eventfd, or a pair of sockets where there is none.

    Parameters
    ----------
    for_signals : bool, default False
        Make it a pair of sockets in any case: `signal_descriptor` takes bytes.
    """

    def __init__(self, for_signals: bool = False) -> None:
        self._event = -1
        self.received = b""
        if hasattr(os, "eventfd") and not for_signals:
            self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._reader, self._writer = socket.socketpair()
            self._reader.setblocking(False)
            self._writer.setblocking(False)

    def fileno(self) -> int:
        """What becomes readable."""
        return self._event if self._event >= 0 else self._reader.fileno()

    def signal_descriptor(self) -> int:
        """What ``signal.set_wakeup_fd`` wants."""
        return self._writer.fileno()

    def wake(self) -> None:
        """Make the waiting thread go on; from any thread, also from a signal handler."""
        try:
            if self._event >= 0:
                os.eventfd_write(self._event, 1)
            else:
                self._writer.send(b"\0")
        except BlockingIOError:
            pass  # so many wake-ups are pending that one more says nothing new

    def clear(self) -> None:
        """Forget what woke; `received` are the bytes that came, of signals their numbers."""
        self.received = b""
        try:
            if self._event >= 0:
                os.eventfd_read(self._event)
            else:
                while received := self._reader.recv(4096):
                    self.received += received
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Give the file descriptors back."""
        if self._event >= 0:
            os.close(self._event)
        else:
            self._reader.close()
            self._writer.close()


class Watch:
    """Waits for wakers and for the edge-triggered descriptors of sockets; of one thread.

    A descriptor tells only of what comes after `readable` has said no.
    """

    def __init__(self, *wakers: Waker) -> None:
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        for waker in wakers:
            self._selector.register(waker.fileno(), selectors.EVENT_READ, waker)

    def add(self, made: ZmqSocket) -> Self:
        """Wait for that socket too."""
        self._selector.register(made.fileno(), selectors.EVENT_READ, made)
        return self

    def remove(self, made: ZmqSocket) -> None:
        """Wait for that socket no more."""
        self._selector.unregister(made.fileno())

    def wait(self, seconds: float | None = None) -> list[Waker | ZmqSocket]:
        """Until something happens; what it happened to. A waker is cleared."""
        happened = [key.data for key, _ in self._selector.select(seconds)]
        for each in happened:
            if isinstance(each, Waker):
                each.clear()
        return happened

    def close(self) -> None:
        """Give the selector's descriptors back."""
        self._selector.close()


def readable(made: ZmqSocket) -> bool:
    """Whether a message waits; to be asked again after every send, as the descriptor is edge-triggered."""
    return bool(_get_option(made, _EVENTS) & _POLLIN)
