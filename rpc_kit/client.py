"""RPCClient: a device of another process, used as if it were here."""

import logging
import weakref
from abc import update_abstractmethods
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast

from decorator import FunctionMaker
from msgspec import UNSET, UnsetType

from .addresses import Address
from .buffers import Part, flat_bytes, put_back
from .calls import LIVENESS, Calls, Locate
from .compression import Codec
from .compression import check as check_codec
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
from .interface import Interface, Method, Property, UntilInit, refuse_reserved
from .messages import (
    BufferHeader,
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
from .properties import RPCProperty
from .signals import BoundSignal
from .sockets import ZmqContext, check_context, nearest
from .stats import ClientStats
from .stream_reader import StreamListener, StreamReader
from .subscriber import HANDSHAKE_TIMEOUT, RPCSignalReceiver
from .transfer import SHARED_MEMORY, ClientTransfer
from .wire import failure_of, parse_reply, take_buffers

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type)

_BUFFER_LOST = type_name(BufferLost())

if TYPE_CHECKING:
    # Any as a base lets mypy instantiate a client although its interface is abstract: the stubs come at run time.
    _Base = Any
else:
    _Base = object


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
        near = nearest(Address.parse(self.calls.url)) if inventory.ipc is not UNSET else None
        if near is not None and str(near) == inventory.ipc:
            self.calls.route = inventory.ipc
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
        if not parts:
            reply, frames = self.calls.exchange(request, timeout, name, parse_reply)
            shared = False
        else:
            reply, frames, shared = self._exchange_parts(request, timeout, name, parts)
        if reply.epoch is not UNSET and reply.epoch != self.transfer.epoch:
            self._attach_again()
        headers = reply.buffers
        if headers is UNSET:
            headers = [BufferHeader(size=len(frame)) for frame in frames]
        shared = shared or any(header.slot is not None for header in headers)
        self.stats.note(name, SHARED_MEMORY if shared else self.calls.transport)
        if not headers:
            return reply, []
        try:
            return reply, self.transfer.receive(headers, frames)
        except BufferLost as exc:
            raise ReplyLost(f"{name} was executed; its reply was not fetched in time: {exc}") from exc

    def _exchange_parts(
        self, request: MethodCall | PropertyGet | PropertySet, timeout: float | None, name: str, parts: list[Part]
    ) -> tuple[Reply, list[memoryview], bool]:
        """The reply to a request with buffers, its frames, and whether the request went through shared memory."""
        request.buffers, frames, slots = self.transfer.load(parts)
        reply, received = self.calls.exchange(request, timeout, name, parse_reply, frames)
        if not slots or reply.success or reply.error_type != _BUFFER_LOST:
            return reply, received, bool(slots)
        # Another run of the server listens now; it has executed nothing.
        request.buffers, frames = [part.header for part in parts], [part.data for part in parts]
        reply, received = self.calls.exchange(request, timeout, name, parse_reply, frames)
        return reply, received, False

    def _attach_again(self) -> None:
        """The server was restarted, or has moved."""
        try:
            self._attach(self.calls.ask(GetInventory(), self.timeout, "GET_INVENTORY"))
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
            info = put_back(reply.info, buffers) if len(buffers) > 1 else reply.info
            return payload if isinstance(payload, memoryview) else flat_bytes(payload), info
        result = put_back(reply.result, buffers) if buffers else reply.result
        try:
            return method.load_result(result)
        except TypeError as exc:
            raise TypeError(f"{method.name}(): the server's result: {exc}") from exc

    def _failed(self, exc: RPCError) -> NoResult:
        """What a failed call returns, when it is to return anything."""
        if not self._returns_errors or isinstance(exc, ClientClosed):
            raise exc
        return NoResult(str(exc), getattr(exc, "traceback", ""))

    def _deliver(self, name: str, args: list[object]) -> None:
        signal = self._signals[name]
        try:
            converted = signal.validate_args(*args, coerce=True)
        except (TypeError, RuntimeError):
            logger.exception("an event of %s does not fit the interface", self.calls.url)
            return
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


def _open_stream(
    me: "weakref.ref[ClientEngine]", signal: BoundSignal, policy: Policy, every: int, timeout: float | None
) -> StreamReader:
    engine = me()
    if engine is None or engine.calls.closed:
        raise ClientClosed("this client is closed")
    made = StreamReader(
        engine._context, engine.calls, engine.transfer, signal, engine.stats.note, policy, every, timeout
    )
    engine._streams.add(made)
    return made


class RPCClient(_Base):  # type: ignore[misc]
    """Mixin that makes a client of an interface class::

        @RPCClient.register_interface(Camera)
        class CameraClient(Camera, RPCClient):
            pass

    A client may be used from many threads. It is closed by `close`, by leaving its `with` block, or when forgotten.

    Parameters
    ----------
    context : zmq.Context
    url : str
        Where the server listens, such as ``tcp://host:9000``.
    timeout : int, default 1000
        How long to wait for everything that is no method call, ms; methods have their own limits.
    on_error : {"raise", "return"}, default "raise"
        With "return" a failed method call or property read gives a `NoResult` instead of raising.
    liveness : float, default 3.0
        Within this time the death of the server is noticed during a call of any length, s.
    locate : callable, optional
        Asked for the registered device when nothing answers at `url` any more; `connect` gives one.
    codec : {"jpeg", "zlib"}, optional
        How arrays and buffers of 4 KiB or more are compressed that come from another host; never on one host. jpeg is
        for pictures of uint8 and needs simplejpeg at both ends (``pip install rpc-kit[images]``); zlib is for anything,
        without loss.
    quality : int, default 90
        Of jpeg, 1 to 100.

    Raises
    ------
    TimeoutError
        When no inventory comes.
    InterfaceMismatch
        When the server lacks members of the interface.
    """

    _interface: ClassVar[Interface | None] = None
    _rpc: ClientEngine = cast(Any, UntilInit())

    def __init__(
        self,
        context: ZmqContext,
        url: str,
        timeout: int = 1000,
        *,
        on_error: Literal["raise", "return"] = "raise",
        liveness: float = LIVENESS,
        locate: Locate | None = None,
        codec: Literal["jpeg", "zlib"] | None = None,
        quality: int = 90,
    ) -> None:
        if self._interface is None:
            raise TypeError(f"{type(self).__name__} is abstract: decorate it with @RPCClient.register_interface(...)")
        check_context(context)
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error is 'raise' or 'return', not {on_error!r}")
        if not timeout > 0 or not liveness > 0:
            raise ValueError("timeout (ms) and liveness (s) are positive numbers")
        wanted: Codec | UnsetType = UNSET
        if codec is not None:
            check_codec(wanted := Codec(codec, quality))
        signals = {name: getattr(self, name) for name in self._interface.signals}
        self._rpc = ClientEngine(
            context, url, self._interface, signals, timeout / 1000, liveness, on_error == "return", locate, wanted
        )

    @staticmethod
    def register_interface(interface: type) -> Callable[[C], C]:
        """Give a client class the members of `interface`, with its signatures and docstrings.

        Raises
        ------
        RuntimeError
            When the class does not inherit from both `interface` and RPCClient.
        InterfaceError
            When the interface declares something that cannot be served.
        """

        if isinstance(interface, type) and issubclass(interface, RPCClient):
            raise TypeError("write @RPCClient.register_interface(Interface): the interface is missing")

        def register(cls: C) -> C:
            if not (isinstance(cls, type) and issubclass(cls, interface) and issubclass(cls, RPCClient)):
                name = getattr(cls, "__name__", cls)
                raise RuntimeError(f"{name} must inherit from {interface.__name__} and from RPCClient")
            described = Interface.of(interface)
            refuse_reserved(described, interface)
            for method in described.methods.values():
                setattr(cls, method.name, _method_stub(method))
            for member in described.properties.values():
                setattr(cls, member.name, _property_stub(member))
            cls._interface = described
            update_abstractmethods(cls)
            return cls

        return register

    @property
    def name(self) -> str:
        """Name of the server, as registered."""
        return self._rpc.name

    @property
    def url(self) -> str:
        """Where the server listens."""
        return self._rpc.calls.url

    @property
    def events_lost(self) -> int:
        """How many events of signals are known to be lost; notifying properties were read again then."""
        return self._rpc.receiver.lost if self._rpc.receiver is not None else 0

    def execute(self, method: str, params: dict[str, Any]) -> tuple[bool, Any]:
        """Call a method by its name.

        Parameters
        ----------
        params : dict
            ``{"args": [...], "kwargs": {...}}``; both may be missing.

        Returns
        -------
        tuple
            ``(True, result)``, or ``(False, (error, traceback))`` when the server replies with a failure.

        Raises
        ------
        TimeoutError
            When there is no reply in time.
        """
        return self._rpc.execute(method, list(params.get("args", ())), dict(params.get("kwargs", {})))

    def stop_server(self) -> None:
        """Stop the server.

        Raises
        ------
        PermissionError
            When the server does not allow it.
        """
        self._rpc.stop_server()

    def stats(self) -> ClientStats:
        """Which path the calls and events of each member took, counted since the client was made.

        The paths are ``shm`` when arrays went through shared memory, else ``ipc``, ``tcp`` or ``inproc``.
        """
        return self._rpc.stats.copy()

    def close(self) -> None:
        """Close the client; calls that wait in other threads end with `ClientClosed`. Idempotent."""
        self._rpc.close()

    def __setattr__(self, name: str, value: Any) -> None:
        described = type(self)._interface
        if described is not None and (name in described.methods or name in described.signals):
            raise AttributeError(f"{name} is a member of the interface, and nothing to assign to")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        where = f"of {self.name} at {self.url}" if "_rpc" in self.__dict__ else "not connected"
        return f"<{type(self).__name__} {where}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_rpc" in self.__dict__:
            self._rpc.close()


def _method_stub(method: Method) -> Any:
    """A function with the signature of the interface's, whose body is one call of the engine."""
    me, args, kwargs = method.parameter_lists()
    if method.trailing_defaults:
        args = f"_method_.without_defaults({args})"
    if kwargs != "{}":
        kwargs = f"_method_.without_keyword_defaults({kwargs})"
    stub: Any = FunctionMaker.create(
        method.function,
        f"return {me}._rpc.call(_method_, {args}, {kwargs})",
        {"_method_": method},
        __wrapped__=method.function,
    )
    stub.__isabstractmethod__ = False
    return stub


def _property_stub(member: Property) -> RPCProperty[Any]:
    declared = member.declared

    def read(self: RPCClient) -> Any:
        return self._rpc.read(member)

    def write(self: RPCClient, value: Any) -> None:
        self._rpc.write(member, value)

    read.__name__ = member.name
    return RPCProperty(
        read, write if declared.fset is not None else None, doc=declared.__doc__, notify=declared.notify
    )
