"""RPCClient: a device of another process, used as if it were here."""

import logging
from abc import update_abstractmethods
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, cast

from decorator import FunctionMaker
from msgspec import UNSET, UnsetType

from .calls import LIVENESS, Locate
from .client_engine import ClientEngine
from .compression import Codec
from .compression import check as check_codec
from .interface import Interface, Method, Property, UntilInit, refuse_reserved
from .properties import RPCProperty
from .sockets import ZmqContext, check_context
from .stats import ClientStats

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=type)

if TYPE_CHECKING:
    # Any as a base lets mypy instantiate a client although its interface is abstract: the stubs come at run time.
    _Base = Any
else:
    _Base = object


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
