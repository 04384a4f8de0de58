"""After servers and clients are closed, nothing of them is left: counted."""

import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import zmq

from registry import DeviceRegistry
from rpc_kit.errors import RPCError
from tests.devices import LIMIT, InstrumentClient, InstrumentServer
from tests.helpers import in_thread, wait_until

URL = "tcp://127.0.0.1:0"


def leftovers() -> tuple[int, set[str]]:
    """Open descriptors and the names of the threads."""
    return psutil.Process().num_fds(), {thread.name for thread in threading.enumerate()}


def idle_server(context: Any) -> None:
    InstrumentServer(context, URL).stop_server()


def served(context: Any) -> None:
    device = InstrumentServer(context, URL)
    with in_thread(device.serve_forever):
        with InstrumentClient(context, device.url) as client:
            client.ticked.connect(print)
            assert 3 == client.add(1, 2)
        client.close()
        device.stop_server()


def client_without_server(context: Any) -> None:
    with pytest.raises(TimeoutError):
        InstrumentClient(context, "tcp://127.0.0.1:1", timeout=10)


def client_after_timeout(context: Any) -> None:
    device = InstrumentServer(context, URL)
    with in_thread(device.serve_forever), InstrumentClient(context, device.url) as client:
        with pytest.raises(RPCError):
            client.impatient()
        device.released.set()
        device.stop_server()


def registered(context: Any) -> None:
    registry = DeviceRegistry(context, "127.0.0.1", 0)
    registry.start()
    with InstrumentServer(context, URL) as device:
        device.register_to_registry("scope", "", registry.url)
    registry.stop()
    registry.join(LIMIT)


USES = [idle_server, served, client_without_server, client_after_timeout, registered]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("shared", [False, True], ids=["contexts", "one context"])
def test_nothing_is_left(context: Any, use: Callable[[Any], None], shared: bool) -> None:
    """After twenty rounds of opening and closing there are no more descriptors and threads than before."""

    def rounds(count: int) -> None:
        for _ in range(count):
            if shared:
                use(context)
            else:
                with zmq.Context() as own:
                    use(own)

    rounds(2)
    descriptors, threads = leftovers()
    rounds(20)

    # Sockets of a living context are closed in the background.
    wait_until(lambda: leftovers()[0] <= descriptors and leftovers()[1] <= threads)
