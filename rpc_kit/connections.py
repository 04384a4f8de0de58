"""Who is connected to a socket, as libzmq tells it."""

import logging
import socket
from collections import Counter
from typing import Any

import zmq

from .sockets import HARD_LIMIT, ZmqSocket, end_monitor, monitor_connections, readable

logger = logging.getLogger(__name__)


class Connections:
    """The connections of a socket; of one thread, but for `clients`.

    To be ended before the socket is closed: an event that nobody can read would block libzmq's own thread for ever.

    Attributes
    ----------
    monitor : zmq.Socket
        Readable when something has happened.
    """

    def __init__(self, made: ZmqSocket) -> None:
        self._made = made
        self._hosts: dict[int, str] = {}
        self.monitor = monitor_connections(made)

    def note(self) -> None:
        """Take in what has happened, and log what is strange."""
        from zmq.utils.monitor import recv_monitor_message  # brings asyncio with it, which few need

        while readable(self.monitor):
            found: Any = recv_monitor_message(self.monitor)
            if found["event"] == zmq.EVENT_ACCEPTED:
                self._hosts[found["value"]] = _peer_of(found["value"])
            elif found["event"] == zmq.EVENT_DISCONNECTED:
                self._hosts.pop(found["value"], None)
                logger.debug("a connection ended; one with a frame of over %d bytes is ended by us", HARD_LIMIT)
            else:
                logger.info("something connected that does not speak ZeroMQ")

    def clients(self) -> dict[str, int]:
        """How many connections there are from each host; from any thread."""
        return dict(Counter(list(self._hosts.values())))

    def end(self) -> None:
        """Watch no more; idempotent."""
        if not self.monitor.closed:
            end_monitor(self._made, self.monitor)


def _peer_of(descriptor: int) -> str:
    try:
        peer = socket.socket(fileno=descriptor)
    except OSError:
        return "unknown"  # it has ended already
    try:
        name = peer.getpeername()
        return str(name[0]) if isinstance(name, tuple) else "local"
    except OSError:
        return "unknown"
    finally:
        peer.detach()
