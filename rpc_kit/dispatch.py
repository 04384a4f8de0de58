"""One request in, one reply out. No sockets, no threads."""

import itertools
import logging
import os
import traceback as tracebacks
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, final

from msgspec import UNSET, Struct

from .errors import CallExpired, DeviceExit, SerializationError, ServerReplaced, UnknownMember, type_name
from .interface import Interface, Method
from .journal import Journal
from .messages import (
    AnyRequest,
    GetInventory,
    InitSignals,
    InitStreams,
    Malformed,
    MethodCall,
    Ping,
    PropertyGet,
    PropertySet,
    StopServer,
)
from .wire import Buffer, Frames, ReplyWriter

logger = logging.getLogger(__name__)

TRACEBACK_FRAMES = 10
LONGEST_TRACEBACK = 100_000

_HERE = os.path.dirname(__file__) + os.sep


@final
class Pending(Struct):
    """A reply that comes later: what `finish` makes of the future's result."""

    future: "Future[Any]"
    finish: Callable[[Any], Frames]


Handler = Callable[[Any], Frames | Pending]


class Host(Protocol):
    """What the dispatcher needs to know of the server around it."""

    max_request: int
    """Largest size of a request, bytes."""

    def server_name(self) -> str:
        """Name of the server, as registered."""

    def open_signals(self, version: int) -> dict[str, Any]:
        """Where signals are published, as keys of the reply to INIT_SIGNALS_HANDLING."""

    def open_streams(self) -> dict[str, Any]:
        """Where streams are asked for, as keys of the reply to INIT_STREAMS."""

    def local_routes(self) -> dict[str, Any]:
        """Faster ways to this server for clients on the same host, as keys of the inventory."""

    def load(self) -> dict[str, Any]:
        """What the server gives away at present, as keys of the reply to PING."""

    def request_stop(self) -> None:
        """Stop the server after the current reply; raises PermissionError when that is not allowed."""

    def current_call(self) -> tuple[dict[str, Any] | None, int]:
        """The running call as ``{member, seconds}``, and how many are queued."""


class Dispatcher:
    """Answers the requests to one device.

    Parameters
    ----------
    device
        The object whose members are called.
    interface
        Its declared members: nothing else is reachable.
    host
        The server around the device.
    writer
        Makes the replies.
    control
        Further messages that are answered at once, also while a method runs: message type to handler.
    """

    def __init__(
        self,
        device: object,
        interface: Interface,
        host: Host,
        writer: ReplyWriter,
        control: Mapping[type, Handler] | None = None,
    ) -> None:
        self.journal = Journal()
        self._pid = os.getpid()
        self._device = device
        self._interface = interface
        self._host = host
        self._writer = writer
        self._handlers: dict[type, Handler] = {
            MethodCall: self._method_call,
            PropertyGet: self._property_get,
            PropertySet: self._property_set,
            GetInventory: self._inventory,
            InitSignals: self._init_signals,
            InitStreams: self._init_streams,
            Ping: self._ping,
            StopServer: self._stop_server,
            Malformed: self._malformed,
            **(control or {}),
        }

    def is_call(self, request: AnyRequest) -> bool:
        """Whether the request runs code of the device; all others are answered at once, by any thread."""
        if type(request) is MethodCall:
            return request.method in self._interface.methods
        return isinstance(request, (PropertyGet, PropertySet)) and request.property in self._interface.properties

    def answer(self, request: AnyRequest) -> Frames | Pending:
        """The reply to any request, never an exception."""
        try:
            return self._handlers.get(type(request), _unknown)(request)
        except BaseException as exc:  # noqa: B036 - raised again in a forked process
            return self._caught(request, exc)

    def settle(self, request: AnyRequest, pending: Pending) -> Frames:
        """The reply to a request whose future is done, never an exception."""
        try:
            return pending.finish(pending.future.result(0))
        except BaseException as exc:  # noqa: B036 - raised again in a forked process
            return self._caught(request, exc)

    def _caught(self, request: AnyRequest, exc: BaseException) -> Frames:
        if isinstance(exc, Exception):
            return self.failure(request, exc)
        if os.getpid() != self._pid:
            raise exc  # a process that the method forked is to end
        # SystemExit and KeyboardInterrupt of a device method end the call, not the server.
        return self.failure(request, DeviceExit(exc))

    def never_came(self, request: AnyRequest) -> bool:
        """Whether a request whose id is unknown cannot have been executed before: it is new, or sent late enough."""
        if request.since is UNSET:
            return True
        epoch, since = request.since
        return epoch == self._writer.epoch and self.journal.covers(since)

    def failure(self, request: AnyRequest, exc: Exception) -> Frames:
        """The reply for a request that failed."""
        try:
            return self._writer.failure(request, _text(exc), type_name(exc), _traceback(exc))
        except Exception:
            logger.exception("a failure cannot be told as it is")
            return self._writer.failure(request, f"the call failed with {type(exc).__name__!a}")

    def is_for_another(self, request: AnyRequest) -> bool:
        """Whether a call is meant for another server, or another run of this one."""
        return request.epoch not in (UNSET, self._writer.epoch)

    def replaced(self, request: AnyRequest) -> Frames:
        """The reply for a call that is meant for another server."""
        return self.failure(request, ServerReplaced(f"{member_of(request)}: another server listens here now"))

    def expired(self, request: AnyRequest) -> Frames:
        """The reply for a call that waited in the queue for longer than its caller."""
        return self.failure(request, CallExpired(f"{member_of(request)}: the caller's time ran out in the queue"))

    def _method_call(self, request: MethodCall) -> Frames | Pending:
        method = self._interface.methods.get(request.method)
        if method is None:
            raise UnknownMember(f"Method {request.method[:100]} not implemented")
        args, kwargs = method.bind(request.params.args, request.params.kwargs)
        result = getattr(self._device, method.name)(*args, **kwargs)
        if isinstance(result, Future):
            return Pending(result, partial(self._result, request, method))
        return self._result(request, method, result)

    def _result(self, request: MethodCall, method: Method, result: Any) -> Frames:
        if method.is_buffer:
            return self._buffer_reply(request, method, result)
        try:
            return self._writer.result(request, result)
        except (TypeError, ValueError, RecursionError) as exc:
            raise SerializationError(f"{method.name}(): its result of type {type(result).__name__}: {exc}") from exc

    def _buffer_reply(self, request: MethodCall, method: Method, result: Any) -> Frames:
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise SerializationError(
                f"{method.name}(): a buffer method returns (buffer, dict), not {type(result).__name__}"
            )
        payload, info = _flat(method, result[0]), result[1]
        try:
            return self._writer.buffer(request, payload, info)
        except (TypeError, ValueError, RecursionError) as exc:
            raise SerializationError(f"{method.name}(): its info: {exc}") from exc

    def _property_get(self, request: PropertyGet) -> Frames:
        member = self._interface.properties.get(request.property)
        if member is None:
            raise UnknownMember(f"Property {request.property[:100]} not implemented")
        value = getattr(self._device, member.name)
        try:
            return self._writer.value(request, value)
        except (TypeError, ValueError, RecursionError) as exc:
            raise SerializationError(f"{member.name}: its value of type {type(value).__name__}: {exc}") from exc

    def _property_set(self, request: PropertySet) -> Frames:
        member = self._interface.properties.get(request.property)
        if member is None:
            raise UnknownMember(f"Property {request.property[:100]} not implemented")
        try:
            value = member.load(request.value)
        except TypeError as exc:
            raise TypeError(f"{member.name}: {exc}") from exc
        setattr(self._device, member.name, value)
        return self._writer.done(request)

    def _inventory(self, request: GetInventory) -> Frames:
        inventory = {**self._interface.inventory(), "name": self._host.server_name()}
        if request.id is not UNSET:
            inventory.update(max_request=self._host.max_request, **self._host.local_routes())
        return self._writer.inventory(request, inventory)

    def _init_signals(self, request: InitSignals) -> Frames:
        return self._writer.done(request, **self._host.open_signals(1 if request.id is UNSET else 2))

    def _init_streams(self, request: InitStreams) -> Frames:
        return self._writer.done(request, **self._host.open_streams())

    def _ping(self, request: Ping) -> Frames:
        busy, queued = self._host.current_call()
        facts: dict[str, Any] = {"epoch": self._writer.epoch, "busy": busy, "queued": queued}
        facts.update(self._host.load())
        if request.call is not UNSET:
            facts.update(call=self.journal.state(request.call), clock=self.journal.clock())
        return self._writer.done(request, **facts)

    def _stop_server(self, request: StopServer) -> Frames:
        self._host.request_stop()
        return self._writer.done(request)

    def _malformed(self, request: Malformed) -> Frames:
        return self.failure(request, request.error)


def _unknown(request: AnyRequest) -> Frames:
    raise UnknownMember(f"unknown event {request.__struct_config__.tag!r}")


def member_of(request: AnyRequest) -> str:
    """The member that a call names; empty for all other requests."""
    if type(request) is MethodCall:
        return request.method
    return request.property if isinstance(request, (PropertyGet, PropertySet)) else ""


def _flat(method: Method, payload: Any) -> Buffer:
    """A view of the payload, without a copy."""
    try:
        view = memoryview(payload)
        if getattr(getattr(view.obj, "dtype", None), "hasobject", False):
            raise TypeError("it holds Python objects")
        if not view.c_contiguous:
            raise TypeError("copy it first")
        return view
    except (TypeError, ValueError) as exc:
        raise SerializationError(
            f"{method.name}(): {type(payload).__name__} is no C-contiguous buffer: {exc}"
        ) from exc


def _text(exc: Exception) -> str:
    try:
        # A KeyError's text is the repr of its key; everything else's is what it says.
        return str(exc)
    except BaseException:  # noqa: B036
        return f"{type(exc).__name__} (its text cannot be made)"


def _traceback(exc: BaseException) -> str:
    """At most ten frames, innermost last; empty when no code of the device was reached."""
    shown = exc.cause if isinstance(exc, DeviceExit) else exc
    try:
        trace = tracebacks.TracebackException.from_exception(shown, limit=-TRACEBACK_FRAMES)
    except BaseException:  # noqa: B036
        return ""  # an exception may do anything when it is looked at
    ours = itertools.takewhile(lambda frame: frame.filename.startswith(_HERE), trace.stack)
    stack = trace.stack[len(list(ours)) :]
    if not stack:
        return ""
    trace.stack = tracebacks.StackSummary.from_list(stack)
    return "".join(trace.format())[-LONGEST_TRACEBACK:]
