"""Frames to messages and back (docs/wire.md). No sockets, no state."""

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from . import messages
from .buffers import MOST_BUFFERS, Part, any_holds_buffers, holds_buffers, put_back, receive, take_out
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
    BufferHeader,
    Carrying,
    EndOfStream,
    EventType,
    Facts,
    Malformed,
    MethodCall,
    NextOfStream,
    OpenStream,
    Params,
    Reply,
    Request,
    RequestId,
    RPCEvents,
    SignalEvent,
    SlotRef,
    StreamEvent,
    Subscribed,
)

Buffer = bytes | bytearray | memoryview
Frames = list[Buffer]
T = TypeVar("T")

StreamRequest = OpenStream | NextOfStream | EndOfStream
ViewSlot = Callable[[tuple[str, int] | UnsetType, SlotRef], Any]

MAX_FRAMES = 1 + MOST_BUFFERS
"""More frames than this in one request are not even kept for the error reply."""

_requests: "msgspec.json.Decoder[Request]" = msgspec.json.Decoder(
    reduce(
        operator.or_,
        (
            MethodCall, messages.PropertyGet, messages.PropertySet, messages.GetInventory, messages.InitSignals,
            messages.InitStreams, messages.StopServer, messages.Ping, messages.Register, messages.Unregister,
            messages.CheckAlive, messages.Renew,
        ),
    )
)  # fmt: skip
LONGEST_LOOK = 1 << 20
"""A larger body that is no request is not looked at again to say more, bytes."""

_EVENTS = {*map(str, RPCEvents), *map(str, EventType)}
_replies = msgspec.json.Decoder(Reply)
_facts = msgspec.json.Decoder(Facts)
_events = msgspec.json.Decoder(SignalEvent)
_stream_requests: "msgspec.json.Decoder[Any]" = msgspec.json.Decoder(OpenStream | NextOfStream | EndOfStream)
_stream_events = msgspec.json.Decoder(StreamEvent)
_subscribed = msgspec.json.Decoder(Subscribed)
_registry_replies = msgspec.json.Decoder(dict[str, Any])
_STORE_ERROR = type_name(StoreError())
_anything = msgspec.json.Decoder()


def parse_request(frames: Sequence[Buffer], limit: int, view: ViewSlot | None = None) -> AnyRequest:
    """The request that the frames hold, or a Malformed with the error to reply; never raises.

    Parameters
    ----------
    limit
        The largest size of a request, bytes over all frames.
    view
        Gives the bytes of a slot in shared memory to a client with that proof; None without shared memory.
    """
    if not 0 < len(frames) <= MAX_FRAMES:
        number = f"more than {MAX_FRAMES}" if frames else "no"
        return Malformed(ProtocolError(f"a request is one frame of JSON and its buffers, got {number} frames"))
    body = frames[0]
    size = len(body) if len(frames) == 1 else sum(map(len, frames))
    if size > limit:
        return Malformed(MessageTooLarge(f"the request has {size} bytes, the limit is {limit}"))
    request = _parse_body(body)
    if len(frames) > 1 or (isinstance(request, Carrying) and request.buffers is not UNSET):
        return _with_buffers(request, frames[1:], view)
    return request


def _parse_body(body: Buffer) -> AnyRequest:
    try:
        return _requests.decode(body)
    except Exception:
        pass  # NaN, or a fault: both are looked at by the slower way
    try:
        request: Request = decode_json(body, _requests)
        return request
    except Exception as exc:
        return _malformed(body, exc)


def _with_buffers(request: AnyRequest, frames: Sequence[Buffer], view: ViewSlot | None) -> AnyRequest:
    """The request with its arrays and buffers in their places."""
    if isinstance(request, Malformed):
        return request
    try:
        if not isinstance(request, Carrying) or request.buffers is UNSET:
            raise ProtocolError(f"the request is one frame of JSON, got {1 + len(frames)} frames")
        proof = request.shm
        if any(header.codec for header in request.buffers):
            raise ProtocolError("the buffers of a request are not compressed")
        found = receive(request.buffers, frames, None if view is None else partial(view, proof))
        if isinstance(request, MethodCall):
            request.params.args = put_back(request.params.args, found)
            request.params.kwargs = put_back(request.params.kwargs, found)
        elif isinstance(request, messages.PropertySet):
            request.value = put_back(request.value, found)
        return request
    except Exception as exc:
        return Malformed(exc, str(request.__struct_config__.tag), request.id)


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
    """The JSON frame of a request; its only one, unless `take_buffers` has taken others out of it.

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


def take_buffers(request: Request) -> list[Part]:
    """The arrays and buffers of a request, which then has references in their places; none of most requests.

    Raises
    ------
    SerializationError
        When one of them cannot be sent; names the member.
    """
    try:
        if isinstance(request, MethodCall):
            params = request.params
            if any_holds_buffers(params.args) or (params.kwargs and any_holds_buffers(params.kwargs.values())):
                (args, kwargs), parts = take_out((params.args, params.kwargs))
                request.params = Params(args, kwargs)
                return parts
        elif isinstance(request, messages.PropertySet) and holds_buffers(request.value):
            request.value, parts = take_out(request.value)
            return parts
    except (TypeError, ValueError, RecursionError) as exc:
        raise SerializationError(f"{_member(request)}: {_culprit(request)}{exc}") from exc
    return []


def _member(request: Request) -> str:
    return getattr(request, "method", "") or getattr(request, "property", "") or type(request).__name__


def _culprit(request: Request) -> str:
    """The argument that cannot be sent, for the error text."""
    if not isinstance(request, MethodCall):
        return ""
    named = [(f"{number}", arg) for number, arg in enumerate(request.params.args, 1)]
    for name, arg in named + [(repr(key), arg) for key, arg in request.params.kwargs.items()]:
        try:
            encode_json(take_out(arg)[0])
        except (TypeError, ValueError, RecursionError):
            return f"argument {name}: "
    return ""


class _MethodResult(Struct):
    success: bool
    result: Any
    id: Any = UNSET
    epoch: str | UnsetType = UNSET
    buffers: list[BufferHeader] | UnsetType = UNSET


class _PropertyValue(Struct):
    success: bool
    value: Any
    id: Any = UNSET
    epoch: str | UnsetType = UNSET
    buffers: list[BufferHeader] | UnsetType = UNSET


Load = Callable[[Carrying, Sequence[Part]], tuple[list[BufferHeader], Frames]]
"""Decides how the buffers of a reply travel: their headers, and the frames of those that need one."""


def as_frames(request: Carrying, parts: Sequence[Part]) -> tuple[list[BufferHeader], Frames]:
    """Each buffer in a frame of its own."""
    return [part.header for part in parts], [bytes(part.data) for part in parts]


class ReplyWriter:
    """Makes the reply frames of one server run; a request without an id is answered in version 1 exactly.

    Parameters
    ----------
    epoch
        Random id of the server run.
    load
        Decides how buffers travel.
    """

    def __init__(self, epoch: str, load: Load = as_frames) -> None:
        self.epoch = epoch
        self._load = load

    def result(self, request: MethodCall, value: Any) -> Frames:
        """Success of a JSON method; raises TypeError or ValueError when `value` cannot be sent."""
        if request.id is not UNSET and holds_buffers(value):
            return self._carrying(request, _MethodResult, value)
        reply = _MethodResult(True, value, request.id, UNSET if request.id is UNSET else self.epoch)
        text = encode_null(reply)
        # What stands for null may have been a NaN.
        return [encode_json(reply) if value is not None and b"null" in text else text]

    def value(self, request: messages.PropertyGet, value: Any) -> Frames:
        """Success of PROPERTY_GET; raises TypeError or ValueError when `value` cannot be sent."""
        if request.id is UNSET:
            return [encode_json(_PropertyValue(True, value))]
        if holds_buffers(value):
            return self._carrying(request, _PropertyValue, value)
        return [encode_json(_PropertyValue(True, value, request.id, self.epoch))]

    def _carrying(self, request: Carrying, make: type[_MethodResult | _PropertyValue], value: Any) -> Frames:
        tree, parts = take_out(value)
        headers, frames = self._load(request, parts)
        return [encode_json(make(True, tree, request.id, self.epoch, headers)), *frames]

    def buffer(self, request: MethodCall, payload: Any, info: dict[str, Any]) -> Frames:
        """Success of a buffer method; raises TypeError or ValueError when it cannot be sent."""
        if request.id is UNSET:
            # Without its proof and codec: who has no id knows nothing of either, and gets a frame.
            return [encode_json(info), *self._load(MethodCall(method=request.method), [Part(payload)])[1]]
        (tree, _), parts = take_out((info, payload))
        headers, frames = self._load(request, parts)
        if len(headers) > 1 or not frames or headers[0].codec:
            # That of the method is the last one.
            facts: dict[str, Any] = {"success": True, "info": tree, "buffers": headers}
        else:
            facts = {"success": True, "info": info}
        return [encode_json(self._marked(request, facts)), *frames]

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
    """Frames of a signal, version 2; with arrays as they are now, whatever their owner does to them."""
    try:
        if not holds_buffers(event.args):
            return [event_topic(signal), encode_json(event)]
        event.args, parts = take_out(event.args)
        event.buffers = [part.header for part in parts]
        return [event_topic(signal), encode_json(event), *(bytes(part.data) for part in parts)]
    except (TypeError, ValueError, RecursionError) as exc:
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


def parse_stream_request(frames: Sequence[Buffer]) -> StreamRequest:
    """What a client says of a stream.

    Raises
    ------
    ProtocolError
        When it is no such message.
    """
    if len(frames) != 1:
        raise ProtocolError(f"a message for a stream is one frame of JSON, got {len(frames)} frames")
    request: StreamRequest = _parse(frames[0], _stream_requests, "a message for a stream")
    return request


def parse_stream_event(frame: Buffer) -> StreamEvent:
    """The first frame of a message of a stream.

    Raises
    ------
    ProtocolError
        When it is none.
    """
    return _parse(frame, _stream_events, "an event of a stream")


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
