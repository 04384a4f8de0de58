"""Streams, client side: the events of a signal as an iterator, without a thread in between."""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import zmq
from msgspec import UNSET

from .addresses import Address
from .buffers import put_back
from .calls import Calls
from .convert import encode_json
from .errors import BufferLost, CallTimeout, ClientClosed, ProtocolError, ServerLost, remote_error, type_name
from .messages import EndOfStream, InitStreams, NextOfStream, OpenStream, Policy
from .signals import BoundSignal
from .sockets import Waker, ZmqContext, ZmqSocket, client_socket, receive_rest
from .transfer import SHARED_MEMORY, ClientTransfer
from .wire import parse_stream_event

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT = 5.0
"""How long the server has to open a stream, s."""
WINDOW = 8
"""So many events may be on their way to a reader of all, before it has taken the first."""

PARTING_TIME = 0.1
"""How long the server has to send the last event when a stream is closed, s."""
PARTING_LINGER = 100
"""How long the word of parting may take after that, ms."""
LISTENER_CHECK = 1.0
"""So often it is looked whether anybody listens still, s."""
PAUSE = 0.5
"""Before a stream that failed is opened for listeners again, s."""
JOIN_TIME = 5.0
"""How long stopping waits for a listener that blocks, s."""

_NOTHING = object()
_NOT_OPEN = type_name(ProtocolError())


class StreamReader:
    """The events of one signal of a server.

    It has a socket of its own, which is used by the thread that iterates; one at a time. When the server is lost, that
    is raised; the next event asked for opens the stream anew.

    Parameters
    ----------
    calls
        Asks the server where its streams are.
    transfer
        Takes arrays out of messages.
    signal
        The signal of the client, by whose types arguments are converted.
    note
        Called with the path that each event took.
    attach
        Lets `transfer` use the shared memory of another run of the server.
    """

    def __init__(
        self,
        context: ZmqContext,
        calls: Calls,
        transfer: ClientTransfer,
        signal: BoundSignal,
        note: Callable[[str, str], None],
        attach: Callable[[], None],
        policy: Policy,
        every: int,
        timeout: float | None,
    ) -> None:
        self.received = 0
        self._attach = attach
        self._context = context
        self._calls, self._transfer, self._signal, self._note = calls, transfer, signal, note
        self._policy, self._every, self._timeout = policy, every, timeout
        self._window = 0 if policy == "latest" else WINDOW
        self._using = threading.Lock()
        self._waking = threading.Lock()
        self._waker: Waker | None = Waker()
        self._closed = False
        self._socket: ZmqSocket | None = None
        self._path = ""
        self._shares = False
        self._pid = os.getpid()
        self._is_forgotten = False
        self._is_asked = False
        self._taken = 0
        self._heard = self._told = self._looked = 0.0
        self._dropped_before = self._dropped_here = self._lost = 0
        with self._using:
            self._open()

    @property
    def dropped(self) -> int:
        """Events that were wanted, but not given."""
        return self._dropped_before + self._dropped_here + self._lost

    @property
    def _is_forked(self) -> bool:
        """Whether this is a process that was forked, and has no part in the socket."""
        return os.getpid() != self._pid

    @property
    def closed(self) -> bool:
        """Whether the stream was closed, or its client."""
        return self._closed or self._calls.closed

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next event.

        Raises
        ------
        CallTimeout
            When none comes in time.
        ServerLost
            When the server dies; the next event asked for opens the stream anew.
        """
        if not self._using.acquire(blocking=False):
            raise RuntimeError("a stream is read by one thread at a time: open one for each")
        try:
            deadline = self._begin()
            while (event := self._try(deadline)) is _NOTHING:
                if self.closed or self._waker is None:
                    raise StopIteration
                poller = zmq.Poller()
                poller.register(self._waker.fileno(), zmq.POLLIN)
                poller.register(self._socket, zmq.POLLIN)
                poller.poll(int(self._patience(deadline) * 1000) + 1)
            return event
        except zmq.ZMQError as exc:
            raise self._translated(exc) from None
        finally:
            self._leave()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        """The next event, as of `__next__`."""
        import asyncio

        if not self._using.acquire(blocking=False):
            raise RuntimeError("a stream is read by one task at a time: open one for each")
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(0)  # while many events wait, others have their turn
            deadline = self._begin()
            if self._socket is None and not self.closed:
                await self._open_aside()
            while (event := self._try(deadline)) is _NOTHING:
                if self.closed or self._waker is None or self._socket is None:
                    raise StopAsyncIteration
                happened = asyncio.Event()
                descriptors = (self._waker.fileno(), self._socket.fileno())
                for descriptor in descriptors:
                    loop.add_reader(descriptor, happened.set)
                # No wait_for(), which may swallow a cancellation that comes together with an event (Python 3.11).
                timer = loop.call_later(self._patience(deadline), happened.set)
                try:
                    await happened.wait()
                finally:
                    timer.cancel()
                    for descriptor in descriptors:
                        loop.remove_reader(descriptor)
            return event
        except zmq.ZMQError as exc:
            raise self._translated(exc) from None
        finally:
            self._leave()

    async def _open_aside(self) -> None:
        """Open the stream on another thread, as a server that was lost may take its time."""
        import asyncio

        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            # Until that thread is done nobody else may use the socket: so long the cancellation waits.
            await asyncio.wait([opening])
            raise

    def close(self) -> None:
        """End the stream, also one that another thread waits for; idempotent."""
        self._closed = True
        with self._waking:
            if self._waker is not None:
                self._waker.wake()
        if self._using.acquire(blocking=False):
            self._leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_using" in self.__dict__:
            self._is_forgotten = True
            self.close()

    def _leave(self) -> None:
        """Let others read; or close the socket, if that was asked for meanwhile."""
        while True:
            if self._closed:
                self._part()
                with self._waking:
                    waker, self._waker = self._waker, None
                if waker is not None:
                    waker.close()
            self._using.release()
            # Closed between the look and the release, by somebody who could not do it himself.
            if not self._closed or self._waker is None or not self._using.acquire(blocking=False):
                return

    def _part(self) -> None:
        """Say that nothing more is wanted, give back what is on its way in shared memory, and close the socket."""
        if self._socket is None or self._is_forgotten or self._is_forked:
            self._drop_socket()
            return
        socket, self._socket = self._socket, None
        try:
            socket.send(encode_json(EndOfStream()), zmq.NOBLOCK)
            deadline = time.monotonic() + PARTING_TIME
            while self._shares and (left := deadline - time.monotonic()) > 0 and socket.poll(int(left * 1000) + 1):
                message, frames = parse_stream_event(socket.recv()), receive_rest(socket)
                if message.error:
                    break
                with contextlib.suppress(BufferLost):
                    self._transfer.receive(message.buffers or [], frames)
        except (zmq.ZMQError, ProtocolError):
            pass  # the server is gone, or the context
        socket.close(linger=PARTING_LINGER)

    def _begin(self) -> float | None:
        """Until when to wait; from now on the silence of the server counts."""
        if self._is_forked:
            self._closed = True
            raise ClientClosed("this stream was opened before a fork: make a client in each process")
        self._heard = self._told = self._looked = time.monotonic()
        return None if self._timeout is None else self._heard + self._timeout

    def _try(self, deadline: float | None) -> Any:
        """The next event if it is there; asks for it, and sees whether the server is alive."""
        if self.closed:
            return _NOTHING
        if self._socket is None:
            self._open()
        while True:
            assert self._socket is not None
            if self._policy == "latest" and not self._is_asked:
                self._is_asked = True
                self._tell(1)
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            event = self._on_message(frame, receive_rest(self._socket))
            if event is not _NOTHING:
                return event
            if self._socket is None:
                self._open()
        now, looked = time.monotonic(), self._looked
        self._looked = now
        if now - looked > self._calls.liveness / 2:
            self._heard = now  # this process was stopped: the server has not been silent, nobody has listened
        if deadline is not None and now >= deadline:
            raise CallTimeout(f"no event of {self._signal.name} from {self._calls.url} within {self._timeout:g} s")
        if now - self._heard > self._calls.liveness:
            self._drop_socket()
            raise ServerLost(f"{self._signal.name}: {self._calls.url} has not answered for {self._calls.liveness:g} s")
        if now - max(self._heard, self._told) > self._calls.liveness / 3:
            self._tell(0)
        return _NOTHING

    def _on_message(self, frame: bytes, frames: list[memoryview]) -> Any:
        """The value of an event; nothing of any other message."""
        message = parse_stream_event(frame)
        self._heard = time.monotonic()
        if message.error:
            self._drop_socket()
            if message.error_type == _NOT_OPEN:
                return _NOTHING  # the server took this reader for gone
            raise remote_error(message.error, message.error_type)
        self._dropped_here = message.dropped
        if message.args is UNSET:
            return _NOTHING
        self._give_credit()
        try:
            found = self._transfer.receive(message.buffers or [], frames)
        except BufferLost:
            self._lost += 1  # it was not fetched for too long
            return _NOTHING
        given = put_back(message.args, found) if found else message.args
        args = self._signal.validate_args(*given, coerce=True)
        self.received += 1
        shared = message.buffers and any(header.slot is not None for header in message.buffers)
        self._note(self._signal.name, SHARED_MEMORY if shared else self._path)
        return args[0] if len(args) == 1 else args

    def _give_credit(self) -> None:
        self._is_asked = False
        self._taken += 1
        if self._window and self._taken >= self._window // 2:
            self._tell(self._taken)
            self._taken = 0

    def _tell(self, credit: int) -> None:
        assert self._socket is not None
        self._socket.send(encode_json(NextOfStream(credit)), zmq.NOBLOCK)
        self._told = time.monotonic()

    def _patience(self, deadline: float | None) -> float:
        """How long to wait before the next look, s."""
        most = self._calls.liveness / 3
        return most if deadline is None else min(most, max(0.0, deadline - time.monotonic()))

    def _open(self) -> None:
        """Open the stream, and wait until the server has said that it is.

        Raises
        ------
        CallTimeout, ServerLost
            When the server does not say so.
        """
        facts = self._calls.ask(InitStreams(), HANDSHAKE_TIMEOUT, "INIT_STREAMS")
        if facts.stream_url is not UNSET:
            address = Address.parse(facts.stream_url)
        elif facts.ipc is not UNSET and self._calls.route != self._calls.url:
            address = Address.parse(facts.ipc)  # the server is on this host, as its calls go this way
        elif facts.stream_port is not UNSET:
            address = Address.parse(self._calls.url).with_port(facts.stream_port)
        else:
            raise ProtocolError(f"the server at {self._calls.url} has no streams")
        if facts.epoch is not UNSET and facts.epoch != self._transfer.epoch:
            self._attach()
        asked = OpenStream(signal=self._signal.name, policy=self._policy, every=self._every, credit=self._window)
        self._transfer.sign(asked)
        self._path = address.transport
        self._shares = asked.shm is not UNSET
        self._socket = client_socket(self._context, zmq.DEALER, str(address))
        self._dropped_before, self._dropped_here = self._dropped_before + self._dropped_here, 0
        self._is_asked, self._taken = False, 0
        try:
            self._socket.send(encode_json(asked))
            if not self._socket.poll(int(HANDSHAKE_TIMEOUT * 1000)):
                raise CallTimeout(f"{address} did not open the stream within {HANDSHAKE_TIMEOUT:g} s")
            # The first message is a sign of life, or says why there is no stream.
            self._on_message(self._socket.recv(), [])
        except BaseException:
            self._drop_socket()
            raise
        if self._socket is None:
            raise ServerLost(f"{address} does not keep the stream open")

    def _drop_socket(self) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def _translated(self, exc: zmq.ZMQError) -> Exception:
        if self._context.closed or exc.errno == zmq.ETERM:
            self._closed = True
            return ClientClosed(f"{self._signal.name}: the context of this client has been terminated")
        return ServerLost(f"{self._signal.name}: nothing can be exchanged with {self._calls.url}: {exc}")


class StreamListener:
    """Calls the listeners of a signal that is a stream, on a thread, as long as there are any.

    Parameters
    ----------
    signal
        The signal of a client.
    open_stream
        Opens a stream of it, as `BoundSignal.stream` does.
    """

    def __init__(self, signal: BoundSignal, open_stream: Callable[[Policy, int, float | None], StreamReader]) -> None:
        self._signal = signal
        self._open_stream = open_stream
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def listened(self) -> None:
        """A listener was connected: listen from now on, with the stream open before this returns."""
        with self._lock:
            if self._thread is not None or self._stopped.is_set():
                return
            stream = self._open_stream("all", 1, LISTENER_CHECK)
            self._thread = threading.Thread(target=self._run, args=(stream,), name="rpc-stream", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopped.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_TIME)
            if thread.is_alive():
                logger.warning("a listener of %s blocks: its thread is left behind", self._signal.name)

    def _run(self, stream: StreamReader) -> None:
        with stream:
            while not self._stopped.is_set():
                with self._lock:
                    if not self._signal.has_listeners:
                        self._thread = None
                        return
                try:
                    self._listen(stream)
                    if stream.closed:
                        return
                except CallTimeout:
                    pass  # time to look whether anybody listens
                except ClientClosed:
                    return
                except Exception as exc:
                    logger.warning("no events of %s: %s", self._signal.name, exc)
                    self._stopped.wait(PAUSE)

    def _listen(self, stream: StreamReader) -> None:
        """Call listeners while there are any."""
        for event in stream:
            self._signal.deliver(event if len(self._signal.arg_types) > 1 else (event,))
            if self._stopped.is_set() or not self._signal.connections:
                return
