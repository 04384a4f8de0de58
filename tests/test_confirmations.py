"""Confirmations of subscriptions: what they tell strangers, and what they say of lost events."""

import threading
from typing import Any

import zmq

from rpc_kit.messages import SignalEvent, Subscribed
from rpc_kit.subscriber import RPCSignalReceiver
from rpc_kit.wire import confirmation_topic
from tests.devices import LIMIT
from tests.helpers import Peer, in_thread, request, wait_until

EPOCH = "epoch"


def test_client_ids_are_not_published(device: Any, connect: Any, context: Any) -> None:
    """Who subscribes to all confirmations learns no client id, with which calls could be repeated."""
    with Peer(context, device.url, zmq.REQ) as peer:
        port = peer.ask(request("INIT_SIGNALS_HANDLING", id=["me", 1]))["event_port"]
    with Peer(context, f"tcp://127.0.0.1:{port}", zmq.SUB) as spy:
        spy.socket.subscribe(b"\0")
        assert b"\0" == spy.receive()[0]
        client = connect(device.url)
        frames = spy.receive()

    assert confirmation_topic(client._rpc.receiver._token) == frames[0]
    assert client._rpc.calls.client_id.encode() not in b"".join(frames)


def test_events_before_the_confirmation(context: Any) -> None:
    """Events that overtake the confirmation are neither lost nor handed on twice."""
    delivered: list[Any] = []
    receiver = RPCSignalReceiver(context, Any, ["ticked"], lambda name, args: delivered.extend(args), Any)
    for event in (5, 6, Subscribed(EPOCH, {"ticked": 4}), 6, 7, Subscribed(EPOCH, {"ticked": 7}), 8):
        if isinstance(event, int):
            receiver._on_message("ticked", SignalEvent(EPOCH, event, 0.0, [event]))
        else:
            receiver._on_message("", event)
    receiver._bell.close()

    assert ([5, 6, 7, 8], 0) == (delivered, receiver.lost)


def test_clients_that_come_during_a_storm(device: Any, connect: Any) -> None:
    """A client that connects while events are emitted gets all from then on, and counts none as lost."""
    ended = threading.Event()

    def emit() -> None:
        number = 0
        while not ended.wait(0.0002):
            number += 1
            device.ticked.emit(number)

    with in_thread(emit):
        try:
            for _ in range(20):
                client, ticks = connect(device.url), list[int]()
                client.ticked.connect(ticks.append)
                wait_until(lambda ticks=ticks: len(ticks) > 20, LIMIT)
                client.close()

                assert (0, list(range(ticks[0], ticks[0] + len(ticks)))) == (client.events_lost, ticks)
        finally:
            ended.set()
