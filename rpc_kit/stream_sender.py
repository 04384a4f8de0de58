"""Streams, server side: each reader gets the events that it wants, as fast as it takes them."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import zmq
from msgspec import UNSET, Struct

from .addresses import Address
from .buffers import Bytes, Part, take_out
from .compression import Codec
from .convert import encode_json
from .errors import (
    ClientClosed,
    ProtocolError,
    SerializationError,
    ServerBusy,
    ServerStopping,
    UnknownMember,
    type_name,
)
from .messages import BufferHeader, EndOfStream, NextOfStream, OpenStream, StreamEvent
from .sockets import (
    DRAIN_TIME,
    Waker,
    Watch,
    ZmqContext,
    ZmqSocket,
    bind_beside,
    readable,
    receive_request,
    send_reply,
    server_socket_beside,
)
from .transfer import COMPRESSED_FROM, SHARED_FROM, ServerTransfer, compressed
from .wire import Frames, StreamRequest, parse_stream_request

logger = logging.getLogger(__name__)

MOST_QUEUED = 100
"""Events that wait for a reader that wants all of them; further ones are dropped."""
MOST_QUEUED_BYTES = 256 << 20
"""How large the events that wait for a reader may be together."""
MOST_READERS = 1000
"""Streams that may be open at a time."""
MOST_CREDIT = 100
"""Events that may be on their way to a reader."""
PROBE_TIME = 1.0
"""So often a reader that events wait for is asked whether it is still there, s."""
IDLE_TIME = 30.0
"""So often it is asked of readers for which there is nothing, s."""
OFTEN = 60
"""After so many questions without an answer only each so-many-th is asked."""
ROUND = 100
"""So many messages are taken before events are sent."""

Compressed = Future[tuple[list[BufferHeader], Frames]]


class Event(Struct, eq=False):
    """An emitted event: its arguments with references, and the buffers these stand for."""

    seq: int
    time: float
    args: list[Any]
    parts: list[Part]
    size: int
    compressed: dict[Codec, Compressed]


class Reader:
    """A stream to one client; under the lock of its sender."""

    def __init__(self, peer: bytes, asked: OpenStream, reader: int | None) -> None:
        self.peer = peer
        self.asked = asked
        self.reader = reader
        self.credit = min(asked.credit, MOST_CREDIT)
        self.sent = 0
        self.dropped = 0
        self.unanswered = 0
        self.queue: deque[Event] = deque()
        self._bytes = 0
        self._first: int | None = None

    def wants(self, seq: int) -> bool:
        """Whether the event of that number is one that it has asked for."""
        if self._first is None:
            self._first = seq
        return self.asked.policy != "every" or (seq - self._first) % self.asked.every == 0

    def offer(self, event: Event) -> None:
        """Have the event sent when the client wants it; or drop it, or the one before."""
        if self.asked.policy == "latest":
            self.dropped += len(self.queue)
            self.queue.clear()
            self._bytes = 0
        elif len(self.queue) >= MOST_QUEUED or (self.queue and self._bytes + event.size > MOST_QUEUED_BYTES):
            self.dropped += 1
            return
        self.queue.append(event)
        self._bytes += event.size

    def take(self) -> Event:
        """The next event to send."""
        event = self.queue.popleft()
        self._bytes -= event.size
        self.credit -= 1
        self.sent += 1
        return event


class StreamSender:
    """Sends the events of signals to their readers, each of which has a connection of its own.

    What the emitting thread does for an event does not depend on how fast readers are: it puts the event into their
    queues, and its arrays into shared memory once, however many readers there are. The sender's thread does the rest.

    Parameters
    ----------
    address, further
        Where the server is bound; the streams are on another port of the same hosts.
    epoch
        Random id of the server run.
    signals
        Names of the signals.
    transfer
        How arrays travel.
    """

    def __init__(
        self,
        context: ZmqContext,
        address: Address,
        epoch: str,
        signals: Sequence[str],
        transfer: ServerTransfer,
        further: Sequence[Address] = (),
    ) -> None:
        self._context = context
        self._address, self._further = address, further
        self._epoch = epoch
        self._transfer = transfer
        self._lock = threading.Lock()
        self._orders = {name: threading.RLock() for name in signals}
        self._seqs = dict.fromkeys(signals, 0)
        self._readers: dict[bytes, Reader] = {}
        self._by_signal: dict[str, list[Reader]] = {name: [] for name in signals}
        self._compressed: deque[tuple[Reader, Event, Compressed]] = deque()
        self._opened: tuple[ZmqSocket, Address] | None = None
        self._beside: Address | None = None
        self._worker: ThreadPoolExecutor | None = None
        self._waker = Waker()
        self._closed = self._dozes = False
        self._thread = threading.Thread(target=self._run, name="rpc-streams", daemon=True)

    def open(self) -> dict[str, Any]:
        """Make the socket, and say where it is, as keys of the reply to INIT_STREAMS.

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
            if self._opened is None:
                self._opened = server_socket_beside(
                    self._context, zmq.ROUTER, self._address, self._further, "streams"
                )
                self._beside = bind_beside(*self._opened)
                # A peer that is gone, or that does not read, is an error at once: nobody waits for it.
                self._opened[0].setsockopt(zmq.ROUTER_MANDATORY, 1)
                self._opened[0].sndtimeo = 0
                self._thread.start()
            address = self._opened[1]
        found = {"stream_port": address.port} if address.transport == "tcp" else {"stream_url": str(address)}
        return found if self._beside is None else {**found, "ipc": str(self._beside)}

    def publish(self, name: str, args: tuple[Any, ...]) -> None:
        """Give an event to those who read that stream; on the thread that emits it.

        Raises
        ------
        SerializationError
            When it cannot be sent.
        """
        if not self._by_signal.get(name):
            self._seqs[name] += 1
            return
        with self._orders[name]:
            seq = self._seqs[name] = self._seqs[name] + 1
            with self._lock:
                wanting = [reader for reader in self._by_signal.get(name, ()) if reader.wants(seq)]
            if not wanting:
                return
            event = self._event(name, seq, args, any(reader.reader is not None for reader in wanting))
            with self._lock:
                for reader in wanting:
                    reader.offer(event)
                # Under the lock, as the waker is closed under it, too.
                if not self._closed and (self._dozes or any(reader.credit for reader in wanting)):
                    self._waker.wake()

    def _event(self, name: str, seq: int, args: tuple[Any, ...], shared: bool) -> Event:
        try:
            tree, parts = take_out(list(args))
        except (TypeError, ValueError, RecursionError) as exc:
            raise SerializationError(f"signal {name}: {exc}") from exc
        for part in parts:
            # As they are now: a camera uses its buffers again.
            if shared and part.size >= SHARED_FROM:
                self._transfer.settle(part)
            self._transfer.keep(part)
        return Event(seq, time.time(), tree, parts, sum(part.size for part in parts), {})

    def readers(self) -> list[dict[str, Any]]:
        """What is sent to whom, for a person."""
        with self._lock:
            return [
                {
                    "signal": each.asked.signal,
                    "policy": each.asked.policy,
                    "sent": each.sent,
                    "dropped": each.dropped,
                    "waiting": len(each.queue),
                }
                for each in self._readers.values()
            ]

    def close(self) -> None:
        """Send nothing more; idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._waker.wake()
        if self._thread.ident is not None:
            self._thread.join()
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        self._waker.close()
        if self._opened is not None:
            self._opened[0].close(linger=DRAIN_TIME)
        self._readers.clear()
        self._by_signal.clear()

    def _run(self) -> None:
        assert self._opened is not None
        socket = self._opened[0]
        watch = Watch(self._waker).add(socket)
        probed = idle = time.monotonic()
        try:
            while not self._closed:
                more = self._receive(socket)
                self._send_waiting(socket)
                now = time.monotonic()
                if now - idle >= IDLE_TIME:
                    self._probe(socket, self._readers.values())
                    idle = probed = now
                elif now - probed >= PROBE_TIME:
                    self._probe(socket, [each for each in [*self._readers.values()] if each.queue])
                    probed = now
                self._dozes = True  # said before the look, so that what comes after it wakes
                self._dozes = not self._anything_waits()
                due = probed + PROBE_TIME if not self._dozes else idle + IDLE_TIME if self._readers else None
                more = more or readable(socket)
                watch.wait(0.0 if more else None if due is None else max(due - now, 0.01))
                self._dozes = False
            for peer in list(self._readers):
                self._end(socket, peer, ServerStopping("the server is stopping"))
        except zmq.ContextTerminated:
            pass  # the server is ending
        except Exception:
            logger.exception("the streams have failed")
        finally:
            watch.close()

    def _anything_waits(self) -> bool:
        return any(reader.queue for reader in [*self._readers.values()])

    def _receive(self, socket: ZmqSocket) -> bool:
        """Take what readers say; whether there is more."""
        for _ in range(ROUND):
            if not readable(socket):
                return False
            envelope, frames = receive_request(socket, zmq.NOBLOCK)
            try:
                self._take(socket, envelope[0], parse_stream_request(frames))
            except (ProtocolError, UnknownMember, ServerBusy) as exc:
                self._end(socket, envelope[0], exc)
        return True

    def _take(self, socket: ZmqSocket, peer: bytes, message: StreamRequest) -> None:
        reader = self._readers.get(peer)
        if reader is not None:
            reader.unanswered = 0
        if isinstance(message, EndOfStream):
            self._end(socket, peer, ClientClosed("the reader has ended the stream"))
            return
        if isinstance(message, NextOfStream):
            if reader is None:
                raise ProtocolError("no stream is open on this connection")
            with self._lock:
                reader.credit = min(reader.credit + message.credit, MOST_CREDIT)
            if not message.credit:
                self._tell(socket, reader.peer, self._sign_of_life(reader))
            return
        if reader is not None:
            raise ProtocolError("a stream is open on this connection already")
        if len(self._readers) >= MOST_READERS:
            self._probe(socket, self._readers.values())
        if message.signal not in self._by_signal:
            raise UnknownMember(f"Signal {message.signal[:100]} not implemented")
        if len(self._readers) >= MOST_READERS:
            raise ServerBusy(f"{MOST_READERS} streams are open")
        reader = Reader(peer, message, self._transfer.reader(message.shm))
        with self._lock:
            self._readers[peer] = reader
            self._by_signal[message.signal] = [*self._by_signal[message.signal], reader]
        self._tell(socket, peer, self._sign_of_life(reader))

    def _sign_of_life(self, reader: Reader) -> StreamEvent:
        return StreamEvent(self._epoch, self._seqs[reader.asked.signal], dropped=reader.dropped)

    def _send_waiting(self, socket: ZmqSocket) -> None:
        while self._compressed:
            reader, event, future = self._compressed.popleft()
            self._send_compressed(socket, reader, event, future)
        for reader in list(self._readers.values()):
            while reader.queue and reader.credit:
                with self._lock:
                    event = reader.take()
                self._send(socket, reader, event)

    def _send(self, socket: ZmqSocket, reader: Reader, event: Event) -> None:
        codec = reader.asked.codec
        if codec is UNSET or reader.reader is not None:
            headers, frames = self._transfer.load_for(reader.reader, UNSET, event.parts)
            self._tell(socket, reader.peer, self._message(reader, event, headers), frames)
            return
        future = event.compressed.get(codec)
        if future is None:
            # On a thread of its own, so that nobody else waits for it; one, so that events stay in order.
            self._worker = self._worker or ThreadPoolExecutor(1, "rpc-compress")
            future = event.compressed[codec] = self._worker.submit(compressed_parts, event.parts, codec)
        future.add_done_callback(lambda done: self._on_compressed(reader, event, done))

    def _on_compressed(self, reader: Reader, event: Event, done: Compressed) -> None:
        self._compressed.append((reader, event, done))
        with self._lock:
            if not self._closed:
                self._waker.wake()

    def _send_compressed(self, socket: ZmqSocket, reader: Reader, event: Event, future: Compressed) -> None:
        try:
            headers, frames = future.result(0)
        except Exception as exc:
            self._end(socket, reader.peer, exc)
        else:
            self._tell(socket, reader.peer, self._message(reader, event, headers), frames)

    def _message(self, reader: Reader, event: Event, headers: list[BufferHeader]) -> StreamEvent:
        return StreamEvent(self._epoch, event.seq, event.time, reader.dropped, event.args, headers or UNSET)

    def _probe(self, socket: ZmqSocket, readers: Iterable[Reader]) -> None:
        """A reader that is gone is noticed when something is sent to it; those that take nothing hold what waits."""
        for reader in list(readers):
            reader.unanswered += 1
            # One that lives, but does not read, is not to be filled up with it.
            if reader.unanswered < OFTEN or reader.unanswered % OFTEN == 0:
                self._tell(socket, reader.peer, self._sign_of_life(reader))

    def _end(self, socket: ZmqSocket, peer: bytes, exc: Exception) -> None:
        self._tell(socket, peer, StreamEvent(self._epoch, error=str(exc), error_type=type_name(exc)))
        self._forget(peer)

    def _tell(self, socket: ZmqSocket, peer: bytes, message: StreamEvent, frames: Sequence[Bytes] = ()) -> None:
        try:
            send_reply(socket, [peer], [encode_json(message), *frames])
        except zmq.ContextTerminated:
            raise
        except zmq.ZMQError:
            self._forget(peer)  # it is gone, or has not read a thousand messages

    def _forget(self, peer: bytes) -> None:
        with self._lock:
            reader = self._readers.pop(peer, None)
            if reader is not None:
                name = reader.asked.signal
                self._by_signal[name] = [each for each in self._by_signal[name] if each is not reader]


def compressed_parts(parts: Sequence[Part], codec: Codec) -> tuple[list[BufferHeader], Frames]:
    """Headers and frames of buffers, the large ones compressed."""
    made = [compressed(part, codec) if part.size >= COMPRESSED_FROM else (part.header, part.data) for part in parts]
    return [header for header, _ in made], [frame for _, frame in made]
