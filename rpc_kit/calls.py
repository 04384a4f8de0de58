"""Requests from a client: a pool of REQ sockets, ids, deadlines, and the watch over a silent server."""

import os
import secrets
import threading
import time
from collections import deque
from itertools import count

import zmq
from msgspec import UNSET

from .errors import CallTimeout, ClientClosed, ProtocolError, ServerLost
from .messages import Ping, Reply, Request, RequestId
from .sockets import ZmqContext, ZmqSocket, client_socket, receive_reply
from .wire import Frames, parse_reply, request_frame

LIVENESS = 3.0
"""Within this time the death of a server is noticed, s."""

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


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
    """

    def __init__(self, context: ZmqContext, url: str, liveness: float = LIVENESS) -> None:
        self.client_id = secrets.token_hex(8)
        self.url = url
        self.epoch = ""
        self._context = context
        self._liveness = liveness
        self._slice = int(liveness * 1000 / 3)
        self._numbers = count(1)
        self._idle: deque[ZmqSocket] = deque()
        self._forks = _forks
        self._lock = threading.Lock()
        self._closed = False
        # The url is tried here, so that a wrong one is an error at once.
        self._idle.append(self._connect())

    def exchange(self, request: Request, timeout: float | None, what: str) -> tuple[Reply, Frames]:
        """Send a request, wait for its reply.

        Parameters
        ----------
        request
            Gets an id and, with a timeout, the time that is left.
        timeout : float or None
            Seconds; None waits for as long as the server lives.
        what : str
            The member, for error texts.

        Raises
        ------
        CallTimeout
            When `timeout` is over; the call may still be running.
        ServerLost
            When the server dies, restarts or becomes unreachable meanwhile.
        ClientClosed
            When the client is closed, also meanwhile, or belongs to the process this one was forked from.
        SerializationError
            When the request cannot be sent as JSON; the server was not asked.
        """
        request_id = (self.client_id, next(self._numbers))
        request.id = request_id
        if timeout is not None:
            request.timeout = timeout * 1000
        frame = request_frame(request)
        socket = self._check_out()
        keep = False
        try:
            socket.send(frame)
            wait = self._slice if timeout is None else max(1, min(self._slice, int(timeout * 1000)))
            if socket.rcvtimeo != wait:
                socket.rcvtimeo = wait
            try:
                frames = receive_reply(socket)
            except zmq.Again:
                deadline = None if timeout is None else time.monotonic() + timeout - wait / 1000
                socket, frames = self._wait_on(socket, request_id, frame, deadline, what)
            reply = parse_reply(frames)
            # A server that could not even read the id replies without one.
            if reply.id != request_id and (reply.success or reply.id is not UNSET):
                raise ProtocolError(f"{what}: the reply of {self.url} belongs to another request")
            keep = True
        except zmq.ContextTerminated:
            raise ClientClosed("the context of this client has been terminated") from None
        except zmq.Again:
            raise ServerLost(f"{what}: nothing can be sent to {self.url}") from None
        finally:
            if keep:
                self._check_in(socket)
            else:
                socket.close()
        return reply, frames

    def close(self) -> None:
        """Close the sockets; calls that wait in other threads end within a third of `liveness`. Idempotent."""
        with self._lock:
            self._closed = True
            if self._forks == _forks:
                while self._idle:
                    self._idle.pop().close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def _connect(self) -> ZmqSocket:
        made = client_socket(self._context, zmq.REQ, self.url)
        made.sndtimeo = self._slice
        return made

    def _check_out(self) -> ZmqSocket:
        if self._closed:
            raise ClientClosed("this client is closed")
        if self._forks != _forks:
            raise ClientClosed("this client was made before a fork: make one, with a new context, in each process")
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _check_in(self, socket: ZmqSocket) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(socket)
                return
        socket.close()

    def _wait_on(
        self, socket: ZmqSocket, request_id: RequestId, frame: bytes, deadline: float | None, what: str
    ) -> tuple[ZmqSocket, Frames]:
        """Go on waiting: ask on a second socket whether the server is alive, and repeat a request that got lost."""
        probe: ZmqSocket | None = None
        lost = False
        try:
            while not socket.poll(self._left(deadline, what, self._slice if probe else 0)):
                if lost:
                    # The reply, or the request, went down with a connection. The id makes repeating it safe.
                    socket.close()
                    socket = self._connect()
                    socket.send(frame)
                probe = probe or self._connect()
                alive = self._ask(probe, socket, request_id, deadline, what)
                lost = alive is not None and alive.call in ("done", "unknown")
            return socket, receive_reply(socket)
        except BaseException:
            socket.close()
            raise
        finally:
            if probe is not None:
                probe.close()

    def _left(self, deadline: float | None, what: str, most: int) -> int:
        """How long to wait now, ms: at most `most`, and not beyond the deadline.

        Raises
        ------
        CallTimeout, ClientClosed
            When there is no more reason to wait.
        """
        if self._closed:
            raise ClientClosed(f"{what}: the client was closed during the call")
        if deadline is None:
            return most
        left = deadline - time.monotonic()
        if left <= 0:
            raise CallTimeout(f"{what}: no reply from {self.url} in time; it may still be running")
        return min(most, int(left * 1000) + 1)

    def _ask(
        self, probe: ZmqSocket, socket: ZmqSocket, request_id: RequestId, deadline: float | None, what: str
    ) -> Reply | None:
        """What the server says of a call; None when its reply has come meanwhile.

        Raises
        ------
        ServerLost
            When it says nothing, or was restarted.
        """
        probe.send(request_frame(Ping(call=request_id)))
        poller = zmq.Poller()
        poller.register(probe, zmq.POLLIN)
        poller.register(socket, zmq.POLLIN)
        ready = dict(poller.poll(self._left(deadline, what, 2 * self._slice)))
        if socket in ready:
            return None
        if probe not in ready:
            self._left(deadline, what, 0)
            raise ServerLost(f"{what}: {self.url} has not answered for {self._liveness:g} s; it may have been executed")
        alive = parse_reply(receive_reply(probe))
        if self.epoch and alive.epoch is not UNSET and alive.epoch != self.epoch:
            raise ServerLost(f"{what}: {self.url} was restarted during the call; it may have been executed")
        return alive
