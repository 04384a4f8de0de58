"""Fixtures with real sockets: contexts that must end, devices on threads and in processes, a registry, real parts."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from registry import DeviceRegistry
from rpc_kit.sharedmem import remove_leftovers
from tests.devices import LIMIT, InstrumentClient, InstrumentServer
from tests.helpers import Peer, Program, call, wait_until
from tests.real.etcd import EtcdCluster
from tests.real.hosts import Hosts
from tests.real.user_systemd import UserSystemd
from tests.registries import Restartable, restartable, unused_url


@pytest.fixture(scope="session", autouse=True)
def no_leftovers() -> Iterator[None]:
    """What killed servers have left in /dev/shm, as the next one would do."""
    yield
    remove_leftovers()


@pytest.fixture
def context() -> Iterator[Any]:
    """A context; a socket that is left open at the end is an error."""
    made: Any = zmq.Context()
    yield made
    ending = threading.Thread(target=made.term, daemon=True)
    ending.start()
    ending.join(LIMIT)
    if ending.is_alive():
        pytest.fail("sockets are left")


@pytest.fixture
def serve(context: Any) -> Iterator[Callable[..., Any]]:
    """Serves devices, instruments unless told otherwise, each on a thread."""
    served = []

    def start(make: Callable[..., Any] = InstrumentServer, url: str = "tcp://127.0.0.1:0", **options: Any) -> Any:
        device = make(context, url, **options)
        thread = threading.Thread(target=device.serve_forever)
        thread.start()
        served.append((device, thread))
        wait_until(lambda: device._rpc.serving is not None)
        return device

    yield start
    for device, thread in served:
        if isinstance(device, InstrumentServer):
            device.released.set()
        device.stop_server()
        thread.join(LIMIT)
        assert not thread.is_alive()


@pytest.fixture
def device(serve: Callable[..., Any]) -> Any:
    """An instrument served on a thread."""
    return serve()


@pytest.fixture
def connect(context: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of the instrument."""
    made = []

    def start(url: str, **options: Any) -> InstrumentClient:
        made.append(InstrumentClient(context, url, **options))
        return made[-1]

    yield start
    for client in made:
        client.close()


@pytest.fixture
def client(device: Any, connect: Callable[..., Any]) -> Any:
    """A client of the device on a thread."""
    return connect(device.url)


@pytest.fixture
def spawn() -> Iterator[Callable[..., Program]]:
    """Starts Python modules as processes."""
    started = []

    def start(*arguments: str) -> Program:
        started.append(Program(*arguments))
        return started[-1]

    yield start
    for program in started:
        program.kill()


@pytest.fixture
def process(spawn: Callable[..., Program]) -> Program:
    """An instrument served by another process; its `line` is the url."""
    return spawn("tests.instrument", "serve", "tcp://127.0.0.1:0")


@pytest.fixture
def registry(context: Any) -> Iterator[DeviceRegistry]:
    """A registry on any free port."""
    made = DeviceRegistry(context, "127.0.0.1", 0)
    made.start()
    yield made
    made.stop()
    made.join(LIMIT)
    assert not made._thread.is_alive()


@pytest.fixture(params=["eventfd", "socketpair"])
def waker_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How threads are woken: the way of Linux, and the way of all others."""
    if request.param == "socketpair":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("only Linux has eventfd")
    return str(request.param)


@pytest.fixture(scope="module")
def server() -> Iterator[Program]:
    """One instrument in another process takes all the bad input of a module, and is alive at its end."""
    program = Program("tests.instrument", "serve", "tcp://127.0.0.1:0")
    yield program
    alive = program.process.poll() is None
    program.kill()
    assert alive


@pytest.fixture(scope="module")
def own_context() -> Iterator[Any]:
    """A context for a whole module."""
    with zmq.Context() as made:
        yield made


@pytest.fixture
def peer(server: Program, own_context: Any) -> Iterator[Peer]:
    """A plain DEALER; whatever the test sends, a valid call of another client works afterwards."""
    with Peer(own_context, server.line) as made:
        yield made
    with Peer(own_context, server.line, zmq.REQ) as other:
        assert {"success": True, "result": 3} == other.ask(call("add", 1, 2))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Two hosts on one network."""
    with Hosts(2) as made:
        yield made


@pytest.fixture
def user_systemd() -> Iterator[UserSystemd]:
    """A service manager as a user has it."""
    with UserSystemd() as made:
        yield made


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """Three nodes of etcd, of which one may be lost."""
    with EtcdCluster(3) as made:
        yield made


@pytest.fixture
def restarted(context: Any) -> Iterator[Restartable]:
    """A registry that can be stopped, and started again at the same port."""
    with restartable(context) as made:
        yield made


@pytest.fixture
def nobody() -> Iterator[str]:
    """A url at which nobody listens."""
    with unused_url() as made:
        yield made
