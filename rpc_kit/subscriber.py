"""The client's thread that receives signals, notices lost ones, and subscribes again when the server has restarted."""

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable

import zmq
from msgspec import UNSET

from .addresses import Address
from .buffers import put_back, receive
from .calls import Calls
from .errors import ClientClosed, ProtocolError, RPCError, ServerLost
from .messages import InitSignals, SignalEvent, Subscribed
from .sockets import (
    ZmqContext,
    ZmqSocket,
    client_socket,
    end_monitor,
    is_terminated,
    monitor_connections,
    readable,
    receive_rest,
    server_socket,
)
from .wire import confirmation_topic, event_topic, parse_published

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 5.0
"""How long the server has to say where its signals are, and to confirm the subscription, s."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Pauses between attempts to subscribe again, s."""
QUIET_TIME = 1.0
"""So long after the last event it is verified that none is missing, s."""
JOIN_TIME = 5.0
"""How long stopping waits for a listener that blocks, s."""

_BELL = b"\1"
"""Neither a signal nor a client id begins so: servers have nothing to publish under it."""

Deliver = Callable[[str, list[object]], None]
Resync = Callable[[set[str]], set[str]]


class RPCSignalReceiver:
    """Receives the signals of one server on its own thread, and hands each event on exactly once.

    Parameters
    ----------
    calls
        Asks the server where it publishes.
    signals
        Names of the signals to subscribe to.
    deliver
        Called on this thread with the name of a signal and its arguments.
    resync
        Called on this thread with the names of signals of which events were lost; gives back those for which it is to
        be called again.
    """

    def __init__(
        self, context: ZmqContext, calls: Calls, signals: Iterable[str], deliver: Deliver, resync: Resync
    ) -> None:
        self._thread = threading.Thread(target=self._run, name="rpc-receiver", daemon=True)
        self.lost = 0
        self.subscribed = threading.Event()
        # The end of `with zmq.Context()` closes the sockets of that object, whoever uses them, which libzmq does not
        # survive. Those of a shadow are left to their thread, which ends with the context.
        self._context: ZmqContext = zmq.Context.shadow(context)
        self._calls = calls
        self._signals = list(signals)
        self._deliver = deliver
        self._resync = resync
        # What ends a blocking receive: a publisher of our own, to which the subscribing socket is connected as well.
        bell = Address("inproc", f"bell-{secrets.token_hex(8)}")
        self._bell, self._bell_at = server_socket(self._context, zmq.PUB, bell)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._ended = False
        self._token = secrets.token_hex(8)
        self._epoch = ""
        self._seqs: dict[str, int] = {}
        self._stale: set[str] = set()
        self._confirmed = False
        self._unverified = False

    def start(self) -> None:
        """Receive until `stop`, on a thread; lost connections are made again."""
        self._thread.start()

    def _run(self) -> None:
        pause = SHORTEST_PAUSE
        try:
            while not self._stopped.is_set():
                try:
                    self._receive_from(self._published_at())
                    pause = SHORTEST_PAUSE
                except (zmq.ContextTerminated, ClientClosed):
                    return
                except (RPCError, OSError, ValueError, zmq.ZMQError) as exc:
                    if self._stopped.is_set() or self._calls.closed or is_terminated(exc):
                        return
                    logger.warning("no signals from %s: %s; next try in %.1f s", self._calls.url, exc, pause)
                    self._stopped.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
        finally:
            with self._lock:
                self._ended = True
                self._bell.close()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come, as with a context that was terminated."""
        return self._ended

    def stop(self) -> None:
        """End the thread, and wait for it unless it is the caller; idempotent."""
        self._stopped.set()
        if threading.current_thread() is self._thread:
            return
        deadline = time.monotonic() + JOIN_TIME
        while self._thread.is_alive() and time.monotonic() < deadline:
            with self._lock, contextlib.suppress(zmq.ZMQError):
                if not self._ended:
                    self._bell.send(_BELL)
            self._thread.join(0.05)
        if self._thread.is_alive():
            logger.warning("a listener of a signal of %s blocks: its thread is left behind", self._calls.url)

    def _published_at(self) -> str:
        reply = self._calls.ask(InitSignals(), HANDSHAKE_TIMEOUT, "INIT_SIGNALS_HANDLING")
        if reply.event_url is not UNSET:
            return reply.event_url
        if reply.event_port is UNSET:
            raise ProtocolError("the server publishes no signals of protocol version 2")
        return str(Address.parse(self._calls.url).with_port(reply.event_port))

    def _receive_from(self, url: str) -> None:
        """Subscribe, and receive until the connection is lost."""
        socket = client_socket(self._context, zmq.SUB, url)
        monitor: ZmqSocket | None = None
        try:
            monitor = monitor_connections(socket)
            socket.rcvtimeo = int(QUIET_TIME * 1000)
            socket.connect(str(self._bell_at))
            for topic in (_BELL, *map(event_topic, self._signals)):
                socket.subscribe(topic)
            # Last, so that its confirmation covers all the others.
            socket.subscribe(confirmation_topic(self._token))
            self._confirmed = False
            deadline = time.monotonic() + HANDSHAKE_TIMEOUT
            connected = True
            while connected and not self._stopped.is_set():
                heard = self._receive(socket)
                if self._stale and not readable(socket):
                    self._stale = self._resync(self._stale)
                if not heard:
                    self._verify(socket)
                    connected = not readable(monitor)
                if not self._confirmed and time.monotonic() > deadline:
                    raise ServerLost(f"{url} did not confirm the subscription")
        finally:
            if monitor is not None:
                end_monitor(socket, monitor)
            socket.close()

    def _receive(self, socket: ZmqSocket) -> bool:
        """Wait for an event and hand it on; False when there was none."""
        try:
            topic = socket.recv()
        except zmq.Again:
            return False
        if topic != _BELL:
            try:
                body = socket.recv(zmq.NOBLOCK)  # there with the first frame, or never
            except zmq.Again:
                raise ProtocolError(f"{self._calls.url} sent an event without a body") from None
            name, event = parse_published(topic, body)
            if isinstance(event, SignalEvent) and event.buffers:
                event.args = put_back(event.args, receive(event.buffers, receive_rest(socket), None))
            self._on_message(name, event)
        return True

    def _verify(self, socket: ZmqSocket) -> None:
        """The last events of a storm may be lost, and no later one would show it: a new confirmation does."""
        if self._unverified:
            self._unverified = False
            topic = confirmation_topic(self._token)
            socket.unsubscribe(topic)
            socket.subscribe(topic)

    def _on_message(self, name: str, event: SignalEvent | Subscribed) -> None:
        if event.epoch != self._epoch:
            if self._epoch:
                logger.warning("%s was restarted: events may have been lost", self._calls.url)
                self._stale.update(self._signals)
            self._epoch, self._seqs = event.epoch, {}
        if isinstance(event, Subscribed):
            for signal in self._signals:
                self._note(signal, event.seqs.get(signal, 0) + 1)
                self._seqs[signal] = max(event.seqs.get(signal, 0), self._seqs.get(signal, 0))
            self._confirmed = True
            self.subscribed.set()
        elif event.seq > self._seqs.get(name, 0):
            self._note(name, event.seq)
            self._seqs[name] = event.seq
            self._unverified = True
            self._deliver(name, event.args)

    def _note(self, name: str, next_seq: int) -> None:
        """Count the events between the last one and the next one."""
        known = self._seqs.get(name)
        if known is not None and next_seq > known + 1:
            missing = next_seq - known - 1
            self.lost += missing
            self._stale.add(name)
            logger.warning("%d events of signal %s of %s were lost", missing, name, self._calls.url)
