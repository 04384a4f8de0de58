"""The server's signals: a socket for each protocol version, a hook for each signal, however many clients there are."""

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import zmq

from .addresses import Address
from .messages import SignalEvent, Subscribed
from .signals import BoundSignal
from .sockets import Waker, Watch, ZmqContext, ZmqSocket, readable, send_frame, server_socket_beside
from .stream_sender import StreamSender
from .wire import Frames, confirmation_frames, event_frames, event_frames_v1

logger = logging.getLogger(__name__)

ROUND = 100
"""So many subscriptions are looked at before an event may be published."""

_SUBSCRIBED = 1


class Publisher:
    """Publishes the signals of one device; a socket is made when the first client asks for it.

    Parameters
    ----------
    address
        The bound address of the server; signals go out on other ports of the same host.
    epoch
        Random id of the server run.
    signals
        The signals of the device, by name.
    streams
        Gives the events to those who read a stream of them.
    streamed
        Names of the signals that are published in this way only.
    further
        Hosts where the server is bound as well.
    """

    def __init__(
        self,
        context: ZmqContext,
        address: Address,
        epoch: str,
        signals: dict[str, BoundSignal],
        streams: StreamSender,
        streamed: frozenset[str],
        further: Sequence[Address] = (),
    ) -> None:
        self._context = context
        self._address = address
        self._further = further
        self._epoch = epoch
        self._signals = signals
        self._streams, self._streamed = streams, streamed
        # A signal may be emitted by a listener of another one, and a collected socket may log: hence reentrant.
        self._lock = threading.RLock()
        self._closed = False
        self._seqs = dict.fromkeys(signals, 0)
        self._plain: tuple[ZmqSocket, Address] | None = None
        self._events: tuple[ZmqSocket, Address] | None = None
        self._waker = Waker()
        self._greeter = threading.Thread(target=self._greet, name="rpc-publisher", daemon=True)
        for name, signal in signals.items():
            signal.publish_to(self._hook(name))

    def open(self, version: int) -> dict[str, Any]:
        """Make the socket of that protocol version, and say where it is, as keys of the reply.

        Raises
        ------
        RuntimeError
            When the server is closed.
        OSError
            When no port can be bound.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the server is closed")
            if version == 1 and self._plain is None:
                host = self._address if self._address.transport == "tcp" else Address("tcp", "127.0.0.1")
                self._plain = server_socket_beside(self._context, zmq.PUB, host, self._further, "signals")
            elif version == 2 and self._events is None:
                self._events = server_socket_beside(self._context, zmq.XPUB, self._address, self._further, "events")
                # Each subscription is passed up, also one that a client repeats after its connection broke.
                self._events[0].setsockopt(zmq.XPUB_VERBOSE, 1)
            self._be_watched()
            if version == 1:
                assert self._plain is not None
                return {"signal_port": self._plain[1].port}
            assert self._events is not None
            address = self._events[1]
            return {"event_port": address.port} if address.transport == "tcp" else {"event_url": str(address)}

    def close(self) -> None:
        """Publish nothing more; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for signal in self._signals.values():
                signal.publish_to(None)
        self._waker.wake()
        if self._greeter.ident is not None:
            self._greeter.join()
        self._waker.close()
        for opened in (self._plain, self._events):
            if opened is not None:
                opened[0].close()

    def _be_watched(self) -> None:
        if self._greeter.ident is None:
            self._greeter.start()
        else:
            self._waker.wake()

    def _hook(self, name: str) -> Any:
        def publish(args: tuple[Any, ...]) -> None:
            self._publish(name, args)

        return publish

    def _publish(self, name: str, args: tuple[Any, ...]) -> None:
        with self._lock:
            if self._closed:
                return
            seq = self._seqs[name] + 1
            if self._events is not None and name not in self._streamed:
                event = SignalEvent(self._epoch, seq, time.time(), list(args))
                self._send(self._events[0], event_frames(name, event))
            if self._plain is not None:
                self._publish_plain(self._plain[0], name, args)
            self._seqs[name] = seq
            # The send may have swallowed what the greeter waits for.
            if self._events is not None and readable(self._events[0]):
                self._waker.wake()
        self._streams.publish(name, args)

    def _publish_plain(self, socket: ZmqSocket, name: str, args: tuple[Any, ...]) -> None:
        try:
            self._send(socket, event_frames_v1(name, args))
        except (TypeError, ValueError) as exc:
            if name not in self._streamed:
                raise
            logger.debug("signal %s is not sent to clients of protocol version 1: %s", name, exc)

    def _send(self, socket: ZmqSocket, frames: Frames) -> None:
        # Never blocks: a subscriber whose backlog is full loses the event, and sees the gap in the numbers.
        for frame in frames[:-1]:
            send_frame(socket, frame, zmq.SNDMORE | zmq.NOBLOCK)
        send_frame(socket, frames[-1], zmq.NOBLOCK)

    def _confirm(self, socket: ZmqSocket) -> bool:
        """Tell clients whose subscriptions have come that these are in force; whether there are more."""
        for _ in range(ROUND):
            if not readable(socket):
                return False
            request = socket.recv()
            topic = request[1:]
            # A client subscribes to its own topic after the signals, and one connection keeps the order.
            if request[:1] == bytes([_SUBSCRIBED]) and topic[:1] == b"\0":
                self._send(socket, confirmation_frames(topic, Subscribed(self._epoch, dict(self._seqs))))
        return True

    def _greet(self) -> None:
        watch = Watch(self._waker)
        watched: set[ZmqSocket] = set()
        try:
            while not self._closed:
                more = False
                with self._lock:
                    for opened in (self._plain, self._events):
                        if opened is None or self._closed:
                            continue
                        if opened[0] not in watched:
                            watched.add(opened[0])
                            watch.add(opened[0])
                        if opened is self._events:
                            more = self._confirm(opened[0])
                        else:
                            readable(opened[0])  # lets libzmq clear away the connections that ended
                watch.wait(0.0 if more else None)
        except zmq.ContextTerminated:
            pass  # the server is ending
        finally:
            watch.close()


def bound_signals(device: object, names: Iterable[str]) -> dict[str, BoundSignal]:
    """The signals of a device object, by name."""
    return {name: getattr(device, name) for name in names}
