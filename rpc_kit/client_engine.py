"""All that a client owns: calls, streams, signals and shared memory; the mixin RPCClient is thin."""

import logging
import threading
import weakref
from functools import partial
from typing import Any

from msgspec import UNSET, UnsetType

from .addresses import Address
from .buffers import Part, flat_bytes, put_back
from .calls import Calls, Locate, answering
from .compression import Codec
from .errors import (
    BufferLost,
    CallTimeout,
    ClientClosed,
    InterfaceMismatch,
    NoResult,
    ProtocolError,
    ReplyLost,
    RPCError,
    type_name,
)
from .interface import Interface, Method, Property
from .messages import (
    BufferHeader,
    Entry,
    Facts,
    GetInventory,
    MethodCall,
    Params,
    Policy,
    PropertyGet,
    PropertySet,
    Reply,
    StopServer,
)
from .signals import BoundSignal
from .sockets import ZmqContext
from .stats import ClientStats
from .stream_reader import StreamListener, StreamReader
from .subscriber import HANDSHAKE_TIMEOUT, RPCSignalReceiver
from .transfer import SHARED_MEMORY, ClientTransfer
from .wire import failure_of, parse_reply, take_buffers

logger = logging.getLogger(__name__)

_BUFFER_LOST = type_name(BufferLost())


class ClientEngine:
    """All that a client owns; it does not hold the client, so that a forgotten client is collected and closed."""

    def __init__(
        self,
        context: ZmqContext,
        url: str,
        interface: Interface,
        signals: dict[str, BoundSignal],
        timeout: float,
        liveness: float,
        returns_errors: bool,
        locate: Locate | None,
        codec: Codec | UnsetType,
    ) -> None:
        self.calls = Calls(context, url, liveness, locate)
        self.transfer = ClientTransfer(codec)
        self.stats = ClientStats()
        self.interface = interface
        self.timeout = timeout
        self.receiver: RPCSignalReceiver | None = None
        self._context = context
        self._returns_errors = returns_errors
        self._signals = signals
        self._streams: weakref.WeakSet[StreamReader] = weakref.WeakSet()
        self._listeners: list[StreamListener] = []
        self._attaching = threading.Lock()
        self._near = ""
        self._event_path = Address.parse(url).transport
        try:
            inventory = self._inventory()
            self.name = inventory.name
            known = {**(inventory.json_methods or {}), **(inventory.buffer_methods or {})}
            self._timeouts = {name: None if limit is None else limit / 1000 for name, limit in known.items()}
            self._open_streams()
            events = signals.keys() - interface.streamed
            if events:
                self.receiver = RPCSignalReceiver(context, self.calls, events, self._deliver, self._resync)
                self.receiver.start()
                if not self.receiver.subscribed.wait(HANDSHAKE_TIMEOUT):
                    raise CallTimeout(f"{url}: the signals could not be subscribed to within {HANDSHAKE_TIMEOUT:g} s")
        except BaseException:
            self.close()
            raise

    def call(self, method: Method, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a method; the result is converted to the interface's annotation."""
        try:
            reply, buffers = self._exchange_call(method.name, args, kwargs, method.carries_buffers)
            if not reply.success:
                raise failure_of(reply)
        except RPCError as exc:
            return self._failed(exc)
        return self._result(method, reply, buffers)

    def execute(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Call a method by name, without raising what the device raises."""
        reply, buffers = self._exchange_call(name, args, kwargs, True)
        if not reply.success:
            return False, (reply.error, reply.traceback)
        method = self.interface.methods.get(name)
        return True, reply.result if method is None else self._result(method, reply, buffers)

    def read(self, member: Property) -> Any:
        """Read a property."""
        try:
            reply = self._exchange_property(PropertyGet(property=member.name), member.carries_buffers)
        except RPCError as exc:
            return self._failed(exc)
        try:
            return member.load(reply.value)
        except TypeError as exc:
            raise TypeError(f"{member.name}: the server's value: {exc}") from exc

    def write(self, member: Property, value: Any) -> None:
        """Write a property."""
        self._exchange_property(PropertySet(property=member.name, value=value), False)

    def stop_server(self) -> None:
        """Stop the server."""
        self.calls.ask(StopServer(), self.timeout, "STOP_SERVER")

    def close(self) -> None:
        """Close everything; idempotent."""
        self.calls.close()
        for stream in [*self._streams]:
            stream.close()
        for listener in self._listeners:
            listener.stop()
        if self.receiver is not None:
            self.receiver.stop()
        self.transfer.close()

    def _inventory(self) -> Facts:
        try:
            inventory = self.calls.ask(GetInventory(), self.timeout, "GET_INVENTORY")
        except CallTimeout as exc:
            raise CallTimeout(
                f"no inventory from {self.calls.url} within {self.timeout:g} s: is a server running there?"
            ) from exc
        if inventory.epoch is UNSET or inventory.json_methods is UNSET:
            raise ProtocolError(f"{self.calls.url} is no server of protocol version 2")
        self.calls.epoch = inventory.epoch
        self._attach(inventory)
        if inventory.max_request is not UNSET:
            self.calls.max_request = inventory.max_request
        served = {*inventory.json_methods, *(inventory.buffer_methods or ()), *(inventory.properties or ())}
        missing = [name for name in self.interface if name not in served.union(inventory.signals or ())]
        if missing:
            raise InterfaceMismatch(
                f"{self.calls.url} ({inventory.name}) does not serve {', '.join(missing)} of {self.interface.name}"
            )
        return inventory

    def _attach(self, inventory: Facts) -> None:
        """Use the fastest way to the server that there is from here."""
        if inventory.ipc is not UNSET and _is_here(inventory.ipc):
            # Another host may have given that name to another server.
            same = Entry("", "", "", inventory.ipc, epoch=str(inventory.epoch))
            self.calls.use(answering(self._context, [inventory.ipc], self.timeout, same) or self.calls.url)
        self._near = self.calls.route if self.calls.route != self.calls.url else ""
        is_local = self.calls.route != self.calls.url or not self.calls.url.startswith("tcp://")
        self.transfer.attach(str(inventory.epoch), inventory.shm, is_local)

    def _exchange_call(
        self, name: str, args: list[Any], kwargs: dict[str, Any], carries_buffers: bool
    ) -> tuple[Reply, list[Any]]:
        request = MethodCall(method=name, params=Params(args, kwargs))
        return self._exchange(request, self._timeouts.get(name, self.timeout), name, carries_buffers)

    def _exchange_property(self, request: PropertyGet | PropertySet, carries_buffers: bool) -> Reply:
        reply, found = self._exchange(request, self.timeout, request.property, carries_buffers)
        if not reply.success:
            raise failure_of(reply)
        if found:
            reply.value = put_back(reply.value, found)
        return reply

    def _exchange(
        self, request: MethodCall | PropertyGet | PropertySet, timeout: float | None, name: str, carries_buffers: bool
    ) -> tuple[Reply, list[Any]]:
        """The reply, and the arrays and buffers of it."""
        parts = take_buffers(request)
        if carries_buffers or parts:
            self.transfer.sign(request)
        shared = False
        if not parts:
            reply, frames = self.calls.exchange(request, timeout, name, parse_reply)
        else:
            reply, frames, shared = self._exchange_parts(request, timeout, name, parts)
        if reply.epoch != self.transfer.epoch and reply.epoch is not UNSET:
            self._attach_again()
        elif self._near and self.calls.route != self._near:
            self.calls.use(self._near)  # a call that failed was the last one by it, but the server is there still
        if not frames and reply.buffers is UNSET:
            self.stats.note(name, SHARED_MEMORY if shared else self.calls.transport)
            return reply, []
        headers = [BufferHeader(size=len(frame)) for frame in frames] if reply.buffers is UNSET else reply.buffers
        shared = shared or any(header.slot is not None for header in headers)
        self.stats.note(name, SHARED_MEMORY if shared else self.calls.transport)
        try:
            return reply, self.transfer.receive(headers, frames)
        except BufferLost as exc:
            raise ReplyLost(f"{name} was executed; its reply was not fetched in time: {exc}") from exc

    def _exchange_parts(
        self, request: MethodCall | PropertyGet | PropertySet, timeout: float | None, name: str, parts: list[Part]
    ) -> tuple[Reply, list[memoryview], bool]:
        """The reply to a request with buffers, its frames, and whether the request went through shared memory."""
        request.buffers, frames, slots = self.transfer.load(parts)
        shared = bool(slots)
        try:
            reply, received = self.calls.exchange(request, timeout, name, parse_reply, frames)
        finally:
            slots.clear()  # not to be kept by the traceback of an exception
        if not shared or reply.success or reply.error_type != _BUFFER_LOST:
            return reply, received, shared
        # Another run of the server listens now; it has executed nothing.
        request.buffers, frames = [part.header for part in parts], [part.data for part in parts]
        reply, received = self.calls.exchange(request, timeout, name, parse_reply, frames)
        return reply, received, False

    def _attach_again(self) -> None:
        """The server was restarted, or has moved."""
        try:
            inventory = self.calls.ask(GetInventory(), self.timeout, "GET_INVENTORY")
            # Several threads may notice it: the second one must not take the memory from the streams of the first.
            with self._attaching:
                if inventory.epoch != self.transfer.epoch:
                    self._attach(inventory)
        except RPCError as exc:
            logger.debug("%s: buffers go through the socket until it answers: %s", self.calls.url, exc)

    def _open_streams(self) -> None:
        """Let the signals of the client open streams, and those that are streams only start one for listeners."""
        me = weakref.ref(self)
        for name, signal in self._signals.items():

            open_stream = partial(_open_stream, me, signal)
            listener = StreamListener(signal, open_stream) if name in self.interface.streamed else None
            if listener is not None:
                self._listeners.append(listener)
            signal.stream_by(open_stream, listener.listened if listener is not None else None)

    def _result(self, method: Method, reply: Reply, buffers: list[Any]) -> Any:
        if method.is_buffer:
            if not buffers:
                raise ProtocolError(f"{method.name}(): the reply holds no buffer")
            payload = buffers[-1]
            info = put_back(reply.info, buffers) if reply.buffers is not UNSET else reply.info
            return payload if isinstance(payload, memoryview) else flat_bytes(payload), info
        result = put_back(reply.result, buffers) if buffers else reply.result
        try:
            return method.load_result(result)
        except TypeError as exc:
            raise TypeError(f"{method.name}(): the server's result: {exc}") from exc

    def _failed(self, exc: RPCError) -> NoResult:
        """What a failed call returns, when it is to return anything."""
        try:
            if not self._returns_errors or isinstance(exc, ClientClosed):
                raise exc
            return NoResult(str(exc), getattr(exc, "traceback", ""))
        finally:
            del exc  # with its traceback it would hold itself, and the arguments of the call

    def _deliver(self, name: str, args: list[object]) -> None:
        signal = self._signals[name]
        try:
            converted = signal.validate_args(*args, coerce=True)
        except (TypeError, RuntimeError):
            logger.exception("an event of %s does not fit the interface", self.calls.url)
            return
        self.stats.note(name, self._event_path)
        signal.deliver(converted)

    def _resync(self, names: set[str]) -> set[str]:
        """Read again the properties whose notifications were lost; the names for which it has to be done again."""
        failed = set()
        for member in self.interface.properties.values():
            if member.notify is not None and member.notify in names:
                try:
                    request = PropertyGet(property=member.name)
                    value = self._exchange_property(request, member.carries_buffers).value
                except CallTimeout:
                    failed.add(member.notify)  # a busy device has time later
                except RPCError as exc:
                    logger.warning("%s cannot be read after lost events: %s", member.name, exc)
                else:
                    self._deliver(member.notify, [value])
        return failed


def _attach_again(me: "weakref.ref[ClientEngine]") -> None:
    engine = me()
    if engine is not None:
        engine._attach_again()


def _is_here(url: str) -> bool:
    try:
        return Address.parse(url).is_here
    except ValueError:
        return False  # whatever the server means by that, there is its other address


def _open_stream(
    me: "weakref.ref[ClientEngine]", signal: BoundSignal, policy: Policy, every: int, timeout: float | None
) -> StreamReader:
    engine = me()
    if engine is None or engine.calls.closed:
        raise ClientClosed("this client is closed")
    attach = partial(_attach_again, me)
    made = StreamReader(
        engine._context, engine.calls, engine.transfer, signal, engine.stats.note, attach, policy, every, timeout
    )
    engine._streams.add(made)
    return made
