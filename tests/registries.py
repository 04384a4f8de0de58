"""Registries of the tests: one that does as it is told, and one that can be stopped and started again."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import zmq

from registry import DeviceRegistry
from registry.stores.base import Store
from registry.stores.memory import MemoryStore
from tests.devices import LIMIT
from tests.helpers import wait_until


def acknowledge(event: str, success: bool = True, **more: Any) -> bytes:
    """What a registry replies to a renewal or removal."""
    return json.dumps({"event": "ACK", "payload": {"req_event": event, "success": success, **more}}).encode()


def unsupported(event: str, **more: Any) -> bytes:
    """What a registry replies to what it does not know, or does not accept."""
    payload = {"req_event": event}
    reply = {"event": "UNSUPPORTED", "payload": payload, "success": False, "error": "no, thanks", **more}
    return json.dumps(reply).encode()


class ScriptedRegistry:
    """Notes the messages that come, and answers them as a registry does, or as it is told to.

    Attributes
    ----------
    answers : dict
        Event to what is answered: a frame, or keys to which the id of the request is added. None is silence, and so is
        everything with `is_silent`.
    heard : list
        When each message came, its event, and its payload.
    """

    def __init__(self, context: Any) -> None:
        self.answers: dict[str, bytes | dict[str, Any] | None] = {}
        self.is_silent = False
        self.heard: list[tuple[float, str, Any]] = []
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.rcvtimeo = 20
        self.url = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended = True
        self._thread.join(LIMIT)
        self._socket.close()

    def payloads(self, event: str) -> list[Any]:
        """What came with the messages of that event."""
        return [payload for _, each, payload in list(self.heard) if each == event]

    def times(self, *events: str) -> list[float]:
        """When messages of these events came."""
        return [when for when, each, _ in list(self.heard) if each in events]

    def count(self, event: str) -> int:
        return len(self.payloads(event))

    def _run(self) -> None:
        while not self._ended:
            try:
                *envelope, frame = self._socket.recv_multipart()
            except zmq.Again:
                continue
            message = json.loads(frame)
            event, payload = message["event"], message.get("payload")
            self.heard.append((time.monotonic(), event, payload))
            answer = self.answers.get(event, self._usual(event, payload))
            if isinstance(answer, dict):
                answer = json.dumps({**answer, "id": message["id"]}).encode()
            if answer is not None and not self.is_silent:
                self._socket.send_multipart([*envelope, answer])

    def _usual(self, event: str, payload: Any) -> bytes:
        if event != "REGISTER":
            return acknowledge(event)
        number = self.count("REGISTER")
        given = {"name": payload["name"] or f"{payload['device_type']}-{number}", "uuid": f"uuid-{number}"}
        return json.dumps({"event": "REGISTER_ACK", "payload": given}).encode()


class Restartable:
    """A registry that is stopped and started again at the same url; it is there at first.

    Parameters
    ----------
    make_store
        Called for each start.
    """

    def __init__(self, context: Any, make_store: Callable[[], Store] = MemoryStore) -> None:
        self._context = context
        self._make_store = make_store
        self._port = 0
        self._current: DeviceRegistry | None = None
        self.start()

    @property
    def registry(self) -> DeviceRegistry:
        assert self._current is not None
        return self._current

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve, again where it was."""
        wait_until(self._is_bound)
        self.registry.start()

    def stop(self) -> None:
        """Serve no more; idempotent."""
        if self._current is None:
            return
        self._current.stop()
        self._current.join(LIMIT)
        assert not self._current._thread.is_alive()
        self._current = None

    def _is_bound(self) -> bool:
        try:
            self._current = DeviceRegistry(self._context, "127.0.0.1", self._port, self._make_store())
        except OSError:  # the old socket is let go in the background
            return False
        assert self._current.port is not None
        self._port = self._current.port
        return True


@contextlib.contextmanager
def unused_url() -> Iterator[str]:
    """A url at which nobody listens, as its port is kept."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"tcp://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def restartable(context: Any, make_store: Callable[[], Store] = MemoryStore) -> Iterator[Restartable]:
    """A registry that is stopped at the end."""
    made = Restartable(context, make_store)
    try:
        yield made
    finally:
        made.stop()
