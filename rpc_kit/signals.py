"""Signals: declared on an interface class, bound once per device object."""

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any, Literal, Protocol, Self
from weakref import WeakMethod

from .convert import Load, converter, is_instance_of_generic

logger = logging.getLogger(__name__)

Listener = Callable[..., object]


Policy = Literal["all", "latest", "every"]


class SignalStream(Protocol):
    """Events of a signal, one after the other."""

    @property
    def received(self) -> int:
        """Events that were given."""

    @property
    def dropped(self) -> int:
        """Events that were wanted, but not given: with "latest" those between the ones that were."""

    def __iter__(self) -> Self: ...

    def __next__(self) -> Any: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Any: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...

    def close(self) -> None:
        """End the stream, also one that another thread waits for; idempotent."""


StreamOpener = Callable[[Policy, int, float | None], SignalStream]


class BoundSignal:
    """A signal of one device object: listeners connect to it, the device emits it.

    Parameters
    ----------
    *arg_types
        The types of the arguments, one for each; anything that ``coerce_to_generic`` takes.
    """

    def __init__(self, *arg_types: Any) -> None:
        self.arg_types = arg_types
        self.name = ""
        self._loads: tuple[Load, ...] = ()
        self.connections: list[Listener | WeakMethod[Any]] = []
        self._lock = Lock()
        self._publish: Callable[[tuple[Any, ...]], None] | None = None
        self._open_stream: StreamOpener | None = None
        self._listened: Callable[[], None] | None = None

    def connect(self, conn: Listener | WeakMethod[Any]) -> None:
        """Call `conn` at every emission; connecting it again changes nothing.

        Parameters
        ----------
        conn
            A callable, or a ``weakref.WeakMethod``, which does not keep its object alive.

        Raises
        ------
        TypeError
            When `conn` is neither.
        """
        if not callable(conn):
            raise TypeError(f"a signal connects to a callable or a weakref.WeakMethod, not to {type(conn).__name__}")
        with self._lock:
            if conn not in self.connections:
                # A new list, so that an emission under way in another thread is not disturbed.
                self.connections = [*self.connections, conn]
        if self._listened is not None:
            self._listened()

    def disconnect(self, conn: Listener | WeakMethod[Any] | None = None) -> None:
        """Forget `conn`, or every connection when it is None.

        Raises
        ------
        ValueError
            When `conn` is not connected.
        """
        with self._lock:
            if conn is None:
                self.connections = []
            elif conn in self.connections:
                self.connections = [other for other in self.connections if other != conn]
            else:
                raise ValueError(f"{conn!r} is not connected to the signal {self.name or self!r}")

    def emit(self, *args: Any) -> None:
        """Publish the event and call the listeners in the order of their connection.

        Raises
        ------
        RuntimeError
            On a wrong number of arguments.
        TypeError
            On an argument that is not, and cannot be coerced to, the declared type.
        Exception
            Whatever a listener raises; remote clients have been served before.
        """
        args = self.validate_args(*args, coerce=True)
        if self._publish is not None:
            self._publish(args)
        for listener in self._alive():
            listener(*args)

    def deliver(self, args: tuple[Any, ...]) -> None:
        """Call every listener; one that raises is logged and does not keep the event from the others."""
        for listener in self._alive():
            try:
                listener(*args)
            except BaseException:  # noqa: B036 - a sys.exit() in a listener must not end the receiver
                logger.exception("listener %r of signal %s failed", listener, self.name)

    def validate_args(self, *args: Any, coerce: bool = False) -> tuple[Any, ...]:
        """The arguments as a tuple, checked against (or with `coerce` converted to) the declared types.

        Raises
        ------
        RuntimeError
            On a wrong number of arguments.
        TypeError
            On a wrong type.
        """
        if len(args) != len(self.arg_types):
            raise RuntimeError(f"signal {self.name} takes {len(self.arg_types)} arguments, got {len(args)}")
        if coerce:
            if len(self._loads) != len(args):
                self._loads = tuple(map(converter, self.arg_types))
            try:
                return tuple([load(arg) for load, arg in zip(self._loads, args)])
            except TypeError as exc:
                raise TypeError(f"signal {self.name}: {exc}") from exc
        for number, (arg, expected) in enumerate(zip(args, self.arg_types), 1):
            if not is_instance_of_generic(arg, expected):
                raise TypeError(f"signal {self.name}: argument {number} must be {expected}, got {type(arg).__name__}")
        return args

    def stream(
        self, policy: Policy = "latest", *, every: int = 1, timeout: float | None = None
    ) -> SignalStream:
        """The events from now on, one after the other: ``for frame in camera.frames.stream():``.

        Each gives the argument of the signal, or a tuple when it has several. A slow reader holds up neither the
        device nor other readers.

        Parameters
        ----------
        policy : {"latest", "all", "every"}, default "latest"
            At each time the newest event, which is given once; all events in their order, as long as the reader does
            not lag behind by too many; or each `every`-th one.
        every : int, default 1
            Of the policy "every".
        timeout : float, optional
            How long to wait for an event, s; None for as long as the server lives.

        Returns
        -------
        SignalStream
            Also for ``async for``; to be closed by `close`, by leaving its ``with`` block, or when forgotten.

        Raises
        ------
        RuntimeError
            When this is not the signal of a client.
        ValueError
            When the policy is none.
        RPCError
            When the server does not open the stream.
        """
        if self._open_stream is None:
            raise RuntimeError(f"the signal {self.name} is here: connect to it; a client of the device streams it")
        if policy not in ("all", "latest", "every"):
            raise ValueError(f"a policy is 'latest', 'all' or 'every', not {policy!r}")
        if type(every) is not int or every < 1 or (every > 1 and policy != "every"):
            raise ValueError(f"every is a positive int, used with the policy 'every'; got {every!r} with {policy!r}")
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
            raise ValueError(f"timeout is a positive number of seconds or None, not {timeout!r}")
        return self._open_stream(policy, every, timeout)

    def stream_by(self, opener: StreamOpener, listened: Callable[[], None] | None) -> None:
        """Set how a client opens streams of the signal, and what it does when a listener was connected."""
        self._open_stream = opener
        self._listened = listened

    @property
    def has_listeners(self) -> bool:
        """Whether any connection is to something that is alive."""
        return bool(self._alive())

    def publish_to(self, hook: Callable[[tuple[Any, ...]], None] | None) -> None:
        """Set the one hook that carries events to remote clients; None removes it."""
        self._publish = hook

    def _alive(self) -> list[Listener]:
        found: list[Listener] = []
        for conn in self.connections:
            listener = conn() if isinstance(conn, WeakMethod) else conn
            if listener is not None:
                found.append(listener)
        return found


class RPCSignal(BoundSignal):
    """Declaration of a signal on an interface class: ``exposure_changed = RPCSignal(float)``.

    Each device object (and each client) has a `BoundSignal` of its own, which is what ``device.exposure_changed``
    gives. A signal that stands on no class can be used by itself.

    Parameters
    ----------
    *arg_types
        The types of the arguments, one for each.
    """

    def __init__(self, *arg_types: Any) -> None:
        super().__init__(*arg_types)
        self._owner = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self._owner = owner.__name__

    def __get__(self, device: object | None, owner: type | None = None) -> "BoundSignal":
        if device is None:
            return self
        bound = BoundSignal(*self.arg_types)
        bound.name = self.name
        # Atomic: two threads that come first at the same time get one and the same signal.
        made: BoundSignal = device.__dict__.setdefault(self.name, bound)
        return made

    def connect(self, conn: Listener | WeakMethod[Any]) -> None:
        self._refuse_declaration("connect")
        super().connect(conn)

    def emit(self, *args: Any) -> None:
        self._refuse_declaration("emit")
        super().emit(*args)

    def _refuse_declaration(self, what: str) -> None:
        if self._owner:
            raise TypeError(
                f"{self._owner}.{self.name} is only the declaration of a signal: {what} on a device object instead"
            )
