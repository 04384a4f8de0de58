"""RPCServer: its attributes, its life, and that nothing of it is left."""

import gc
import os
import queue
import signal
import sys
import threading
from typing import Any

import pytest

from rpc_kit import RPCClient, RPCProperty, RPCServer, RPCSignal
from rpc_kit.errors import InterfaceError
from tests.devices import LIMIT, Instrument, InstrumentClient, InstrumentServer
from tests.helpers import in_thread, wait_until

URL = "tcp://127.0.0.1:0"


def test_attributes(context: Any, tmp_path: Any) -> None:
    """What a server tells of itself before it is registered."""
    with InstrumentServer(context, URL, alive_timeout=5) as device:
        assert f"tcp://127.0.0.1:{device.port}" == device.url == device.peer_addr
        assert ("InstrumentServer", "", "", 5) == (device.name, device.uuid, device.registry_addr, device.alive_timeout)
        assert context is device.context
    with InstrumentServer(context, f"ipc://{tmp_path}/device") as device:
        assert (None, 60) == (device.port, device.alive_timeout)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_request": 0}, "max_request"),
        ({"max_request": 1 << 40}, "max_request"),
        ({"alive_timeout": 0}, "alive_timeout"),
        ({"alive_timeout": float("nan")}, "alive_timeout"),
    ],
)
def test_wrong_options(context: Any, options: dict[str, Any], text: str) -> None:
    """A limit that makes no sense is refused."""
    with pytest.raises(ValueError, match=text):
        InstrumentServer(context, URL, **options)


def test_port_in_use(context: Any, device: Any) -> None:
    """The error names the address, and nothing is left of the server that could not be made."""
    for _ in range(3):
        with pytest.raises(OSError, match=f"cannot bind to {device.url}: Address already in use"):
            InstrumentServer(context, device.url)


def test_serve_twice(device: Any) -> None:
    """A server is served once at a time, and once in its life."""
    with pytest.raises(RuntimeError, match="is being served already"):
        device.serve_forever()
    device.stop_server()
    assert device._rpc.finished.wait(LIMIT)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="has ended"):
            device.serve_forever()
    with pytest.raises(RuntimeError, match="has ended"):
        device.register_to_registry("scope", "", "tcp://127.0.0.1:5555")


class Interrupted:
    """A lock; where it is let go for the first time, something else comes first."""

    def __init__(self, lock: Any, meanwhile: Any) -> None:
        self.lock, self.meanwhile = lock, [meanwhile]

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.lock.release()
        if self.meanwhile:
            self.meanwhile.pop()()


def test_stop_while_serving_begins(context: Any) -> None:
    """When stop_server and serve_forever come at the same moment, both end."""
    device = InstrumentServer(context, URL)
    engine, outcome = device._rpc, []

    def serve() -> None:
        with pytest.raises(RuntimeError, match="has ended"):
            device.serve_forever()
        outcome.append("refused")

    serving = threading.Thread(target=serve, daemon=True)

    def begin_to_serve() -> None:
        serving.start()
        wait_until(lambda: engine.serving or outcome)

    engine._state = Interrupted(engine._state, begin_to_serve)
    stopping = threading.Thread(target=device.stop_server, daemon=True)
    stopping.start()
    for thread in (stopping, serving):
        thread.join(LIMIT)

    assert (["refused"], [False, False]) == (outcome, [stopping.is_alive(), serving.is_alive()])


def test_stop_before_serving(context: Any) -> None:
    """A server that was never served is closed by stop_server, and its port is free again."""
    device = InstrumentServer(context, URL)
    for _ in range(3):
        device.stop_server()

    def bound() -> bool:
        try:
            InstrumentServer(context, device.url).stop_server()
        except OSError:
            return False
        return True

    wait_until(bound)


def test_context_manager(context: Any) -> None:
    """Leaving the block ends the thread that serves, and waits for it."""
    with InstrumentServer(context, URL) as device, in_thread(device.serve_forever) as outcome:
        with InstrumentClient(context, device.url) as client:
            assert 3 == client.add(1, 2)
        device.stop_server()

    assert [None] == outcome
    with InstrumentServer(context, URL) as device:
        thread = threading.Thread(target=device.serve_forever)
        thread.start()
        wait_until(lambda: device._rpc.serving)
    assert device._rpc.finished.is_set()
    thread.join(LIMIT)


def test_exception_in_block(context: Any) -> None:
    """What is raised in the block is raised, and the server is closed."""
    with pytest.raises(ZeroDivisionError):
        with InstrumentServer(context, URL) as device:
            _ = 1 / 0

    assert device._rpc.finished.is_set()


def test_forgotten_server(context: Any) -> None:
    """A server that nobody holds any more closes itself."""
    finished = InstrumentServer(context, URL)._rpc.finished
    gc.collect()

    assert finished.is_set()


def test_forgotten_client(device: Any, context: Any) -> None:
    """A client that nobody holds any more closes itself, with its thread."""
    engine = InstrumentClient(context, device.url)._rpc
    gc.collect()

    assert engine.calls.closed
    wait_until(lambda: "rpc-receiver" not in [thread.name for thread in threading.enumerate()])


def test_init_of_device_that_fails(context: Any) -> None:
    """A device that cannot be made leaves no socket."""

    class Failing(InstrumentServer):
        def __init__(self, context: Any, url: str) -> None:
            super().__init__(context, url)
            raise OSError("no instrument on the bus")

    with pytest.raises(OSError, match="no instrument on the bus"):
        Failing(context, URL)
    gc.collect()


def test_devices_of_one_class_share_nothing(serve: Any, connect: Any) -> None:
    """Properties, signals and ids of two devices of one class are apart."""
    first, second = serve(), serve()
    one, other = connect(first.url), connect(second.url)
    levels: list[float] = []
    other.level_changed.connect(levels.append)
    one.level = 5.0
    other.level = 6.0

    wait_until(lambda: [6.0] == levels)
    assert (5.0, 6.0, 1, 1) == (one.level, other.level, one.count(), other.count())
    assert first.level_changed is not second.level_changed


def test_many_devices_in_one_process(serve: Any, connect: Any) -> None:
    """Ten devices in one process are served at once, also while nine of them are busy."""
    devices = [serve() for _ in range(10)]
    for device in devices[1:]:
        threading.Thread(target=lambda url=device.url: connect(url).block(), daemon=True).start()
    for device in devices[1:]:
        assert device.entered.wait(LIMIT)

    assert 3 == connect(devices[0].url).add(1, 2)
    for device in devices[1:]:
        device.released.set()
    wait_until(lambda: "block" not in [str(device._rpc.current_call()[0]) for device in devices])


@pytest.mark.parametrize("name", ["url", "name", "context", "stop_server", "execute", "close"])
def test_reserved_names(context: Any, name: str) -> None:
    """An interface that declares what servers and clients need is refused, with the way out."""

    def member(self: Any) -> int:
        return 1

    member.__name__ = name
    interface = type("Odd", (), {name: RPCServer.register_method_json(member)})

    with pytest.raises(InterfaceError, match=f"Odd(Server)?.{name}: .* rename the member"):
        type("OddServer", (interface, RPCServer), {})
    with pytest.raises(InterfaceError, match=f"{name}: .* rename the member"):
        RPCClient.register_interface(interface)(type("OddClient", (interface, RPCClient), {}))


def test_members_of_all_bases(serve: Any, context: Any) -> None:
    """Members of bases and mixins of any depth are served, overrides without marks included."""

    class Base:
        @RPCServer.register_method_json
        def one(self) -> int:
            return 1

        @RPCServer.register_method_json
        def two(self) -> int:
            return 0

    class Mixin:
        changed = RPCSignal(int)

        @RPCProperty(notify=changed, auto_notify=True)
        def size(self) -> int:
            return 5

    class Middle(Base):
        def two(self) -> int:
            return 2

    class Leaf(Mixin, Middle, RPCServer):
        @RPCServer.register_method_json
        def three(self) -> int:
            return 3

    @RPCClient.register_interface(Middle)
    class MiddleClient(Middle, RPCClient):
        pass

    device = serve(Leaf)
    with MiddleClient(context, device.url) as client:
        assert (1, 2, (True, 3)) == (client.one(), client.two(), client.execute("three", {}))
        assert {"one", "two", "three", "size", "changed"} == set(device._rpc.interface)


def test_switch_interval(context: Any) -> None:
    """Python's switch interval is short while serving, and restored afterwards."""
    before = sys.getswitchinterval()
    device = InstrumentServer(context, URL)
    with in_thread(device.serve_forever):
        wait_until(lambda: sys.getswitchinterval() < before)
        device.stop_server()
    assert before == sys.getswitchinterval()


def test_signal_handlers_are_restored(context: Any) -> None:
    """Served on the main thread a device takes SIGTERM and SIGINT, and gives them back."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    device = InstrumentServer(context, URL)
    killer = threading.Thread(
        target=lambda: (wait_until(lambda: device._rpc.serving), os.kill(os.getpid(), signal.SIGTERM))
    )

    def own(number: int, frame: Any) -> None:
        device.stop_server()

    signal.signal(signal.SIGTERM, own)
    killer.start()
    device.serve_forever()
    killer.join()

    assert own is signal.signal(signal.SIGTERM, before[0])
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_class_that_is_abstract(context: Any) -> None:
    """A device that does not implement its interface cannot be made; no socket is left."""

    class Half(Instrument, RPCServer):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half(context, URL)  # type: ignore[abstract]


def test_several_urls(serve: Any, registry: Any, context: Any) -> None:
    """A server on several networks is reached on each, signals included, and the registry knows them all."""
    device = serve(InstrumentServer, ["tcp://127.0.0.1:0", "tcp://127.0.0.2", "tcp://[::1]:0"])
    device.register_to_registry("scope", "left", registry.url)
    (entry,) = registry.list()

    assert tuple(f"tcp://{host}:{device.port}" for host in ("127.0.0.1", "127.0.0.2", "[::1]")) == entry.addresses
    for url in entry.addresses:
        heard: queue.Queue[float] = queue.Queue()
        with InstrumentClient(context, url) as client:
            client.level_changed.connect(heard.put)
            device.level_changed.emit(1.5)
            assert 1.5 == heard.get(timeout=LIMIT)


@pytest.mark.parametrize("urls", [[], ["tcp://*:0", "tcp://127.0.0.1:0"], ["ipc://x", "tcp://127.0.0.1:0"]])
def test_several_urls_that_make_no_sense(context: Any, urls: list[str]) -> None:
    """Several urls are tcp urls of several hosts."""
    with pytest.raises(ValueError, match="a server listens at one url, or at tcp urls of several hosts"):
        InstrumentServer(context, urls)
