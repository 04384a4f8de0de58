"""All that a server owns: sockets, threads, shared memory and registration; the mixin RPCServer is thin."""

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
from typing import Any

import msgspec
import zmq

from . import methods
from .addresses import Address, host_towards, own_addresses
from .dispatch import Dispatcher, Handler
from .endpoint import Endpoint
from .interface import Interface, implemented_by
from .messages import Registration, Scalar
from .process import shorter_switch_interval, stopped_by_signals
from .publisher import Publisher, bound_signals
from .registrar import Member, Registrar
from .sockets import DRAIN_TIME, ZmqContext, bind_also, bind_beside, server_socket
from .stream_sender import StreamSender
from .systemd import Notifier
from .transfer import ServerTransfer
from .wire import ReplyWriter

logger = logging.getLogger(__name__)

MOST_ADDRESSES = 32
"""What a registry takes; a host of containers may have more."""


class ServerEngine:
    """All that a server owns; the device sees none of it."""

    def __init__(
        self,
        device: object,
        context: ZmqContext,
        urls: Sequence[str],
        remote_stop: bool,
        max_request: int,
        shared_memory: int,
        control: Mapping[type, Handler],
        mixin: type,
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
        self._described = implemented_by(type(device), mixin)
        self._stopped_by: list[signal.Signals] = []
        wake_url = f"inproc://rpc-kit-{epoch}"
        wanted = _addresses(urls)
        self.transfer = ServerTransfer(shared_memory if self.interface.carries_buffers else 0)
        self._socket, self.address = server_socket(context, zmq.ROUTER, wanted[0])
        try:
            self._beside = bind_beside(self._socket, self.address)
            port = self.address.port or 0
            self.further = [bind_also(self._socket, each if each.port else each.with_port(port)) for each in wanted[1:]]
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
                self._socket, wake_url, dispatcher, max_request, self.transfer, self._abandoned
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


def _addresses(urls: Sequence[str]) -> list[Address]:
    """Where a server listens."""
    found = [Address.parse(url) for url in urls]
    if not found or (len(found) > 1 and any(each.transport != "tcp" or each.is_wildcard for each in found)):
        raise ValueError(f"a server listens at one url, or at tcp urls of several hosts, not at {', '.join(urls)}")
    return found


@lru_cache(maxsize=1)
def _version() -> str:
    from importlib import metadata  # takes 20 ms, which only registered devices need

    try:
        return metadata.version("rpc-kit")
    except metadata.PackageNotFoundError:
        return "unknown"
