"""The ROUTER loop of a server: the device thread, and the standby that answers while a method runs.

A ZeroMQ socket is used by one thread at a time. Here that is whoever holds the lock `_own`: the device thread while it
waits for requests and sends replies, the standby while the device thread runs a method. So a short call costs no
thread hop, and control messages are answered during a long one. docs/threads.md tells the whole story.
"""

import contextlib
import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from msgspec import UNSET, Struct

from .connections import Connections
from .dispatch import Dispatcher, Pending, member_of
from .errors import ReplyLost, ServerBusy, ServerStopping
from .messages import AnyRequest, Carrying, Malformed, RequestId
from .postponed import Postponed
from .process import UnheardSignal
from .sockets import (
    Envelope,
    Waker,
    Watch,
    ZmqSocket,
    client_socket,
    readable,
    receive_request,
    send_reply,
)
from .transfer import ServerTransfer
from .wire import Frames, parse_request

logger = logging.getLogger(__name__)

TICK = 0.002
"""How long a method runs before the standby takes over, s."""
SLOW = 0.001
"""A method that took longer last time hands over before it runs, s."""
QUIET_TICKS = 500
"""After so many ticks without a call the standby sleeps until it is woken."""
MAX_QUEUED = 10_000
"""Calls that may wait for the device."""
MAX_QUEUED_BYTES = 256 << 20
"""How large the waiting calls may be together."""
MAX_DUPLICATES = 8
"""So many repeats of a call that runs get its reply; the oldest wait in vain."""
DRAIN_ROUND = 100
"""So many requests are taken before the device thread may send its reply."""
STOP_TIME = 10.0
"""How long a running method may take to end when the server is stopped, s."""
CONTROL_TIME = 10.0
"""A message that needs no device and takes longer is a sign of a server that hangs, s."""
TURN_AWAY_TIME = 0.5
"""How long a server that ends replies to those who still come, s."""


class Call(Struct, eq=False):
    """A request that waits for the device."""

    envelope: Envelope
    request: AnyRequest
    arrived: float
    size: int


class Endpoint:
    """Serves a dispatcher on a ROUTER socket.

    Parameters
    ----------
    socket
        A bound ROUTER.
    wake_url
        A second, inproc url of the same socket, by which a blocking receive is ended.
    dispatcher
        Answers the requests.
    max_request
        Largest size of a request, bytes.
    transfer
        Gives the buffers of requests that lie in shared memory.
    abandoned
        Called on the standby thread when a method has not ended in time after `stop`, and its caller has been told.
    """

    def __init__(
        self,
        socket: ZmqSocket,
        wake_url: str,
        dispatcher: Dispatcher,
        max_request: int,
        transfer: ServerTransfer | None = None,
        abandoned: Callable[[], None] = lambda: None,
    ) -> None:
        self._pid = os.getpid()
        self._socket = socket
        self._dispatcher = dispatcher
        self._journal = dispatcher.journal
        self._max_request = max_request
        self._transfer = transfer
        self._view = None if transfer is None else transfer.view
        self._own = threading.Lock()
        self._waker = Waker()
        self._signals = Waker(for_signals=True)
        # Made now, as later there may be no file descriptors left; each is used by one thread at a time.
        self._bells = secrets.token_bytes(16)
        self._stop_bell, self._signal_bell, self._reply_bell = (
            client_socket(socket.context, zmq.DEALER, wake_url, self._bells + each) for each in (b"s", b"n", b"r")
        )
        self._to_stop = threading.Lock()
        self._stop_by = 0.0
        self._abandoned = abandoned
        self._given_up: Call | None = None
        self._postponed: Postponed[Call] = Postponed(
            lambda call, pending: dispatcher.settle(call.request, pending), lambda: _ring(self._reply_bell)
        )
        self._queue: deque[Call] = deque()
        self._queued_bytes = 0
        self._duplicates: dict[RequestId, deque[Envelope]] = {}
        self._stopping = False
        # Read and written by both threads without a lock: each is one reference, and a late look costs one tick.
        self._running: Call | None = None
        self._serial = 0
        self._started = 0.0
        self._busy_since: float | None = None
        self.unheard = UnheardSignal()
        self._handed_over = False
        self._taken = False
        self._asleep = False
        self._slow: set[str] = set()
        # Made now, as clients connect from here on. Last, as it has to be ended.
        self._connections = Connections(socket)

    def serve(self) -> None:
        """Answer requests on the calling thread until `stop`; whoever still waits then gets an error reply."""
        try:
            try:
                self._serve(self._connections)
            finally:
                self._connections.end()
        except zmq.ContextTerminated:
            logger.warning("the context was terminated: the server ends")

    def _serve(self, connections: Connections) -> None:
        standby = threading.Thread(target=self._stand_by, args=(connections,), name="rpc-standby", daemon=True)
        standby.start()
        try:
            with self._own:
                while not self._stopping:
                    call = self._next()
                    if call is not None:
                        self._run(call)
                        call = None  # who waits for the next one keeps no arguments, which may be in shared memory
                self._turn_away()
        finally:
            self._stopping = True
            self._waker.wake()
            standby.join()

    def stop(self) -> None:
        """End `serve` after the running call; from any thread and from signal handlers, any number of times."""
        if self._to_stop.acquire(blocking=False):
            self._stop_by = time.monotonic() + STOP_TIME
            self._stopping = True
            _ring(self._stop_bell)
            self._waker.wake()

    def signal_descriptor(self) -> int:
        """What is to be written to when a signal comes, so that a blocking receive does not outlast it."""
        return self._signals.signal_descriptor()

    def close(self) -> None:
        """Reply to who came after `serve` had ended, and give the file descriptors back."""
        self._to_stop.acquire(blocking=False)  # a stop that comes now finds nothing to wake
        self._stopping = True
        with self._own, contextlib.suppress(zmq.ContextTerminated):
            self._turn_away()
        self._postponed.close()
        self._connections.end()
        for each in (self._waker, self._signals, self._stop_bell, self._signal_bell, self._reply_bell):
            each.close()

    def status(self) -> str:
        """Who is connected, how many calls there were, and what runs; for a person."""
        hosts = self._connections.clients()
        clients = ", ".join(f"{host} ({count})" if count > 1 else host for host, count in hosts.items())
        call, queued = self.current_call()
        running = f"in {call['member']} for {call['seconds']:.0f} s" if call is not None else "idle"
        return f"clients: {clients or 'none'}; calls: {self._serial}, {queued} waiting; {running}"

    def current_call(self) -> tuple[dict[str, Any] | None, int]:
        """The running call as ``{member, seconds}``, and how many wait."""
        call, started = self._running, self._started
        if call is None:
            return None, len(self._queue)
        return {"member": member_of(call.request), "seconds": time.monotonic() - started}, len(self._queue)

    def is_stuck(self) -> bool:
        """Whether a message that is to be answered at once has not been for too long."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > CONTROL_TIME

    def _next(self) -> Call | None:
        """The next call, waited for if need be; None when what came needs no device."""
        if self._queue:
            self._drain()  # control messages do not queue behind calls
            call = self._queue.popleft()
            self._queued_bytes -= call.size
            return call
        return self._take(*receive_request(self._socket))

    def _take(self, envelope: Envelope, frames: Frames) -> Call | None:
        """A request that the device has to answer; None when it needs no device."""
        request = parse_request(frames, self._max_request, self._view)
        if len(frames) > 1 and self._transfer is not None and isinstance(request, Carrying):
            self._transfer.expect(request.shm, map(len, frames[1:]))
        if not self._dispatcher.is_call(request):
            if type(request) is Malformed and envelope[0].startswith(self._bells):
                self._send_finished()
                return None
            if not self._stopping:
                self._busy_since = time.monotonic()
                reply = self._dispatcher.answer(request)
                self._busy_since = None
                if type(reply) is Pending:
                    self._postponed.add(Call(envelope, request, 0.0, 0), reply)
                else:
                    send_reply(self._socket, envelope, reply)
                return None
        call = Call(envelope, request, time.monotonic(), sum(map(len, frames)))
        if self._stopping:
            error = ServerStopping("the server is stopping; nothing was executed")
            send_reply(self._socket, envelope, self._dispatcher.failure(request, error))
            return None
        if request.epoch is not UNSET and self._dispatcher.is_for_another(request):
            send_reply(self._socket, envelope, self._dispatcher.replaced(request))
            return None
        if request.id is UNSET or (request.since is UNSET and self._journal.begin(request.id)):
            return call
        return self._repeat(call, request.id)

    def _repeat(self, call: Call, request_id: RequestId) -> Call | None:
        """An id that came before gets the reply of the first, now or when it is there."""
        journal, request = self._journal, call.request
        state = journal.state(request_id)
        if state == "pending":
            self._duplicates.setdefault(request_id, deque(maxlen=MAX_DUPLICATES)).append(call.envelope)
            return None
        if state == "unknown" and self._dispatcher.never_came(request):
            journal.begin(request_id)
            return call
        frames = journal.reply(request_id) if state == "done" else None
        if frames is None:
            why = "was executed; its reply was too large to keep" if state == "sent" else "may have been executed"
            frames = self._dispatcher.failure(request, ReplyLost(f"{member_of(request)}: {why}"))
        send_reply(self._socket, call.envelope, frames)
        return None

    def _run(self, call: Call) -> None:
        """Execute a call, with the socket given away meanwhile."""
        request = call.request
        member = member_of(request)
        started = self._started = time.monotonic()
        if request.timeout is not UNSET and (started - call.arrived) * 1000 > request.timeout:
            self._reply(call, self._dispatcher.expired(request))
            return
        self._handed_over = member in self._slow
        self._serial += 1
        self._running = call
        self._own.release()
        try:
            if self._handed_over or self._asleep:
                self._waker.wake()
            reply = self._dispatcher.answer(request)
        finally:
            # In a process that the method forked the standby is not there, and may have left the lock as it held it.
            self._own.acquire(blocking=os.getpid() == self._pid)
            self._running = None
        if self._taken:
            self._waker.wake()
        if call is self._given_up:
            pass  # its caller has been told
        elif type(reply) is Pending:
            self._postponed.add(call, reply)
        else:
            self._reply(call, reply)
        if time.monotonic() - started > SLOW:
            self._slow.add(member)
        elif self._handed_over:
            self._slow.discard(member)

    def _reply(self, call: Call, frames: Frames) -> None:
        send_reply(self._socket, call.envelope, frames)
        request_id = call.request.id
        if request_id is UNSET:
            return
        self._journal.finish(request_id, frames)
        if self._duplicates:
            for envelope in self._duplicates.pop(request_id, ()):
                send_reply(self._socket, envelope, frames)

    def _send_finished(self) -> None:
        for call, frames in self._postponed.take_finished():
            self._reply(call, frames)

    def _turn_away(self) -> None:
        """One reply for all who wait, also in the socket."""
        self._empty_queue()
        self._send_finished()
        for call in self._postponed.give_up():
            self._reply(call, self._dispatcher.failure(call.request, ServerStopping("the server is stopping")))
        deadline = time.monotonic() + TURN_AWAY_TIME
        while readable(self._socket) and time.monotonic() < deadline:
            self._take(*receive_request(self._socket))

    def _empty_queue(self) -> None:
        error = ServerStopping("the server is stopping; the call was not executed")
        while self._queue:
            call = self._queue.popleft()
            self._reply(call, self._dispatcher.failure(call.request, error))

    def _give_up(self, call: Call) -> None:
        """Wait no longer for a method that does not end."""
        self._given_up = call
        member = member_of(call.request)
        logger.error("%s has not ended within %g s of the stop: it is left behind", member, STOP_TIME)
        error = ServerStopping(f"{member} did not end within {STOP_TIME:g} s of the server's stop; it may still end")
        self._reply(call, self._dispatcher.failure(call.request, error))

    def _stand_by(self, connections: Connections) -> None:
        watch = Watch(self._waker, self._signals).add(connections.monitor)
        last, quiet = 0, 0
        try:
            connections.note()
            while not self._stopping or self._running is not None:
                self._asleep = quiet > QUIET_TICKS
                if not self._asleep:
                    self._wait(watch, connections, TICK)
                elif self._serial == last:
                    self._wait(watch, connections, None)
                self._asleep = False
                running, serial = self._running, self._serial
                if running is not None and (serial == last or self._handed_over):
                    self._stand_in(running, watch, connections)
                    quiet = 0
                quiet = quiet + 1 if serial == last else 0
                last = serial
        except zmq.ContextTerminated:
            pass  # the server is ending
        except Exception:
            logger.exception("the standby thread failed: control messages wait for running methods from now on")
        finally:
            watch.close()

    def _wait(self, watch: Watch, connections: Connections, seconds: float | None) -> None:
        happened = watch.wait(seconds)
        if self._signals in happened:
            _ring(self._signal_bell)
            self.unheard.note(self._signals.received)
        if connections.monitor in happened:
            connections.note()

    def _stand_in(self, call: Call, watch: Watch, connections: Connections) -> None:
        """Take requests while that call runs."""
        self._taken = True
        watch.add(self._socket)
        try:
            while self._running is call:
                with self._own:
                    if self._running is not call:
                        break
                    more = self._drain()
                    if not self._stopping and self.unheard.is_certain():
                        logger.warning("%s does not let signals be handled: stopping", member_of(call.request))
                        self.stop()
                    late = self._stopping and self._given_up is None and time.monotonic() >= self._stop_by
                    if self._stopping:
                        self._empty_queue()
                    if late:
                        self._give_up(call)
                if late:
                    self._abandoned()
                left = self._stop_by - time.monotonic() if self._stopping and self._given_up is None else 1.0
                self._wait(watch, connections, 0.0 if more else min(1.0, max(0.0, left)))
        finally:
            watch.remove(self._socket)
            self._taken = False

    def _drain(self) -> bool:
        """Take what has come; whether there is more, as a flood must not keep the device thread from its reply."""
        for _ in range(DRAIN_ROUND):
            if not readable(self._socket):
                return False
            call = self._take(*receive_request(self._socket, zmq.NOBLOCK))
            if call is None:
                continue
            if len(self._queue) >= MAX_QUEUED or self._queued_bytes + call.size > MAX_QUEUED_BYTES:
                error = ServerBusy(f"{len(self._queue)} calls are queued; this one was not executed")
                self._reply(call, self._dispatcher.failure(call.request, error))
            else:
                self._queued_bytes += call.size
                self._queue.append(call)
        return True


def _ring(bell: ZmqSocket) -> None:
    """End a blocking receive, so that the device thread looks at `_stopping` and runs signal handlers."""
    with contextlib.suppress(zmq.ZMQError):  # what is full rings already; a terminated context ends the receive itself
        bell.send(b"", zmq.NOBLOCK)
