"""Devices by their names: ask the registries, and connect to what they know."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, Self, TypeVar, cast

import zmq

from .calls import LIVENESS, PROBE_TIME, Calls, Locate, answering
from .client import RPCClient
from .convert import converter
from .discovery import registry_urls
from .errors import (
    CallTimeout,
    DeviceNotFound,
    ProtocolError,
    RegistryUnreachable,
    ReplyLost,
    ServerBusy,
    ServerLost,
    ServerStopping,
    StoreError,
)
from .messages import Entry, MethodCall, Params, Scalar
from .sockets import ZmqContext, check_context
from .watching import REGISTRY_LIVENESS, RegistryEvent, RegistryWatch
from .wire import failure_of, parse_reply

logger = logging.getLogger(__name__)

LOOK_UP_TIME = 5.0
"""How long all registries together have to answer, s."""
SHARE = 1.0
"""After so long without an answer the next registry is asked, s."""
PAUSE = 0.1
"""After all registries have failed, before they are asked again, s."""
OUTAGE = 10.0
"""For so long after no registry has answered, each look-up waits for half a second only, s."""

I = TypeVar("I")  # noqa: E741

_entry = converter(Entry)
_entries = converter(list[Entry])
# What another registry may do better, or the same one later.
_PASSED_ON = (CallTimeout, ServerLost, ServerBusy, ServerStopping, ReplyLost, StoreError, ProtocolError)


class RegistryClient:
    """Looks devices up, in the first registry that answers.

    What was found is remembered: when no registry answers, entries marked as `stale` are given instead. Usable from
    many threads.

    Parameters
    ----------
    registries : str or sequence of str, optional
        Urls of registries that know the same names, also as one text with commas; else those of RPC_REGISTRY, of the
        configuration file, or those that announce themselves.
    context : zmq.Context, optional
        The global one unless told otherwise.
    timeout : float, default 5.0
        How long the registries have to answer a look-up, s.

    Raises
    ------
    NoRegistry
        When none is named, and none announces itself.
    """

    def __init__(
        self,
        registries: str | Sequence[str] | None = None,
        context: ZmqContext | None = None,
        timeout: float = LOOK_UP_TIME,
    ) -> None:
        self._context: ZmqContext = context or zmq.Context.instance()
        check_context(self._context)
        self.urls = registry_urls(registries)
        self._timeout = timeout
        self._preferred = self.urls[0]
        self._remembered: dict[str, Entry] = {}
        self._has_listed = False
        self._lost_at = -OUTAGE
        self._watches: list[RegistryWatch] = []
        self._calls: dict[str, Calls] = {}
        for url in self.urls:
            self._calls[url] = Calls(self._context, url, REGISTRY_LIVENESS)

    def list(self, device_type: str | None = None, **metadata: Scalar) -> "list[Entry]":
        """The registered devices, all or those of one type and with these metadata, in the order of registration.

        Raises
        ------
        RegistryUnreachable
            When no registry answers, and all devices were never listed before (a ConnectionError).
        """
        try:
            found: list[Entry] = _entries(self._ask("list", [device_type], metadata, self._patience()))
        except RegistryUnreachable:
            if not (self._has_listed and self._remembered):
                raise
            return [
                replace(entry, stale=True)
                for entry in [*self._remembered.values()]
                if device_type in (None, entry.device_type) and metadata.items() <= entry.metadata.items()
            ]
        if device_type is None and not metadata:
            self._remembered, self._has_listed = {entry.name: entry for entry in found}, True
        return found

    def find(self, name: str) -> Entry:
        """The device of that name.

        Raises
        ------
        DeviceNotFound
            When there is none (a LookupError).
        RegistryUnreachable
            When no registry answers, and the device is not remembered (a ConnectionError).
        """
        return self._find(name, self._patience())

    def _find(self, name: str, timeout: float) -> Entry:
        try:
            found: Entry = _entry(self._ask("find", [name], {}, timeout))
        except RegistryUnreachable:
            if name not in self._remembered:
                raise
            logger.warning("no registry answers: %s is where it was", name)
            return replace(self._remembered[name], stale=True)
        except DeviceNotFound:
            self._remembered.pop(name, None)
            raise
        self._remembered[name] = found
        return found

    def wait_for(self, name: str, timeout: float) -> Entry:
        """The device of that name, as soon as there is one.

        Parameters
        ----------
        timeout : float
            How long to wait for it, s.

        Raises
        ------
        DeviceNotFound
            When there was none in that time.
        RegistryUnreachable
            When no registry has answered in that time.
        """
        found: Entry = _entry(self._ask("wait_for", [name], {}, timeout))
        self._remembered[name] = found
        return found

    def evict(self, name: str) -> Entry:
        """Remove the device of that name from the registry; one that is alive registers again.

        Raises
        ------
        DeviceNotFound
            When there is none.
        """
        found: Entry = _entry(self._ask("evict", [name], {}, self._timeout))
        return found

    def watch(self, callback: Callable[[RegistryEvent], object]) -> RegistryWatch:
        """Call `callback` for each device that is there, and for every one that comes, changes or goes.

        It is called on a thread of the watch, until that or this client is closed.
        """
        self._watches = [each for each in self._watches if not each.closed]
        made = RegistryWatch(self._context, self.urls, callback)
        self._watches.append(made)
        return made

    def close(self) -> None:
        """Close connections and watches; idempotent."""
        for calls in self._calls.values():
            calls.close()
        while self._watches:
            self._watches.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_calls" in self.__dict__:
            self.close()

    def _patience(self) -> float:
        return 0.5 if time.monotonic() - self._lost_at < OUTAGE else self._timeout

    def _ask(self, method: str, args: Sequence[Any], kwargs: dict[str, Any], timeout: float) -> Any:
        """The result of the first registry that answers."""
        deadline = time.monotonic() + timeout
        failure: Exception | None = None
        while failure is None or time.monotonic() < deadline:
            if failure is not None:
                time.sleep(PAUSE)
            for number, url in enumerate(sorted(self.urls, key=self._preferred.__ne__)):
                left = max(0.05, deadline - time.monotonic())
                # What is left is for those that were not asked yet, too: the first may be silent.
                share = left if len(self.urls) == 1 else min(left / (len(self.urls) - number), SHARE)
                try:
                    result = self._ask_one(url, method, args, kwargs, left, share)
                except _PASSED_ON as exc:
                    logger.debug("the registry at %s: %s", url, exc)
                    failure = exc
                    continue
                self._preferred, self._lost_at = url, -OUTAGE
                return result
        self._lost_at = time.monotonic()
        why = "is one running there?" if isinstance(failure, (CallTimeout, ServerLost)) else str(failure)
        raise RegistryUnreachable(f"no registry answers at {', '.join(self.urls)}: {why}") from failure

    def _ask_one(
        self, url: str, method: str, args: Sequence[Any], kwargs: dict[str, Any], left: float, limit: float
    ) -> Any:
        if method == "wait_for":
            args, limit = [*args, left], left + REGISTRY_LIVENESS
        request = MethodCall(method=method, params=Params([*args], kwargs))
        reply, _ = self._calls[url].exchange(request, limit, method, parse_reply)
        if reply.success:
            return reply.result
        failure = failure_of(reply)
        if isinstance(failure, DeviceNotFound):
            raise DeviceNotFound(str(failure)) from None
        raise failure


def connect(
    name: str,
    interface: Callable[..., I],
    *,
    registry: str | Sequence[str] | None = None,
    wait: float = 0.0,
    context: ZmqContext | None = None,
    timeout: int = 1000,
    on_error: Literal["raise", "return"] = "raise",
    liveness: float = LIVENESS,
    codec: Literal["jpeg", "zlib"] | None = None,
    quality: int = 90,
) -> I:
    """A client of the device of that name, wherever it is; it follows the device when that moves.

    The registries are those of `registry`; else of the environment variable RPC_REGISTRY (urls with commas between
    them); else of ``registry`` in ``~/.config/rpc-kit/config.toml``; else those that announce themselves by mDNS
    (``pip install rpc-kit[discovery]``).

    Parameters
    ----------
    name : str
        The name in the registry, or a url.
    interface : type
        The interface class; or a client class of it, of which type checkers know `close` and ``with``, too.
    wait : float, default 0
        How long to wait for the device to be registered, s.
    timeout, on_error, liveness, codec, quality
        As of `RPCClient`.

    Returns
    -------
    interface
        An `RPCClient`, with its `close` and `with`.

    Raises
    ------
    NoRegistry
        When no registry is named, and none announces itself.
    RegistryUnreachable
        When no registry answers.
    DeviceNotFound
        When no device has that name.
    ServerLost
        When nothing answers at any of its addresses.
    TimeoutError, InterfaceMismatch
        As of `RPCClient`.
    """
    made = client_class(cast(type, interface))  # not type[I]: mypy wants no abstract class there
    used: ZmqContext = context or zmq.Context.instance()
    locate: Locate | None = None
    url = name
    try:
        if "://" not in name:
            registries = RegistryClient(registry, used)
            locate = _Locator(registries, name, liveness / 2)
            url = _address_of(used, registries.wait_for(name, wait) if wait else registries.find(name))
        options: dict[str, Any] = {"on_error": on_error, "liveness": liveness, "codec": codec, "quality": quality}
        return cast(I, made(used, url, timeout, locate=locate, **options))
    except BaseException:
        if locate is not None:
            locate.close()
        raise


def _address_of(context: ZmqContext, entry: Entry) -> str:
    addresses = entry.addresses or (entry.address,)
    found = answering(context, addresses, PROBE_TIME, entry)
    if found is None:
        raise ServerLost(f"{entry.name} is registered, but does not answer at {', '.join(addresses)}")
    return found


class _Locator:
    """Says where the registry knows a device to be."""

    def __init__(self, registries: RegistryClient, name: str, timeout: float) -> None:
        self._registries = registries
        self._name = name
        self._timeout = timeout
        self.close = registries.close

    def __call__(self) -> Entry | None:
        try:
            return self._registries._find(self._name, self._timeout)
        except (DeviceNotFound, RegistryUnreachable):
            return None


@lru_cache(maxsize=1024)
def client_class(interface: type) -> type[RPCClient]:
    """A client class of an interface; the class itself when it is one."""
    if not isinstance(interface, type):
        raise TypeError(f"the second argument is an interface class, not {type(interface).__name__}")
    if issubclass(interface, RPCClient):
        return interface
    made = type(f"{interface.__name__}Client", (interface, RPCClient), {"__module__": interface.__module__})
    return RPCClient.register_interface(interface)(made)
