"""Registries announced and found by multicast DNS; needs the extra ``discovery``, and is imported where it is used."""

import asyncio
import contextlib
import ipaddress
import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence, Set

import ifaddr
from zeroconf import DNSQuestionType, InterfaceChoice, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from .addresses import Address

logger = logging.getLogger(__name__)

SERVICE_TYPE = "_rpc-registry._tcp.local."
LOOPBACK = "127.0.0.1"
MOST_FOUND = 32
"""So many registries are looked at, and so many urls are given: anybody in the network can announce some."""
EXTRA_TIME = 0.2
"""How long others may answer after the first registry was found, s."""
RECHECK_TIME = 15.0
"""How often an announcement looks whether this host got other addresses, s."""
LONGEST_LABEL = 50
"""DNS has room for 63 bytes, with what makes the name unique."""

_WILDCARDS = {"*": (4,), "0.0.0.0": (4,), "::": (4, 6)}
"""The versions of IP by which a server bound to a wildcard is reached."""

_WAYS: list[tuple[list[str] | InterfaceChoice, bool, DNSQuestionType]] = [
    ([LOOPBACK], True, DNSQuestionType.QU),
    (InterfaceChoice.All, True, DNSQuestionType.QU),
    (InterfaceChoice.All, False, DNSQuestionType.QM),
]
"""How registries are asked for: where, at a port of our own or at that of all, and for answers to us or to all.

Answers to all are sent once a second at most, and so come late when others have just asked. Answers to us may get lost
at a firewall, or at another program if it is not at a port of our own. The first way reaches nobody but this host.
"""

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


async def browse(timeout: float) -> list[str]:
    """The urls of the registries that are announced, in the order of their names; waits for the first."""
    own = _own_interfaces()
    asked: dict[tuple[Zeroconf, str], asyncio.Task[None]] = {}
    found: dict[tuple[str, int], set[_IP]] = {}
    some = asyncio.Event()
    here: set[Zeroconf] = set()
    problem = None

    async def resolve(zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if await info.async_request(zeroconf, timeout * 1000) and info.port:
            addresses = {each for each in map(ipaddress.ip_address, info.parsed_addresses()) if _is_usable(each)}
            # The loopback of another host is none of ours: also registries that are announced there only hear the
            # questions of other hosts when any program listens to these (IP_MULTICAST_ALL), and answer if asked for it.
            addresses = {each for each in addresses if zeroconf in here or not each.is_loopback}
            if addresses:
                found.setdefault((name, info.port), set()).update(addresses)
                some.set()

    def see(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if (zeroconf, name) not in asked and len(asked) < 3 * MOST_FOUND:
            asked[zeroconf, name] = asyncio.ensure_future(resolve(zeroconf, name))

    async with contextlib.AsyncExitStack() as stack:
        for interfaces, unicast, kind in _WAYS:
            try:
                zeroconf = (await stack.enter_async_context(_opened(interfaces, unicast))).zeroconf
            except OSError as exc:
                problem = exc  # such as a program that has the port of all for itself
                continue
            if interfaces == [LOOPBACK]:
                here.add(zeroconf)
            browser = AsyncServiceBrowser(zeroconf, SERVICE_TYPE, [see], question_type=kind)
            await stack.enter_async_context(browser)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await some.wait()
                await asyncio.sleep(EXTRA_TIME)
    # Not before, as up to the end more can be seen.
    for task in asked.values():
        task.cancel()
    await asyncio.gather(*asked.values(), return_exceptions=True)  # what is damaged is left out
    if problem is not None and not found:
        raise problem
    names = sorted(found)[:MOST_FOUND]
    return list(dict.fromkeys(url for name in names for url in ranked_urls(found[name], name[1], own)))[:MOST_FOUND]


def ranked_urls(addresses: Set[_IP], port: int, own: Sequence[_Interface]) -> list[str]:
    """The urls at which a registry may be reached: first in networks of ours, then IPv4, then IPv6."""
    ours = {each.ip for each in own}
    is_here = addresses <= ours

    def rank(address: _IP) -> tuple[bool, bool, int, int]:
        # What a registry elsewhere has as well as we is the address of a bridge (docker0), and leads to ourselves.
        is_misleading = address in ours and not is_here
        is_near = any(address in each.network for each in own)
        return is_misleading, not is_near, address.version, int(address)

    return [str(Address("tcp", str(address), port)) for address in sorted(addresses, key=rank)[:MOST_FOUND]]


def _is_usable(address: _IP) -> bool:
    """Whether a url can have it; a link-local one of IPv6 would need the name of an interface."""
    if address.is_multicast or address.is_unspecified:
        return False
    return not (address.is_reserved if address.version == 4 else address.is_link_local)


def _own_interfaces() -> list[_Interface]:
    found = [each for adapter in ifaddr.get_adapters() for each in adapter.ips]
    hosts = [(each.ip if isinstance(each.ip, str) else each.ip[0], each.network_prefix) for each in found]
    return [ipaddress.ip_interface(f"{host.partition('%')[0]}/{prefix}") for host, prefix in hosts]


def check_addresses(addresses: Sequence[str]) -> None:
    """Raise ValueError unless there are some, and all of them are wildcards or numeric ones that a url can have."""
    if not addresses:
        raise ValueError("there is no address to announce")
    for address in addresses:
        if address not in _WILDCARDS and not _is_usable(ipaddress.ip_address(address)):
            raise ValueError(f"{address} cannot be announced: others cannot connect to it")


@contextlib.asynccontextmanager
async def _opened(interfaces: list[str] | InterfaceChoice, unicast: bool = False) -> AsyncIterator[AsyncZeroconf]:
    if not any(each.version == 4 for each in _own_interfaces()):
        raise OSError("this host has no address of IPv4")
    service = AsyncZeroconf(interfaces, unicast)
    try:
        # A cancellation while it starts would leave it half open.
        await asyncio.shield(service.zeroconf.async_wait_for_start())
        yield service
    finally:
        await service.async_unregister_all_services()
        await service.async_close()


async def keep_announced(addresses: Sequence[str], port: int, name: str) -> None:
    """Announce a registry until cancelled, with the addresses that this host has; tries again after failures."""
    # zeroconf does not notice the same name on the same host, nor one that is announced at the same time.
    mark = secrets.token_hex(4)
    label = "".join(char if char.isprintable() and char != "." else "-" for char in name)
    label = f"{label.encode()[:LONGEST_LABEL].decode(errors='ignore')}-{mark}"
    problem = ""
    while not _is_cancelled():
        try:
            await _announce(addresses, port, label, f"rpc-registry-{mark}.local.")
            problem = ""
        except Exception as exc:
            if repr(exc) != problem:
                problem = repr(exc)
                logger.warning("the registry cannot be announced: %s", problem)
            await _pause()


async def _announce(addresses: Sequence[str], port: int, label: str, server: str) -> None:
    """Announce it until this host has other addresses."""
    hosts = _reachable(addresses)
    is_local = all(ipaddress.ip_address(host).is_loopback for host in hosts)
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"{label}.{SERVICE_TYPE}",
        port,
        properties={"version": "1"},
        server=server,
        parsed_addresses=hosts,
    )
    async with _opened([LOOPBACK] if is_local else InterfaceChoice.All) as service:
        await (await service.async_register_service(info, allow_name_change=True))
        while hosts == _reachable(addresses) and not _is_cancelled():
            await _pause()


async def _pause() -> None:
    if not _is_cancelled():
        await asyncio.sleep(RECHECK_TIME)


def _is_cancelled() -> bool:
    """Whether the task was asked to end; zeroconf swallows that in places."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _reachable(addresses: Iterable[str]) -> list[str]:
    """The same with this host's addresses instead of wildcards: those in a network, if there are any."""

    def expanded(address: str) -> Iterator[_IP]:
        if address not in _WILDCARDS:
            yield ipaddress.ip_address(address)
            return
        own = [each.ip for each in _own_interfaces() if each.version in _WILDCARDS[address] and _is_usable(each.ip)]
        yield from [ip for ip in own if not ip.is_loopback] or own

    return sorted({str(ip) for address in addresses for ip in expanded(address)})
