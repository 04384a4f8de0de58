"""RPCServer: what makes a device reachable."""

import logging
import os
import secrets
import signal
import socket
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Self, cast

import msgspec
import zmq

from . import methods
from .addresses import Address, host_towards, own_addresses
from .discovery import registry_urls
from .dispatch import Dispatcher, Handler
from .endpoint import Endpoint
from .interface import Interface, UntilInit, declared_names, implemented_by, refuse_reserved
from .messages import Registration, Scalar
from .process import shorter_switch_interval, stopped_by_signals
from .publisher import Publisher, bound_signals
from .registrar import Member, Registrar
from .sockets import DRAIN_TIME, HARD_LIMIT, ZmqContext, bind_also, bind_beside, check_context, server_socket
from .stream_sender import StreamSender
from .systemd import Notifier
from .transfer import ServerTransfer, default_limit
from .wire import ReplyWriter

logger = logging.getLogger(__name__)

MAX_REQUEST = 64 << 20
"""Largest request that is accepted unless the server says otherwise, bytes."""
LONGEST_LEASE = 7 * 86400
"""What a registry grants, s."""
MOST_ADDRESSES = 32
"""What a registry takes; a host of containers may have more."""
CLOSE_TIME = 10.0
"""How long leaving a `with` block waits for the method that runs, s."""
SWITCH_INTERVAL = 0.0005
"""How often a busy pure-Python method lets the standby thread run, s."""


class ServerEngine:
    """All that a server owns; the device sees none of it."""

    def __init__(
        self,
        device: "RPCServer",
        context: ZmqContext,
        urls: Sequence[str],
        remote_stop: bool,
        max_request: int,
        shared_memory: int,
        control: Mapping[type, Handler],
    ) -> None:
        self.context = context
        self.interface = Interface.of(type(device))
        self.device_name = type(device).__name__
        self.max_request = max_request
        self.remote_stop = remote_stop
        self.member: Member | None = None
        self.registries: list[str] = []
        self.serving: threading.Thread | None = None
        self.finished = threading.Event()
        self.ended = False
        self.pid = os.getpid()
        self._state = threading.RLock()
        self.epoch = epoch = secrets.token_hex(8)
        self._described = implemented_by(type(device), RPCServer)
        self._stopped_by: list[signal.Signals] = []
        wake_url = f"inproc://rpc-kit-{epoch}"
        wanted = [Address.parse(url) for url in urls]
        if not wanted or (len(wanted) > 1 and any(each.transport != "tcp" or each.is_wildcard for each in wanted)):
            raise ValueError(f"a server listens at one url, or at tcp urls of several hosts, not at {', '.join(urls)}")
        self.transfer = ServerTransfer(shared_memory if self.interface.carries_buffers else 0)
        self._socket, self.address = server_socket(context, zmq.ROUTER, wanted[0])
        try:
            self._beside = bind_beside(self._socket, self.address)
            self.further = [
                bind_also(self._socket, each if each.port else each.with_port(self.address.port or 0))
                for each in wanted[1:]
            ]
            self._socket.bind(wake_url)
            signals = bound_signals(device, self.interface.signals)
            self.streams = StreamSender(context, self.address, epoch, list(signals), self.transfer, self.further)
            self.publisher = Publisher(
                context, self.address, epoch, signals, self.streams, self.interface.streamed, self.further
            )
            # By a proxy, so that a device that nobody holds any more is finalized at once, before its sockets.
            writer = ReplyWriter(epoch, self.transfer.load)
            dispatcher = Dispatcher(weakref.proxy(device), self.interface, self, writer, control)
            self.endpoint = Endpoint(
                self._socket, wake_url, dispatcher, max_request, self.transfer.view, self._abandoned
            )
        except BaseException:
            self._socket.close()
            raise
        self.notifier = Notifier(self._is_healthy, self._status)

    def server_name(self) -> str:
        """Name of the server, as registered."""
        return (self.member.name if self.member is not None else "") or self.device_name

    def open_signals(self, version: int) -> dict[str, Any]:
        """Where signals are published."""
        return self.publisher.open(version)

    def open_streams(self) -> dict[str, Any]:
        """Where streams are asked for."""
        return self.streams.open()

    def local_routes(self) -> dict[str, Any]:
        """Faster ways for clients on the same host."""
        routes: dict[str, Any] = {}
        if self._beside is not None:
            routes["ipc"] = str(self._beside)
        if (shared := self.transfer.describe()) is not None:
            routes["shm"] = shared
        return routes

    def load(self) -> dict[str, Any]:
        """Shared memory and streams that are in use."""
        usage = self.transfer.usage()
        facts = {"shm": None if usage is None else asdict(usage), "streams": self.streams.readers()}
        return {key: value for key, value in facts.items() if value}

    def current_call(self) -> tuple[dict[str, Any] | None, int]:
        """The running call, and how many are queued."""
        return self.endpoint.current_call()

    def request_stop(self) -> None:
        """STOP_SERVER has come."""
        if not self.remote_stop:
            raise PermissionError("this server is not to be stopped remotely")
        self.endpoint.stop()

    def reachable_at(self, peer: Address | None) -> str:
        """The url by which others connect: of several, and of a wildcard, the one towards `peer`."""
        if not self.address.is_wildcard:
            here = host_towards(peer) if peer is not None and self.further else ""
            return str(next((each for each in self.further if each.host == here), self.address))
        return str(self.address.with_host(host_towards(peer or Address("tcp", "192.0.2.1"))))

    def register(
        self,
        urls: Sequence[str],
        asked: Registration,
        lease: float,
        max_missed: int | None,
    ) -> str:
        """Register, and keep registered; the accepted name, empty until a registry answers."""
        if self.member is not None or self.ended:
            raise RuntimeError("a server that is registered, or has ended, cannot be registered")

        def describe(url: str) -> Registration:
            member = self.member
            return msgspec.structs.replace(
                asked,
                addr=self.reachable_at(Address.parse(url)),
                addresses=self._all_addresses(),
                name=(member.name if member is not None else "") or asked.name,
                # A registry that has not heard of it yet, from another one, keeps the entry as it is.
                uuid=member.last_uuid if member is not None else "",
                # A name that was taken from this device is not taken back, or two would do so for ever.
                overwrite=asked.overwrite and not (member is not None and member.last_uuid),
            )

        self.member = Member(describe, lease, max_missed, self.endpoint.stop)
        self.registries = list(urls)
        try:
            Registrar.add(self.context, urls, self.member)
        except BaseException:
            self.member = None
            raise
        return self.member.name

    def registration(self, type_: str, name: str, overwrite: bool, metadata: Mapping[str, Scalar]) -> Registration:
        """What a registry is told, but for the addresses."""
        facts: dict[str, Scalar] = {"host": socket.gethostname(), "pid": os.getpid(), "version": _version()}
        described = self._described
        return Registration(
            type_, "", name, overwrite, [], described.name, described.hash, self.epoch, {**facts, **metadata}
        )

    def _all_addresses(self) -> list[str]:
        if not self.address.is_wildcard:
            return [str(each) for each in (self.address, *self.further)]
        found = own_addresses(self.address.is_ipv6)[:MOST_ADDRESSES]
        return [str(self.address.with_host(host)) for host in found]

    def serve(self, switch_interval: float | None) -> None:
        """The body of serve_forever."""
        with self._state:
            if self.ended:
                raise RuntimeError("this server has ended: make a new one")
            if self.serving is not None:
                raise RuntimeError("this server is being served already")
            self.serving = threading.current_thread()
        try:
            with shorter_switch_interval(switch_interval), stopped_by_signals(
                self.stop_on, self.endpoint.signal_descriptor()
            ):
                self.notifier.ready()
                self.endpoint.serve()
        finally:
            self.close()

    def stop(self) -> None:
        """End serving, or close at once what is not served."""
        if os.getpid() != self.pid:
            return  # a forked process has no part in it
        with self._state:
            if self.ended:
                return
            if self.serving is not None:
                self.endpoint.stop()
                return
            self.ended = True
        self._close()

    def close(self) -> None:
        """Unregister and close everything; idempotent."""
        if os.getpid() != self.pid:
            return
        with self._state:
            if self.ended:
                return
            self.ended = True
        self._close()

    def stop_on(self, number: signal.Signals) -> None:
        """A signal has come."""
        self._stopped_by.append(number)
        self.endpoint.stop()

    def _leave(self) -> None:
        self.notifier.stopping()
        if self.member is not None:
            Registrar.discard(self.context, self.registries, self.member)

    def _abandoned(self) -> None:
        """A method does not end; who was told to end by a signal does so now, with nobody left to tell."""
        self._leave()
        if self._stopped_by:
            os.kill(self.pid, self._stopped_by[0])
        elif self.endpoint.unheard.number:
            # No handler runs, and so none can be taken away.
            os._exit(128 + self.endpoint.unheard.number)

    def _status(self) -> str:
        name = self.server_name()
        registered = "" if self.member is None or self.member.uuid else ", not registered"
        usage = self.transfer.usage()
        shared = "" if usage is None else f"; shared memory: {usage}"
        streams = self.streams.readers()
        dropped = sum(each["dropped"] for each in streams)
        read = f"; streams: {len(streams)}, {dropped} dropped" if streams else ""
        return f"{name} at {self.address}{registered}; {self.endpoint.status()}{shared}{read}"

    def _close(self) -> None:
        self._leave()
        self.publisher.close()
        self.streams.close()
        self.endpoint.close()
        self._socket.close(linger=DRAIN_TIME)
        self.transfer.close()
        self.finished.set()

    def _is_healthy(self) -> bool:
        """Whether the running call keeps to its declared time, and everything else is answered at once."""
        if self.endpoint.is_stuck():
            return False
        call, _ = self.endpoint.current_call()
        if call is None:
            return True
        method = self.interface.methods.get(call["member"])
        limit = method.mark.timeout if method is not None else methods.DEFAULT_TIMEOUT
        return limit is None or bool(call["seconds"] * 1000 <= limit)


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
        self._rpc = ServerEngine(self, context, urls, remote_stop, max_request, limit, self._control_handlers())
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


@lru_cache(maxsize=1)
def _version() -> str:
    from importlib import metadata  # takes 20 ms, which only registered devices need

    try:
        return metadata.version("rpc-kit")
    except metadata.PackageNotFoundError:
        return "unknown"
