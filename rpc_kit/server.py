"""RPCServer: what makes a device reachable."""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

from . import methods
from .addresses import Address
from .discovery import registry_urls
from .dispatch import Handler
from .interface import UntilInit, declared_names, refuse_reserved
from .messages import Scalar
from .server_engine import ServerEngine
from .sockets import HARD_LIMIT, ZmqContext, check_context
from .transfer import default_limit

logger = logging.getLogger(__name__)

MAX_REQUEST = 64 << 20
"""Largest request that is accepted unless the server says otherwise, bytes."""
LONGEST_LEASE = 7 * 86400
"""What a registry grants, s."""
CLOSE_TIME = 10.0
"""How long leaving a `with` block waits for the method that runs, s."""
SWITCH_INTERVAL = 0.0005
"""How often a busy pure-Python method lets the standby thread run, s."""


class RPCServer:
    """Mixin that serves a device: ``class CameraServer(Camera, RPCServer)``.

    Parameters
    ----------
    context : zmq.Context
    url : str or sequence of str
        Where to listen: ``tcp://*:9000``, ``tcp://127.0.0.1:0`` for any free port, ``tcp://[::1]:9000``,
        ``ipc://path``, ``inproc://name``; without a port a random one from 10000 to 12000. Several tcp urls for some
        of the host's networks.
    alive_timeout : float, default 60
        Lease in the registry, s: so long after a crash the device is still listed.
    remote_stop : bool, default True
        Whether clients may stop the server.
    max_request : int, default 64 MiB
        Larger requests are refused, bytes; from 256 MiB on by closing the connection.
    shared_memory : int, optional
        Most of it that arrays may take for clients on the same host, bytes; 0 for none. Else 512 MiB, or a quarter of
        /dev/shm if that is less. What is taken depends on the largest arrays, and on how many are in use at a time.

    Raises
    ------
    OSError
        When the url cannot be bound.
    InterfaceError
        When the class declares something that cannot be served.
    """

    # No staticmethod(): mypy would lose their overloads. They are used on the class only.
    register_method_json = methods.register_method_json
    register_method_buffer = methods.register_method_buffer

    _rpc: ServerEngine = cast(Any, UntilInit())

    def __init__(
        self,
        context: ZmqContext,
        url: str | Sequence[str],
        alive_timeout: float = 60,
        *,
        remote_stop: bool = True,
        max_request: int = MAX_REQUEST,
        shared_memory: int | None = None,
    ) -> None:
        check_context(context)
        if not 0 < max_request <= HARD_LIMIT:
            raise ValueError(f"max_request is a number of bytes up to {HARD_LIMIT}, not {max_request}")
        limit = default_limit() if shared_memory is None else shared_memory
        if limit < 0:
            raise ValueError(f"shared_memory is a number of bytes, 0 for none, not {shared_memory}")
        self._alive_timeout = _checked_lease(alive_timeout)
        urls: list[Any] = [*url] if isinstance(url, (list, tuple)) else [url]
        self._rpc = ServerEngine(
            self, context, urls, remote_stop, max_request, limit, self._control_handlers(), RPCServer
        )
        super().__init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_reserved(declared_names(cls), cls)

    def _control_handlers(self) -> Mapping[type, Handler]:
        """Further messages that this server answers, also while a method runs; the registry has some."""
        return {}

    @property
    def context(self) -> ZmqContext:
        """The ZeroMQ context the server was made with."""
        return self._rpc.context

    @property
    def url(self) -> str:
        """Where the server listens, with the port it got; of several urls the first."""
        return str(self._rpc.address)

    @property
    def port(self) -> int | None:
        """The port of a tcp url."""
        return self._rpc.address.port

    @property
    def name(self) -> str:
        """The name the registry accepted; before that the name of the class."""
        return self._rpc.server_name()

    @property
    def uuid(self) -> str:
        """What the registry knows the device by; empty before registration."""
        return self._rpc.member.uuid if self._rpc.member is not None else ""

    @property
    def registry_addr(self) -> str:
        """Url of the registry that knows the device; empty before registration."""
        member = self._rpc.member
        return member.registry_url if member is not None else ""

    @property
    def peer_addr(self) -> str:
        """The url by which clients on other hosts connect; what the registry is told."""
        return self._rpc.reachable_at(Address.parse(self.registry_addr) if self.registry_addr else None)

    @property
    def alive_timeout(self) -> float:
        """Lease in the registry, s."""
        return self._alive_timeout

    def register_to_registry(
        self,
        type_: str,
        name: str,
        registry_url: str | Sequence[str] | None = None,
        overwrite: bool = True,
        *,
        metadata: Mapping[str, Scalar] | None = None,
        max_missed: int | None = None,
        alive_timeout: float | None = None,
    ) -> str:
        """Register the device, and keep it registered until the server ends.

        A registry that cannot be reached, now or later, does not stop the device: it is tried again and again.

        Parameters
        ----------
        type_ : str
            Device type, by which others look for it.
        name : str
            The proposed name; empty for ``<type>-0``.
        registry_url : str or sequence of str, optional
            Registries that know the same names, also as one text with commas; the first that answers is used, another
            one when it is lost. Else those of RPC_REGISTRY, of the configuration file, or those that announce
            themselves.
        overwrite : bool, default True
            Take the name from whoever has it, as a restarted device does; else it gets ``<name>-1`` and so on.
        metadata : mapping, optional
            Texts, numbers and truth values by which others may look for the device, 4 KiB at most; ``host``, ``pid``
            and ``version`` (of rpc-kit) are added.
        max_missed : int, optional
            Stop the server when so many renewals in a row, a third of the lease apart, were not answered.
        alive_timeout : float, optional
            The lease, s, in the place of the one that the server was made with.

        Returns
        -------
        str
            The accepted name; empty when no registry has answered within 2 s. `name` tells it later.

        Raises
        ------
        RegistryRefused
            When the registry does not accept it, as the name is not printable (a ValueError).
        NoRegistry
            When none is named, and none announces itself.
        ValueError
            When a url is none.
        RuntimeError
            When the server is registered already, or has ended.
        """
        urls = registry_urls(registry_url)
        if max_missed is not None and max_missed < 1:
            raise ValueError(f"max_missed is a positive number or None, not {max_missed}")
        if alive_timeout is not None:
            self._alive_timeout = _checked_lease(alive_timeout)
        asked = self._rpc.registration(type_, name, overwrite, metadata or {})
        asked.alive_timeout = self._alive_timeout
        return self._rpc.register(urls, asked, self._alive_timeout, max_missed)

    def loan(self, shape: int | Sequence[int], dtype: Any = "uint8") -> Any:
        """An array to write a frame into, which then travels without a copy when it is returned or emitted.

        It lies in shared memory if there is room, else in ordinary memory. It is read-only once it was sent; take
        another one for the next frame. One that is forgotten is given back.

        Parameters
        ----------
        shape : int or sequence of int
        dtype : data type, default uint8

        Returns
        -------
        ndarray
            Not initialised.

        Raises
        ------
        TypeError
            When the dtype is one of Python objects.
        """
        return self._rpc.transfer.loan(shape, dtype)

    def stats(self) -> dict[str, Any]:
        """Who is served: `shm`, the shared memory in use, and `streams`, with what was sent to and dropped for each."""
        return self._rpc.load()

    def serve_forever(self, switch_interval: float | None = SWITCH_INTERVAL) -> None:
        """Serve on the calling thread, on which all methods of the device run, until the server is stopped.

        In the main thread SIGTERM and SIGINT stop it, unless the program has handlers of its own. Afterwards the
        device is unregistered and everything is closed. A method that runs may take 10 s to end; after that its caller
        is told, the device is unregistered, and a signal does to the process what it always does.

        Parameters
        ----------
        switch_interval : float or None, default 0.0005
            Python's thread switch interval while serving, s, so that a busy method in pure Python does not delay the
            answers to other clients; None leaves it alone.

        Raises
        ------
        RuntimeError
            When the server is served already, or has ended.
        """
        self._rpc.serve(switch_interval)

    def stop_server(self) -> None:
        """Stop serving after the running call; from any thread or signal handler, any number of times.

        Calls that wait are answered with `ServerStopping`. A server that is not being served is closed at once.
        """
        self._rpc.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        engine = self._rpc
        engine.stop()
        if os.getpid() != engine.pid or engine.serving is threading.current_thread():
            return
        if not engine.finished.wait(CLOSE_TIME):
            logger.warning("%s still runs a method, and ends after it", self.name)

    def __del__(self) -> None:
        if "_rpc" in self.__dict__:
            self._rpc.close()


def _checked_lease(seconds: float) -> float:
    if not 0 < seconds <= LONGEST_LEASE:
        raise ValueError(f"alive_timeout is a number of seconds up to {LONGEST_LEASE}, not {seconds}")
    return seconds
