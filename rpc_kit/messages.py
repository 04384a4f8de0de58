"""One typed message for each event of the wire protocol (docs/wire.md); field names are the JSON keys."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from .compression import Codec


class RPCEvents(StrEnum):
    """Event names between clients and servers."""

    PROPERTY_GET = "PROPERTY_GET"
    PROPERTY_SET = "PROPERTY_SET"
    METHOD_CALL = "METHOD_CALL"
    GET_INVENTORY = "GET_INVENTORY"
    STOP_SERVER = "STOP_SERVER"
    INIT_SIGNALS_HANDLING = "INIT_SIGNALS_HANDLING"
    INIT_STREAMS = "INIT_STREAMS"
    EMIT_SIGNAL = "EMIT_SIGNAL"
    PING = "PING"


class EventType(StrEnum):
    """Event names between devices and the registry."""

    REGISTER = "REGISTER"
    REGISTER_ACK = "REGISTER_ACK"
    UNREGISTER = "UNREGISTER"
    CHECK_ALIVE = "CHECK_ALIVE"
    RENEW = "RENEW"
    ACK = "ACK"
    UNSUPPORTED = "UNSUPPORTED"


# A limit, because the server keeps ids in its reply journal.
RequestId = tuple[Annotated[str, msgspec.Meta(max_length=64)], int]


class Request(Struct, kw_only=True, tag_field="event"):
    """What every request may carry.

    `id` marks version 2; `timeout` is what the caller will still wait, in ms; `since` marks a repeated request, which
    was not sent before that time of that epoch, in seconds of the server's clock; `epoch` is that of the one run of a
    server that may execute it.
    """

    id: RequestId | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    since: tuple[str, float] | UnsetType = UNSET
    epoch: str | UnsetType = UNSET


SlotRef = tuple[int, int, int, int, int]
"""Bytes in shared memory: slot, its generation, where they begin in it, how many they are, ticket (-1: none)."""


Length = Annotated[int, msgspec.Meta(ge=0)]


class BufferHeader(Struct, omit_defaults=True):
    """Of an array: dtype, shape, and memory order; of other bytes: size; and where they are.

    They lie in a slot of shared memory, or have a frame of their own, which `codec` has compressed.
    """

    dtype: Any = None
    shape: tuple[Length, ...] = ()
    order: Literal["C", "F"] = "C"
    size: int | None = None
    slot: SlotRef | None = None
    codec: Literal["", "jpeg", "zlib"] = ""


class Carrying(Request, kw_only=True):
    """A request that may bring buffers, or whose reply may.

    `shm` proves that the client maps the shared memory of the server; `codec` is how it wants large buffers compressed.
    """

    buffers: list[BufferHeader] | UnsetType = UNSET
    shm: tuple[str, int] | UnsetType = UNSET
    codec: Codec | UnsetType = UNSET


class Params(Struct):
    """Arguments of a method call."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class MethodCall(Carrying, tag=RPCEvents.METHOD_CALL.value):
    method: str
    params: Params = msgspec.field(default_factory=Params)


class PropertyGet(Carrying, tag=RPCEvents.PROPERTY_GET.value):
    property: str


class PropertySet(Carrying, tag=RPCEvents.PROPERTY_SET.value):
    property: str
    value: Any


class GetInventory(Request, tag=RPCEvents.GET_INVENTORY.value):
    pass


class InitSignals(Request, tag=RPCEvents.INIT_SIGNALS_HANDLING.value):
    pass


class InitStreams(Request, tag=RPCEvents.INIT_STREAMS.value):
    pass


class StopServer(Request, tag=RPCEvents.STOP_SERVER.value):
    pass


class Ping(Request, tag=RPCEvents.PING.value):
    """Alive? With `call`, also what became of that call."""

    call: RequestId | UnsetType = UNSET


Policy = Literal["all", "latest", "every"]
"""Which events of a stream are wanted: all of them; at each time the newest; or every so many."""


class OpenStream(Struct, kw_only=True, tag_field="event", tag="STREAM"):
    """The first message on a connection for a stream: what is wanted, and how many events may be sent already.

    With the policy ``every`` each so many are wanted; `shm` and `codec` are as of a request.
    """

    signal: str
    policy: Policy = "all"
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    credit: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    shm: tuple[str, int] | UnsetType = UNSET
    codec: Codec | UnsetType = UNSET


class NextOfStream(Struct, tag_field="event", tag="STREAM_NEXT"):
    """So many more events may be sent; none is a question whether the stream is alive."""

    credit: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0


class EndOfStream(Struct, tag_field="event", tag="STREAM_END"):
    """Nothing more is wanted; the reply is the last message."""


class StreamEvent(Struct, omit_defaults=True):
    """A message of a stream; without `args` a sign of life, with `error` the end.

    `seq` counts the events of the signal, `time` is in Unix seconds, `dropped` counts what was wanted and not sent.
    """

    epoch: str
    seq: int = 0
    time: float = 0.0
    dropped: int = 0
    args: list[Any] | UnsetType = UNSET
    buffers: list[BufferHeader] | UnsetType = UNSET
    error: str = ""
    error_type: str = ""


Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered device.

    Attributes
    ----------
    address : str
        Where it is reached from the registry's point of view.
    addresses : tuple of str
        All urls where it may be reached, `address` first.
    interface, interface_hash : str
        Name and hash of its interface; empty for devices of protocol version 1.
    epoch : str
        Random id of the run of the device's server.
    metadata : dict
        Whatever the device says of itself; ``host``, ``pid`` and ``version`` always.
    registered : float
        When it was registered, Unix seconds.
    stale : bool
        Remembered from before: no registry could be asked.
    """

    uuid: str
    name: str
    device_type: str
    address: str
    addresses: tuple[str, ...] = ()
    interface: str = ""
    interface_hash: str = ""
    epoch: str = ""
    metadata: dict[str, Scalar] = field(default_factory=dict, hash=False)
    registered: float = 0.0
    stale: bool = False


class Registration(Struct, omit_defaults=True):
    """Payload of REGISTER; all from `addresses` on is version 2.

    `alive_timeout` is the lease until the first renewal, in seconds; a known `uuid` changes that entry and keeps its
    name.
    """

    device_type: str
    addr: str
    name: str
    overwrite: bool = False
    addresses: list[str] = []
    interface: str = ""
    interface_hash: str = ""
    epoch: str = ""
    metadata: dict[str, Scalar] = {}
    alive_timeout: float | None = None
    uuid: str = ""


class Renewal(Struct):
    """Payload of CHECK_ALIVE; `alive_timeout` in seconds."""

    uuid: str
    alive_timeout: float = 20.0


class Renewals(Struct):
    """Payload of RENEW: uuid to lease in seconds, of many devices."""

    leases: dict[str, float]


class Removal(Struct):
    """Payload of UNREGISTER."""

    uuid: str


class Register(Request, tag=EventType.REGISTER.value):
    payload: Registration


class Unregister(Request, tag=EventType.UNREGISTER.value):
    payload: Removal


class CheckAlive(Request, tag=EventType.CHECK_ALIVE.value):
    payload: Renewal


class Renew(Request, tag=EventType.RENEW.value):
    payload: Renewals


class Malformed(Struct):
    """What arrived was no request; `event` as far as it could be read."""

    error: Exception
    event: str = ""
    id: RequestId | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    since: tuple[str, float] | UnsetType = UNSET
    epoch: str | UnsetType = UNSET


AnyRequest = Request | Malformed


class Reply(Struct):
    """What a client reads of the reply to a call; keys that were not sent are UNSET."""

    success: bool = True
    id: RequestId | UnsetType = UNSET
    epoch: str | UnsetType = UNSET
    result: Any = UNSET
    value: Any = UNSET
    info: dict[str, Any] | UnsetType = UNSET
    buffers: list[BufferHeader] | UnsetType = UNSET
    error: str = ""
    error_type: str = ""
    traceback: str = ""


class Facts(Reply):
    """What a client reads of the reply to a control message."""

    call: str = ""
    clock: float = 0.0
    busy: Any = None
    queued: int = 0
    event_port: int | UnsetType = UNSET
    event_url: str | UnsetType = UNSET
    stream_port: int | UnsetType = UNSET
    stream_url: str | UnsetType = UNSET
    shm: dict[str, Any] | UnsetType = UNSET
    ipc: str | UnsetType = UNSET
    json_methods: dict[str, int | None] | UnsetType = UNSET
    buffer_methods: dict[str, int | None] | UnsetType = UNSET
    signals: list[str] | UnsetType = UNSET
    properties: list[str] | UnsetType = UNSET
    max_request: int | UnsetType = UNSET
    name: str = ""


class SignalEvent(Struct):
    """An emitted signal, version 2; `seq` counts from 1 for each signal, `time` in Unix seconds."""

    epoch: str
    seq: int
    time: float
    args: list[Any]
    buffers: list[BufferHeader] | UnsetType = UNSET


class Subscribed(Struct):
    """Confirms a subscription: the number of the last event of each signal that had been emitted by then."""

    epoch: str
    seqs: dict[str, int]
