"""The client side of the registry: register a device, keep it registered, find others."""

import logging
import random
import threading
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET

from .errors import DeviceNotFound, ProtocolError, RegistryUnreachable
from .messages import EventType, MethodCall, Params, Registration, Removal, Renewal
from .sockets import ZmqContext, ask_once
from .wire import failure_of, parse_registry_reply, parse_reply, registry_frame, request_frame

logger = logging.getLogger(__name__)

REGISTRY_TIMEOUT = 2.0
"""How long a registry has for one answer, s."""
FIRST_BACKOFF = 0.5
"""Pause after the first vain try to reach the registry, s; it doubles up to a third of the lease."""


class AliveCheckState(StrEnum):
    """What the registry says to a renewal."""

    ok = "ok"
    unknown = "unknown"
    unreachable = "unreachable"


def register_device(
    context: ZmqContext, type_: str, addr: str, name: str, registry_url: str, overwrite: bool = False
) -> tuple[str, str]:
    """Register a device.

    Parameters
    ----------
    type_ : str
        Device type, by which others look for it.
    addr : str
        Where clients connect to.
    name : str
        The proposed name; empty for ``<type>-0``.
    overwrite : bool, default False
        Take the name away from whoever has it.

    Returns
    -------
    tuple of str
        Accepted name and uuid; ``("", "")`` when no registry answers within 2 s.
    """
    payload = Registration(type_, addr, name, overwrite)
    reply = _ask(context, registry_url, EventType.REGISTER, payload)
    if reply is None:
        return "", ""
    return str(reply.get("name", "")), str(reply.get("uuid", ""))


def unregister_device(context: ZmqContext, uuid: str, registry_addr: str) -> bool:
    """Remove a device; False when the registry does not know the uuid or does not answer within 2 s."""
    reply = _ask(context, registry_addr, EventType.UNREGISTER, Removal(uuid))
    return reply is not None and reply.get("success") is True


def send_alive_check(
    context: ZmqContext, uuid: str, registry_url: str, alive_timeout: float = 20
) -> AliveCheckState:
    """Renew the lease of a device for `alive_timeout` seconds; unreachable after 2 s without an answer."""
    reply = _ask(context, registry_url, EventType.CHECK_ALIVE, Renewal(uuid, alive_timeout))
    if reply is None:
        return AliveCheckState.unreachable
    return AliveCheckState.ok if reply.get("success") is True else AliveCheckState.unknown


def find_device(context: ZmqContext, name: str, registry_url: str, timeout: float = 5.0) -> str:
    """The url of a registered device.

    Parameters
    ----------
    timeout : float, default 5.0
        How long the registry has to answer, s.

    Raises
    ------
    DeviceNotFound
        When no device of that name is registered (a LookupError).
    RegistryUnreachable
        When the registry does not answer in time (a ConnectionError).
    """
    request = MethodCall(method="find", params=Params([name]), id=(f"find-{random.getrandbits(64):x}", 1))
    try:
        reply = parse_reply(ask_once(context, registry_url, request_frame(request), timeout))
    except (TimeoutError, ConnectionError) as exc:
        raise RegistryUnreachable(f"the registry at {registry_url} did not answer within {timeout:g} s") from exc
    if not reply.success:
        failure = failure_of(reply)
        if isinstance(failure, DeviceNotFound):
            raise DeviceNotFound(str(failure)) from None
        raise failure
    if reply.result is UNSET or not isinstance(reply.result, dict) or "address" not in reply.result:
        raise ProtocolError(f"the registry at {registry_url} gave no address for {name!r}")
    return str(reply.result["address"])


def _ask(context: ZmqContext, url: str, event: EventType, payload: msgspec.Struct) -> dict[str, Any] | None:
    request = registry_frame(event, msgspec.to_builtins(payload))
    try:
        return parse_registry_reply(ask_once(context, url, request, REGISTRY_TIMEOUT))
    except (TimeoutError, ConnectionError) as exc:
        logger.debug("no answer of the registry at %s to %s: %s", url, event, exc)
    except ProtocolError as exc:
        logger.warning("the registry at %s answered %s with nonsense: %s", url, event, exc)
    return None


class Registrar:
    """Keeps one device registered: renews its lease, and registers it again when the registry has forgotten it.

    Parameters
    ----------
    addr : str
        Where clients connect to.
    alive_timeout : float
        The lease, s; renewed every third of it.

    Raises
    ------
    RegistryUnreachable
        When the registry does not answer the first time; later on the registrar keeps trying.
    """

    def __init__(
        self,
        context: ZmqContext,
        type_: str,
        addr: str,
        name: str,
        registry_url: str,
        overwrite: bool,
        alive_timeout: float,
    ) -> None:
        self._context = context
        self._type = type_
        self._addr = addr
        self._overwrite = overwrite
        self._registry_url = registry_url
        self._alive_timeout = alive_timeout
        self._stopped = threading.Event()
        self.name, self.uuid = register_device(context, type_, addr, name, registry_url, overwrite)
        if not self.uuid:
            raise RegistryUnreachable(f"no registry answered at {registry_url} within {REGISTRY_TIMEOUT:g} s")
        self._thread = threading.Thread(target=self._renew, name="rpc-registrar", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Unregister the device; idempotent."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        self._thread.join()
        if not unregister_device(self._context, self.uuid, self._registry_url):
            logger.warning("%s could not be unregistered at %s", self.name, self._registry_url)

    def _renew(self) -> None:
        regular = self._alive_timeout / 3
        pause, backoff = 0.0, min(FIRST_BACKOFF, regular)  # the first renewal replaces the 20 s of a new entry
        while not self._stopped.wait(pause):
            state = send_alive_check(self._context, self.uuid, self._registry_url, self._alive_timeout)
            if state is AliveCheckState.unknown:
                state = self._register_again()
            if state is AliveCheckState.ok:
                # Jitter, so that the devices of a lab do not all renew at the same moment.
                pause, backoff = regular * random.uniform(0.8, 1.0), min(FIRST_BACKOFF, regular)
            else:
                logger.warning("the registry at %s is unreachable; next try in %.1f s", self._registry_url, backoff)
                pause, backoff = backoff, min(2 * backoff, regular)

    def _register_again(self) -> AliveCheckState:
        name, uuid = register_device(
            self._context, self._type, self._addr, self.name, self._registry_url, self._overwrite
        )
        if not uuid:
            return AliveCheckState.unreachable
        logger.info("registered again at %s as %s", self._registry_url, name)
        self.name, self.uuid = name, uuid
        return send_alive_check(self._context, uuid, self._registry_url, self._alive_timeout)
