"""The error tree: one base class, and each error is also the builtin a Python user would catch."""

import builtins
from functools import lru_cache


class RPCError(Exception):
    """Base class of every error that rpc_kit raises on its own account."""


class ProtocolError(RPCError, ValueError):
    """What arrived is not a message of the wire protocol."""


class MessageTooLarge(ProtocolError):
    """A request is larger than the server accepts; nothing was executed."""


class UnknownMember(RPCError, AttributeError):
    """The interface declares no such method, property or signal."""


class SerializationError(RPCError, TypeError):
    """A value cannot be sent; the text names the member and the type."""


class CallTimeout(RPCError, TimeoutError):
    """No reply before the deadline; the call may still be running on the device."""


class CallExpired(RPCError, TimeoutError):
    """The caller's time ran out while the call was queued; it was not executed."""


class ServerLost(RPCError, ConnectionError):
    """The server died, restarted or cannot be reached; the call may or may not have been executed."""


class ServerReplaced(RPCError, ConnectionError):
    """The server is not, or no longer, the one that the caller means; the call was not executed."""


class ServerBusy(RPCError, ConnectionError):
    """Too many calls are queued at the server; this one was not executed."""


class ServerStopping(RPCError, ConnectionError):
    """The server is shutting down; the call was not executed."""


class ReplyLost(RPCError, ConnectionError):
    """The reply got lost, and the server no longer keeps it; the call was executed, or may have been: the text says."""


class BufferLost(RPCError, ConnectionError):
    """What lay in shared memory is no longer there."""


class ClientClosed(RPCError, RuntimeError):
    """The client, or the process it was made in, is not usable any more."""


class InterfaceError(RPCError, TypeError):
    """An interface class declares something that cannot be served."""


class InterfaceMismatch(RPCError, TypeError):
    """The server lacks members of the client's interface."""


class DeviceNotFound(RPCError, LookupError):
    """The registry knows no device of that name."""


class RegistryUnreachable(RPCError, ConnectionError):
    """No registry answered at the given url."""


class NoRegistry(RPCError, LookupError):
    """No registry is named anywhere, and none was found in the network."""


class MissingExtra(RPCError, ImportError):
    """An optional package is not installed; the text says how to install it."""


class RegistryRefused(RPCError, ValueError):
    """A registry does not accept what a device says of itself; the text says why."""


class StoreError(RPCError, OSError):
    """What a registry knows cannot be read or kept; the text says where, why, and what to do."""


class RemoteError(RPCError):
    """An exception that a device raised, seen from the client.

    When the remote type is a builtin exception (or one of this module), the object raised is an instance of that type
    too, so that ``except ValueError`` works across processes.

    Attributes
    ----------
    error_type : str
        Qualified name of the remote exception; empty when the server does not say.
    traceback : str
        The remote traceback, at most ten frames; shown below the local one when the exception is printed.
    """

    def __init__(self, error: str, error_type: str = "", traceback: str = "") -> None:
        # Builtins such as UnicodeDecodeError want other arguments in their own __init__: it is passed over.
        Exception.__init__(self, error)
        self.error_type = error_type
        self.traceback = traceback
        if traceback:
            self.add_note(f"Remote traceback:\n{traceback.rstrip()}")

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, tuple[str, str, str]]:
        return remote_error, (str(self), self.error_type, self.traceback)


class NoResult:
    """What a proxy returns instead of raising when the client was made with ``on_error="return"``; falsy.

    Attributes
    ----------
    error, traceback : str
        Text and traceback of the failure.
    """

    __slots__ = ("error", "traceback")

    def __init__(self, error: str = "", traceback: str = "") -> None:
        self.error = error
        self.traceback = traceback

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"NoResult({self.error!r})"


class DeviceExit(RPCError):
    """A device method raised SystemExit, KeyboardInterrupt or the like: it ends the call, never the server."""

    def __init__(self, cause: BaseException) -> None:
        try:
            text = str(cause)
        except BaseException:  # noqa: B036
            text = "(its text cannot be made)"
        super().__init__(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)
        self.cause = cause


def type_name(exc: BaseException) -> str:
    """The name by which an exception's type travels: plain for builtins, qualified for all others."""
    if isinstance(exc, RemoteError):
        return str(exc.error_type)
    kind = type(exc.cause if isinstance(exc, DeviceExit) else exc)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


# Left out: what would end a client's loop or process instead of being seen as an error.
_NEVER_REBUILT = (StopIteration, StopAsyncIteration)
_REBUILT: dict[str, type[Exception]] = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, _NEVER_REBUILT)
}
_REBUILT |= {
    f"{kind.__module__}.{kind.__qualname__}": kind
    for kind in (
        ProtocolError, MessageTooLarge, UnknownMember, SerializationError, CallExpired, ServerReplaced, ServerBusy,
        ServerStopping, ReplyLost, MissingExtra, BufferLost, DeviceNotFound, InterfaceError, StoreError,
    )
}  # fmt: skip


@lru_cache(maxsize=None)
def _remote_class(error_type: str) -> type[RemoteError]:
    kind = _REBUILT[error_type]
    try:
        made = type(f"Remote{kind.__name__}", (RemoteError, kind), {"__doc__": f"A remote {error_type}."})
        made("probe")
    except TypeError:  # exception groups insist on their exceptions
        return RemoteError
    return made


def remote_error(error: str, error_type: str = "", traceback: str = "") -> RemoteError:
    """The exception to raise for a failure reply."""
    made = _remote_class(error_type) if error_type in _REBUILT else RemoteError
    return made(error, error_type, traceback)
