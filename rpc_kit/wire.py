"""Frames to messages and back (docs/wire.md). No sockets, no state."""

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from . import messages
from .convert import decode_json, encode_json, encode_null
from .errors import (
    MessageTooLarge,
    ProtocolError,
    RegistryRefused,
    SerializationError,
    StoreError,
    remote_error,
    type_name,
)
from .messages import (
    AnyRequest,
    EventType,
    Facts,
    Malformed,
    MethodCall,
    Reply,
    Request,
    RequestId,
    RPCEvents,
    SignalEvent,
    Subscribed,
)

Buffer = bytes | bytearray | memoryview
Frames = list[Buffer]
T = TypeVar("T")

MAX_FRAMES = 64
"""More frames than this in one request are not even kept for the error reply."""

_requests: "msgspec.json.Decoder[Request]" = msgspec.json.Decoder(
    reduce(
        operator.or_,
        (
            MethodCall, messages.PropertyGet, messages.PropertySet, messages.GetInventory, messages.InitSignals,
            messages.StopServer, messages.Ping, messages.Register, messages.Unregister, messages.CheckAlive,
            messages.Renew,
        ),
    )
)  # fmt: skip
LONGEST_LOOK = 1 << 20
"""A larger body that is no request is not looked at again to say more, bytes."""

_EVENTS = {*map(str, RPCEvents), *map(str, EventType)}
_replies = msgspec.json.Decoder(Reply)
_facts = msgspec.json.Decoder(Facts)
_events = msgspec.json.Decoder(SignalEvent)
_subscribed = msgspec.json.Decoder(Subscribed)
_registry_replies = msgspec.json.Decoder(dict[str, Any])
_STORE_ERROR = type_name(StoreError())
_anything = msgspec.json.Decoder()


def parse_request(frames: Sequence[Buffer], limit: int) -> AnyRequest:
    """The request that the frames hold, or a Malformed with the error to reply; never raises.

    Parameters
    ----------
    limit
        The largest size of a request, bytes over all frames.
    """
    if len(frames) != 1:
        number = f"more than {MAX_FRAMES}" if len(frames) > MAX_FRAMES else len(frames)
        return Malformed(ProtocolError(f"a request is one frame of JSON, got {number} frames"))
    body = frames[0]
    if len(body) > limit:
        return Malformed(MessageTooLarge(f"the request has {len(body)} bytes, the limit is {limit}"))
    try:
        return _requests.decode(body)
    except Exception:
        pass  # NaN, or a fault: both are looked at by the slower way
    try:
        request: Request = decode_json(body, _requests)
        return request
    except Exception as exc:
        return _malformed(body, exc)


def _malformed(body: Buffer, exc: Exception) -> Malformed:
    """Whatever can be said of a body that is no request."""
    if not len(body):
        return Malformed(ProtocolError("the request is empty"))
    if len(body) > LONGEST_LOOK:
        return Malformed(ProtocolError(f"not a request: {exc}"))
    if isinstance(exc, UnicodeDecodeError):
        return Malformed(ProtocolError(f"the request is not UTF-8: {exc}"))
    try:
        found = decode_json(bytes(body), _anything)
    except UnicodeDecodeError as fault:
        return Malformed(ProtocolError(f"the request is not UTF-8: {fault}"))
    except Exception as fault:
        try:
            bytes(body).decode()
        except UnicodeDecodeError as undecodable:
            fault = undecodable
        return Malformed(ProtocolError(f"the request is not JSON: {fault}"))
    if not isinstance(found, dict):
        return Malformed(ProtocolError(f"a request is a JSON object, got {type(found).__name__}"))
    event, request_id = found.get("event"), found.get("id")
    try:
        known_id: RequestId | UnsetType = msgspec.convert(request_id, RequestId) if request_id is not None else UNSET
    except msgspec.ValidationError:
        known_id = UNSET
    if not isinstance(event, str):
        return Malformed(ProtocolError("the request has no event"), id=known_id)
    if event not in _EVENTS:
        return Malformed(ProtocolError(f"unknown event {event[:100]!r}"), event[:100], known_id)
    return Malformed(ProtocolError(f"{event}: {exc}"), event, known_id)


def request_frame(request: Request) -> bytes:
    """The one frame of a request.

    Raises
    ------
    SerializationError
        When an argument or value cannot be sent; names the member and the type.
    """
    try:
        text = encode_null(request)
        return encode_json(request) if b"null" in text else text
    except (TypeError, ValueError, RecursionError) as exc:
        raise SerializationError(f"{_member(request)}: {_culprit(request)}{exc}") from exc


def _member(request: Request) -> str:
    return getattr(request, "method", "") or getattr(request, "property", "") or type(request).__name__


def _culprit(request: Request) -> str:
    """The argument that cannot be sent, for the error text."""
    if not isinstance(request, MethodCall):
        return ""
    named = [(f"{number}", arg) for number, arg in enumerate(request.params.args, 1)]
    for name, arg in named + [(repr(key), arg) for key, arg in request.params.kwargs.items()]:
        try:
            encode_json(arg)
        except (TypeError, ValueError):
            return f"argument {name}: "
    return ""


class _MethodResult(Struct):
    success: bool
    result: Any
    id: Any = UNSET
    epoch: str | UnsetType = UNSET


class _PropertyValue(Struct):
    success: bool
    value: Any
    id: Any = UNSET
    epoch: str | UnsetType = UNSET


class ReplyWriter:
    """Makes the reply frames of one server run; a request without an id is answered in version 1 exactly.

    Parameters
    ----------
    epoch
        Random id of the server run.
    """

    def __init__(self, epoch: str) -> None:
        self.epoch = epoch

    def result(self, request: MethodCall, value: Any) -> Frames:
        """Success of a JSON method; raises TypeError or ValueError when `value` cannot be sent."""
        reply = _MethodResult(True, value, request.id, UNSET if request.id is UNSET else self.epoch)
        text = encode_null(reply)
        # What stands for null may have been a NaN.
        return [encode_json(reply) if value is not None and b"null" in text else text]

    def buffer(self, request: MethodCall, payload: Buffer, info: dict[str, Any]) -> Frames:
        """Success of a buffer method; raises TypeError or ValueError when `info` cannot be sent."""
        head = info if request.id is UNSET else self._marked(request, {"success": True, "info": info})
        return [encode_json(head), payload]

    def value(self, request: messages.PropertyGet, value: Any) -> Frames:
        """Success of PROPERTY_GET; raises TypeError or ValueError when `value` cannot be sent."""
        if request.id is UNSET:
            return [encode_json(_PropertyValue(True, value))]
        return [encode_json(_PropertyValue(True, value, request.id, self.epoch))]

    def done(self, request: AnyRequest, **facts: Any) -> Frames:
        """Success with some facts, or with none."""
        return [encode_json(self._marked(request, {"success": True, **facts}))]

    def inventory(self, request: AnyRequest, inventory: dict[str, Any]) -> Frames:
        """The inventory, which in version 1 has no `success` key."""
        return [encode_json(self._marked(request, inventory))]

    def failure(self, request: AnyRequest, error: str, error_type: str = "", traceback: str = "") -> Frames:
        """A failure of any kind."""
        reply = {"success": False, "error": _valid(error), "traceback": _valid(traceback)}
        if request.id is not UNSET:
            reply["error_type"] = _valid(error_type)
        return [encode_json(self._marked(request, reply))]

    def _marked(self, request: AnyRequest, reply: dict[str, Any]) -> dict[str, Any]:
        return reply if request.id is UNSET else {**reply, "id": request.id, "epoch": self.epoch}


def _valid(text: str) -> str:
    """Text that can be sent: an exception may quote half of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode()


def parse_reply(frame: Buffer) -> Reply:
    """The reply to a call; frame 0 of it, if there are more.

    Raises
    ------
    ProtocolError
        When it is none.
    """
    try:
        return _replies.decode(frame)
    except ValueError:
        return _parse(frame, _replies, "a reply")  # NaN, or a fault


def parse_facts(frame: Buffer) -> Facts:
    """The reply to a control message.

    Raises
    ------
    ProtocolError
        When it is none.
    """
    return _parse(frame, _facts, "a reply")


def _parse(frame: Buffer, decoder: "msgspec.json.Decoder[T]", what: str) -> T:
    try:
        return decode_json(frame, decoder)
    except ValueError as exc:
        raise ProtocolError(f"not {what}: {exc}") from exc


def failure_of(reply: Reply) -> Exception:
    """The exception to raise for a reply without success."""
    return remote_error(reply.error, reply.error_type, reply.traceback)


def event_topic(signal: str) -> bytes:
    """Topic of a signal, ended so that no signal's topic begins another's."""
    return signal.encode() + b"\0"


def confirmation_topic(token: str) -> bytes:
    """Topic on which one client is told that its subscriptions are in force; no signal's name begins with a zero.

    The token is no client id, as anybody can see the topics, and who knows a client id can repeat its calls.
    """
    return b"\0" + token.encode()


def event_frames(signal: str, event: SignalEvent) -> Frames:
    """Frames of a signal, version 2."""
    try:
        return [event_topic(signal), encode_json(event)]
    except (TypeError, ValueError) as exc:
        raise SerializationError(f"signal {signal}: {exc}") from exc


def event_frames_v1(signal: str, args: Sequence[Any]) -> Frames:
    """The one frame of a signal, version 1."""
    return [encode_json({"event": RPCEvents.EMIT_SIGNAL, "signal": signal, "args": args, "blocking": False})]


def confirmation_frames(topic: bytes, subscribed: Subscribed) -> Frames:
    """Frames of the confirmation of a subscription."""
    return [topic, encode_json(subscribed)]


def parse_published(topic: bytes, body: bytes) -> tuple[str, SignalEvent | Subscribed]:
    """Signal name (empty for a confirmation) and event.

    Raises
    ------
    ProtocolError
        When the frames are neither.
    """
    if topic.startswith(b"\0"):
        return "", _parse(body, _subscribed, "a confirmation")
    return topic[:-1].decode(errors="replace"), _parse(body, _events, "an event")


def registry_frame(event: EventType, payload: dict[str, Any]) -> bytes:
    """A message to or from the registry, version 1."""
    return encode_json({"event": event, "payload": payload})


def parse_registry_reply(frame: Buffer) -> dict[str, Any]:
    """Payload of a reply of the registry.

    Raises
    ------
    ProtocolError
        When it is none.
    RegistryRefused
        When the registry says why it does not do what it was asked for.
    StoreError
        When it cannot do it now.
    """
    reply = _parse(frame, _registry_replies, "a reply of a registry")
    payload = reply.get("payload")
    if not isinstance(payload, dict):
        raise ProtocolError("not a reply of a registry: its payload is no object")
    if reply.get("event") == EventType.UNSUPPORTED:
        why = str(reply.get("error") or f"it does not know {payload.get('req_event')}")
        raise StoreError(why) if reply.get("error_type") == _STORE_ERROR else RegistryRefused(why)
    return payload


def unsupported_frame(request: AnyRequest, error: str) -> bytes:
    """What a registry replies to anything it does not know, understood by clients of both protocols."""
    event = request.event if isinstance(request, Malformed) else ""
    reply: dict[str, Any] = {
        "event": EventType.UNSUPPORTED,
        "payload": {"req_event": event},
        "success": False,
        "error": _valid(error),
        "traceback": "",
    }
    if isinstance(request, Malformed) and isinstance(request.error, StoreError):
        reply["error_type"] = _STORE_ERROR
    if request.id is not UNSET:
        reply["id"] = request.id
    return encode_json(reply)
