"""RPCClient: a device of another process, used as if it were here."""

import logging
from abc import update_abstractmethods
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast

from decorator import FunctionMaker
from msgspec import UNSET

from .calls import LIVENESS, Calls, Locate
from .errors import CallTimeout, ClientClosed, InterfaceMismatch, NoResult, ProtocolError, RPCError
from .interface import Interface, Method, Property, UntilInit, refuse_reserved
from .messages import Facts, GetInventory, MethodCall, Params, PropertyGet, PropertySet, Reply, StopServer
from .properties import RPCProperty
from .signals import BoundSignal
from .sockets import ZmqContext, check_context
from .subscriber import HANDSHAKE_TIMEOUT, RPCSignalReceiver
from .wire import failure_of, parse_reply

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type)

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
    ) -> None:
        self.calls = Calls(context, url, liveness, locate)
        self.interface = interface
        self.timeout = timeout
        self.receiver: RPCSignalReceiver | None = None
        self._returns_errors = returns_errors
        self._signals = signals
        try:
            inventory = self._inventory()
            self.name = inventory.name
            known = {**(inventory.json_methods or {}), **(inventory.buffer_methods or {})}
            self._timeouts = {name: None if limit is None else limit / 1000 for name, limit in known.items()}
            if signals:
                self.receiver = RPCSignalReceiver(context, self.calls, signals, self._deliver, self._resync)
                self.receiver.start()
                if not self.receiver.subscribed.wait(HANDSHAKE_TIMEOUT):
                    raise CallTimeout(f"{url}: the signals could not be subscribed to within {HANDSHAKE_TIMEOUT:g} s")
        except BaseException:
            self.close()
            raise

    def call(self, method: Method, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a method; the result is converted to the interface's annotation."""
        try:
            reply, buffers = self._exchange_call(method.name, args, kwargs)
            if not reply.success:
                raise failure_of(reply)
        except RPCError as exc:
            return self._failed(exc)
        return self._result(method, reply, buffers)

    def execute(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Call a method by name, without raising what the device raises."""
        reply, buffers = self._exchange_call(name, args, kwargs)
        if not reply.success:
            return False, (reply.error, reply.traceback)
        method = self.interface.methods.get(name)
        return True, reply.result if method is None else self._result(method, reply, buffers)

    def read(self, member: Property) -> Any:
        """Read a property."""
        try:
            reply = self._exchange_property(PropertyGet(property=member.name))
        except RPCError as exc:
            return self._failed(exc)
        try:
            return member.load(reply.value)
        except TypeError as exc:
            raise TypeError(f"{member.name}: the server's value: {exc}") from exc

    def write(self, member: Property, value: Any) -> None:
        """Write a property."""
        self._exchange_property(PropertySet(property=member.name, value=value))

    def stop_server(self) -> None:
        """Stop the server."""
        self.calls.ask(StopServer(), self.timeout, "STOP_SERVER")

    def close(self) -> None:
        """Close everything; idempotent."""
        self.calls.close()
        if self.receiver is not None:
            self.receiver.stop()

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
        if inventory.max_request is not UNSET:
            self.calls.max_request = inventory.max_request
        served = {*inventory.json_methods, *(inventory.buffer_methods or ()), *(inventory.properties or ())}
        missing = [name for name in self.interface if name not in served.union(inventory.signals or ())]
        if missing:
            raise InterfaceMismatch(
                f"{self.calls.url} ({inventory.name}) does not serve {', '.join(missing)} of {self.interface.name}"
            )
        return inventory

    def _exchange_call(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> tuple[Reply, list[memoryview]]:
        request = MethodCall(method=name, params=Params(args, kwargs))
        return self.calls.exchange(request, self._timeouts.get(name, self.timeout), name, parse_reply)

    def _exchange_property(self, request: PropertyGet | PropertySet) -> Reply:
        reply, _ = self.calls.exchange(request, self.timeout, request.property, parse_reply)
        if not reply.success:
            raise failure_of(reply)
        return reply

    def _result(self, method: Method, reply: Reply, buffers: list[memoryview]) -> Any:
        if method.is_buffer:
            if len(buffers) != 1:
                raise ProtocolError(f"{method.name}(): the reply holds no buffer")
            return buffers[0], reply.info
        try:
            return method.load_result(reply.result)
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
                    value = self._exchange_property(PropertyGet(property=member.name)).value
                except CallTimeout:
                    failed.add(member.notify)  # a busy device has time later
                except RPCError as exc:
                    logger.warning("%s cannot be read after lost events: %s", member.name, exc)
                else:
                    self._deliver(member.notify, [value])
        return failed


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
    ) -> None:
        if self._interface is None:
            raise TypeError(f"{type(self).__name__} is abstract: decorate it with @RPCClient.register_interface(...)")
        check_context(context)
        if on_error not in ("raise", "return"):
            raise ValueError(f"on_error is 'raise' or 'return', not {on_error!r}")
        if not timeout > 0 or not liveness > 0:
            raise ValueError("timeout (ms) and liveness (s) are positive numbers")
        signals = {name: getattr(self, name) for name in self._interface.signals}
        self._rpc = ClientEngine(
            context, url, self._interface, signals, timeout / 1000, liveness, on_error == "return", locate
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
