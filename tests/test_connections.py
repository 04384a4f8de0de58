"""Who is connected to a socket."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from rpc_kit import connections
from rpc_kit.addresses import Address
from rpc_kit.connections import Connections
from rpc_kit.sockets import server_socket
from tests.helpers import Peer, in_thread, raw_connection, wait_until


@pytest.fixture
def watched(context: Any) -> Iterator[Callable[..., tuple[Connections, Address]]]:
    """Makes bound sockets whose connections are watched."""
    made = []

    def start(url: str = "tcp://127.0.0.1:0") -> tuple[Connections, Address]:
        bound, address = server_socket(context, zmq.ROUTER, Address.parse(url))
        made.append((bound, Connections(bound)))
        return made[-1][1], address

    yield start
    for bound, each in made:
        each.end()
        bound.close()


def becomes(made: Connections, expected: dict[str, int]) -> None:
    """Take in what happens until these clients are there."""

    def is_there() -> bool:
        made.note()
        return made.clients() == expected

    wait_until(is_there)


def test_clients_are_counted(watched: Any, context: Any) -> None:
    """Each connection counts for its host, until it ends."""
    made, address = watched()
    assert {} == made.clients()
    with Peer(context, str(address)):
        becomes(made, {"127.0.0.1": 1})
        with Peer(context, str(address)), Peer(context, str(address), zmq.REQ):
            becomes(made, {"127.0.0.1": 3})
        becomes(made, {"127.0.0.1": 1})

    becomes(made, {})


def test_hosts_are_apart(watched: Any, context: Any) -> None:
    """Connections from other addresses count apart; those of IPv6 have such an address."""
    made, address = watched("tcp://*:0")
    with ExitStack() as stack:
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
            stack.enter_context(
                socket.create_connection(("127.0.0.1", address.port or 0), source_address=(host, 0))
            )
        becomes(made, {"127.0.0.2": 2, "127.0.0.3": 1})


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this host has no IPv6")
def test_ipv6(watched: Any, context: Any) -> None:
    """The address is that of the client, without brackets."""
    made, address = watched("tcp://[::1]:0")
    with Peer(context, str(address)):
        becomes(made, {"::1": 1})


def test_local_transports(watched: Any, context: Any, tmp_path: Path) -> None:
    """What comes through the file system is local; what comes from the same process is not watched."""
    made, address = watched(f"ipc://{tmp_path}/socket")
    inside, inside_at = watched("inproc://inside")
    with Peer(context, str(address)), Peer(context, str(inside_at)) as peer:
        becomes(made, {"local": 1})
        peer.send(b"")
        inside.note()

        assert {} == inside.clients()


def test_stranger(watched: Any, context: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Who does not speak ZeroMQ is logged, and gone when the connection is."""
    caplog.set_level("INFO", connections.__name__)
    made, address = watched()
    with socket.create_connection(("127.0.0.1", address.port or 0)) as stranger, Peer(context, str(address)):
        becomes(made, {"127.0.0.1": 2})
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        stranger.close()
        becomes(made, {"127.0.0.1": 1})
        wait_until(lambda: made.note() or "something connected that does not speak ZeroMQ" in caplog.text)


def test_connection_that_is_aborted(watched: Any) -> None:
    """A connection that is reset, before or after its handshake, does not stay."""
    made, address = watched()
    for connect in (raw_connection, lambda port: socket.create_connection(("127.0.0.1", port))):
        connection = connect(address.port or 0)
        becomes(made, {"127.0.0.1": 1})
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        becomes(made, {})


def test_many_that_come_and_go(watched: Any, context: Any) -> None:
    """However many come and go before anybody looks, nobody is left in the books."""
    made, address = watched()

    def come_and_go(number: int) -> None:
        for _ in range(40):
            socket.create_connection(("127.0.0.1", address.port or 0)).close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(come_and_go, range(4)))
    with Peer(context, str(address)):
        becomes(made, {"127.0.0.1": 1})


def test_many_threads_ask(watched: Any, context: Any) -> None:
    """Any thread may ask while connections come and go."""
    made, address = watched()
    is_over = threading.Event()

    def ask() -> int:
        most = 0
        while not is_over.is_set():
            most = max([most, *made.clients().values()])
        return most

    with in_thread(ask) as asked:
        for _ in range(20):
            with ExitStack() as stack:
                for _ in range(10):
                    stack.enter_context(socket.create_connection(("127.0.0.1", address.port or 0)))
                becomes(made, {"127.0.0.1": 10})
            becomes(made, {})
        is_over.set()

    assert [10] == asked


def test_descriptor_of_something_else() -> None:
    """A descriptor that is no connection any more has no address, and is left alone."""
    reader, writer = os.pipe()
    with socket.socket() as unconnected:
        assert ["unknown"] * 3 == [connections._peer_of(each) for each in (reader, unconnected.fileno(), 10**6)]
        assert "0.0.0.0" == unconnected.getsockname()[0]
    os.write(writer, b"x")
    assert b"x" == os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def test_end(watched: Any, context: Any) -> None:
    """After the end connections are made as before, and nobody keeps books."""
    made, address = watched()
    with Peer(context, str(address)):
        becomes(made, {"127.0.0.1": 1})
        for _ in range(3):
            made.end()
        with Peer(context, str(address)):
            assert {"127.0.0.1": 1} == made.clients()


def test_end_with_terminated_context() -> None:
    """It can be ended also when the context is about to end."""
    own: Any = zmq.Context()
    bound, _ = server_socket(own, zmq.ROUTER, Address.parse("tcp://127.0.0.1:0"))
    made = Connections(bound)
    with in_thread(own.term) as terminated:
        with pytest.raises(zmq.ContextTerminated):
            while True:
                bound.poll(1)
        made.end()
        bound.close()

    assert [None] == terminated
