"""Messages to a registry: register a device, renew its lease, unregister it."""

import logging
from enum import StrEnum
from typing import Any

import msgspec

from .errors import ProtocolError, RegistryRefused, StoreError
from .messages import EventType, Registration, Removal, Renewal
from .sockets import ZmqContext, ask_once
from .wire import parse_registry_reply, registry_frame

logger = logging.getLogger(__name__)

REGISTRY_TIMEOUT = 2.0
"""How long a registry has for one answer, s."""

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
        Accepted name and uuid; ``("", "")`` when no registry answers within 2 s, or it refuses.
    """
    reply = _ask(context, registry_url, EventType.REGISTER, Registration(type_, addr, name, overwrite))
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


def _ask(context: ZmqContext, url: str, event: EventType, payload: msgspec.Struct) -> dict[str, Any] | None:
    try:
        return exchange(context, url, event, payload, REGISTRY_TIMEOUT)
    except RegistryRefused as exc:
        logger.warning("the registry at %s refused %s: %s", url, event, exc)
    return None


def exchange(
    context: ZmqContext, url: str, event: EventType, payload: msgspec.Struct, timeout: float
) -> dict[str, Any] | None:
    """The payload of the registry's reply; None without one; raises RegistryRefused."""
    request = registry_frame(event, msgspec.to_builtins(payload))
    try:
        return parse_registry_reply(ask_once(context, url, request, timeout))
    except (TimeoutError, ConnectionError) as exc:
        logger.debug("no answer of the registry at %s to %s: %s", url, event, exc)
    except StoreError as exc:
        logger.warning("the registry at %s cannot do %s now: %s", url, event, exc)
    except ProtocolError as exc:
        logger.warning("the registry at %s answered %s with nonsense: %s", url, event, exc)
    return None
