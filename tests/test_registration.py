"""The messages to a registry, one at a time: answers, silence, nonsense, refusals."""

from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from registry import AliveCheckState, DeviceRegistry, register_device, send_alive_check, unregister_device
from rpc_kit import registration
from rpc_kit.errors import RegistryRefused
from rpc_kit.messages import EventType, Removal
from rpc_kit.registration import exchange
from tests.registries import ScriptedRegistry, unsupported

ADDRESS = "tcp://127.0.0.1:9000"


@pytest.fixture
def scripted(context: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedRegistry]:
    """A registry that is given up soon when it is silent."""
    monkeypatch.setattr(registration, "REGISTRY_TIMEOUT", 0.2)
    with ScriptedRegistry(context) as made:
        yield made


def test_helpers(registry: DeviceRegistry, context: Any) -> None:
    """Register, renew, unregister."""
    name, uuid = register_device(context, "scope", ADDRESS, "", registry.url)

    assert ("scope-0", {"scope-0": ("scope", ADDRESS)}) == (name, registry.get_devices())
    assert AliveCheckState.ok == send_alive_check(context, uuid, registry.url)
    assert unregister_device(context, uuid, registry.url)
    assert not unregister_device(context, uuid, registry.url)
    assert AliveCheckState.unknown == send_alive_check(context, uuid, registry.url)
    assert {} == registry.get_devices()


def test_names(registry: DeviceRegistry, context: Any) -> None:
    """A name that is taken gets a number, or is taken away with `overwrite`."""
    names = [
        register_device(context, "scope", f"{ADDRESS}{number}", "left", registry.url, overwrite)[0]
        for number, overwrite in enumerate([False, False, True])
    ]

    assert ["left", "left-1", "left"] == names
    assert {"left-1": ("scope", f"{ADDRESS}1"), "left": ("scope", f"{ADDRESS}2")} == registry.get_devices()


def test_lease(scripted: ScriptedRegistry, context: Any) -> None:
    """A renewal is for 20 s unless another lease is asked for; registering asks for none, as in version 1."""
    register_device(context, "scope", ADDRESS, "left", scripted.url)
    send_alive_check(context, "u", scripted.url)
    send_alive_check(context, "u", scripted.url, 7.5)

    assert [
        ("REGISTER", {"device_type": "scope", "addr": ADDRESS, "name": "left"}),
        ("CHECK_ALIVE", {"uuid": "u", "alive_timeout": 20.0}),
        ("CHECK_ALIVE", {"uuid": "u", "alive_timeout": 7.5}),
    ] == [message[1:] for message in scripted.heard]


def outcomes(context: Any, url: str) -> tuple[Any, ...]:
    """What each helper makes of a registry."""
    return (
        register_device(context, "scope", ADDRESS, "", url),
        unregister_device(context, "uuid", url),
        send_alive_check(context, "uuid", url),
    )


NOTHING = (("", ""), False, AliveCheckState.unreachable)


def test_silence(scripted: ScriptedRegistry, context: Any) -> None:
    """Nobody answers: each helper says so in its way, within its limit."""
    scripted.is_silent = True

    assert NOTHING == outcomes(context, scripted.url)


@pytest.mark.parametrize("nonsense", [b"", b"\xff", b"[]", b"{}", b'{"payload": 1}', b'{"event": "ACK"}', b"\0" * 100])
def test_nonsense(scripted: ScriptedRegistry, context: Any, nonsense: bytes) -> None:
    """An answer that is none counts as no answer."""
    scripted.answers = dict.fromkeys(("REGISTER", "UNREGISTER", "CHECK_ALIVE"), nonsense)

    assert NOTHING == outcomes(context, scripted.url)


def test_refusal(scripted: ScriptedRegistry, context: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What the registry does not accept is logged with its reason, and counts as no answer."""
    events = ("REGISTER", "UNREGISTER", "CHECK_ALIVE")
    scripted.answers = {event: unsupported(event) for event in events}

    assert NOTHING == outcomes(context, scripted.url)
    assert [f"the registry at {scripted.url} refused {event}: no, thanks" for event in events] == caplog.messages


def test_refusal_is_raised(scripted: ScriptedRegistry, context: Any) -> None:
    """Who wants to know gets the refusal as an error."""
    scripted.answers["UNREGISTER"] = unsupported("UNREGISTER")
    with pytest.raises(RegistryRefused, match="no, thanks"):
        exchange(context, scripted.url, EventType.UNREGISTER, Removal("u"), 5.0)


@pytest.mark.parametrize("url", ["nonsense", "tcp://*:5555", "tcp://127.0.0.1", "ipc://" + "x" * 200])
def test_url_that_is_none(context: Any, url: str) -> None:
    """A url that nobody can connect to is an error of the caller."""
    with pytest.raises(ValueError, match="is no url|cannot be connected to|has no port"):
        register_device(context, "scope", ADDRESS, "", url)


def test_context_that_is_terminated(scripted: ScriptedRegistry) -> None:
    """Nothing can be sent: that is no answer."""
    own: Any = zmq.Context()
    own.term()

    assert NOTHING == outcomes(own, scripted.url)
