"""Messages are exactly what docs/wire.md says."""

import msgspec
import pytest

from rpc_kit import messages
from rpc_kit.messages import EventType, Request, RPCEvents

CARRYING = {"buffers", "shm", "codec"}

REQUESTS = {
    messages.MethodCall: (
        "METHOD_CALL",
        {"id", "timeout", "since", "epoch", "method", "params", *CARRYING},
        {"method"},
    ),
    messages.PropertyGet: ("PROPERTY_GET", {"id", "timeout", "since", "epoch", "property", *CARRYING}, {"property"}),
    messages.PropertySet: (
        "PROPERTY_SET",
        {"id", "timeout", "since", "epoch", "property", "value", *CARRYING},
        {"property", "value"},
    ),
    messages.GetInventory: ("GET_INVENTORY", {"id", "timeout", "since", "epoch"}, set()),
    messages.InitSignals: ("INIT_SIGNALS_HANDLING", {"id", "timeout", "since", "epoch"}, set()),
    messages.InitStreams: ("INIT_STREAMS", {"id", "timeout", "since", "epoch"}, set()),
    messages.StopServer: ("STOP_SERVER", {"id", "timeout", "since", "epoch"}, set()),
    messages.Ping: ("PING", {"id", "timeout", "since", "epoch", "call"}, set()),
    messages.Register: ("REGISTER", {"id", "timeout", "since", "epoch", "payload"}, {"payload"}),
    messages.Unregister: ("UNREGISTER", {"id", "timeout", "since", "epoch", "payload"}, {"payload"}),
    messages.CheckAlive: ("CHECK_ALIVE", {"id", "timeout", "since", "epoch", "payload"}, {"payload"}),
    messages.Renew: ("RENEW", {"id", "timeout", "since", "epoch", "payload"}, {"payload"}),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_request_has_the_keys_of_the_protocol(kind: type[Request]) -> None:
    """Event name, keys, and which of them are required."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    fields = {each.encode_name for each in info.fields}
    required = {each.encode_name for each in info.fields if each.required}

    assert ("event", *REQUESTS[kind]) == (info.tag_field, info.tag, fields, required)


def test_event_names() -> None:
    """The names of the described system are there, as plain text."""
    version_1 = {
        "PROPERTY_GET", "PROPERTY_SET", "METHOD_CALL", "GET_INVENTORY", "STOP_SERVER", "INIT_SIGNALS_HANDLING",
        "EMIT_SIGNAL",
    }  # fmt: skip
    registry = {"REGISTER", "REGISTER_ACK", "UNREGISTER", "CHECK_ALIVE", "RENEW", "ACK", "UNSUPPORTED"}

    assert version_1 | {"PING", "INIT_STREAMS"} == {*RPCEvents}
    assert registry == {*EventType}


def test_defaults_of_version_1() -> None:
    """Missing parameters mean none, and each message has its own."""
    one, other = messages.MethodCall(method="a"), messages.MethodCall(method="a")
    one.params.args.append(3)

    assert ([], {}) == (other.params.args, other.params.kwargs)
    assert 20.0 == messages.Renewal("uuid").alive_timeout
    assert messages.Registration("camera", "tcp://h:1", "a").overwrite is False
