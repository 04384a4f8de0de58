"""Registries announced and found by multicast DNS; needs the extra ``discovery``, and is imported where it is used."""

import asyncio
import contextlib
import ipaddress
import logging
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

import ifaddr
from zeroconf import DNSQuestionType, InterfaceChoice, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from .addresses import Address

logger = logging.getLogger(__name__)

SERVICE_TYPE = "_rpc-registry._tcp.local."
MOST_FOUND = 32
"""So many registries are looked at, and so many addresses of each: anybody in the network can announce some."""
EXTRA_TIME = 0.2
"""How long others may answer after the first registry was found, s."""
RECHECK_TIME = 15.0
"""How often an announcement looks whether this host got other addresses, s."""
LONGEST_LABEL = 50
"""DNS has room for 63 bytes, with what makes the name unique."""

_WILDCARDS = {"*": (4,), "0.0.0.0": (4,), "::": (4, 6)}
"""The versions of IP by which a server bound to a wildcard is reached."""

_IP = ipaddress.IPv4Address | ipaddress.IPv6Address
_Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


async def browse(timeout: float) -> list[str]:
    """The urls of the registries that are announced, in the order of their names; waits for the first."""
    own = _own_interfaces()
    asked: dict[str, asyncio.Task[None]] = {}
    found: dict[str, list[str]] = {}
    some = asyncio.Event()
    # Answers by multicast: of the programs on a host only one gets what is sent to its address and port.
    multicast = DNSQuestionType.QM

    async def resolve(zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE_TYPE, name)
        if await info.async_request(zeroconf, timeout * 1000, multicast):
            found[name] = ranked_urls(info.parsed_addresses(), info.port or 0, own)
            if found[name]:
                some.set()

    def see(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if name not in asked and len(asked) < MOST_FOUND:
            asked[name] = asyncio.ensure_future(resolve(zeroconf, name))

    async with _multicast(InterfaceChoice.All) as service:
        try:
            async with AsyncServiceBrowser(service.zeroconf, SERVICE_TYPE, [see], question_type=multicast):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout):
                        await some.wait()
                        await asyncio.sleep(EXTRA_TIME)
        finally:
            for task in asked.values():
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)  # what is damaged is left out
    return list(dict.fromkeys(url for name in sorted(found) for url in found[name]))


def ranked_urls(hosts: Iterable[str], port: int, own: Sequence[_Interface]) -> list[str]:
    """The urls at which a registry may be reached: first in networks of ours, then IPv4, then IPv6."""
    addresses = {address for address in map(ipaddress.ip_address, hosts) if _is_usable(address)}
    ours = {each.ip for each in own}
    is_here = addresses <= ours

    def rank(address: _IP) -> tuple[bool, bool, int, int]:
        # What a registry elsewhere has as well as we is the address of a bridge (docker0), and leads to ourselves.
        is_misleading = address in ours and not is_here
        is_near = any(address in each.network for each in own)
        return is_misleading, not is_near, address.version, int(address)

    if not 1 <= port <= 65535:
        return []
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
    """Raise ValueError unless there are some, all of them numeric or wildcards."""
    if not addresses:
        raise ValueError("there is no address to announce")
    for address in addresses:
        if address not in _WILDCARDS:
            ipaddress.ip_address(address)


@contextlib.asynccontextmanager
async def _multicast(interfaces: Sequence[str] | InterfaceChoice) -> AsyncIterator[AsyncZeroconf]:
    if not any(each.version == 4 for each in _own_interfaces()):
        raise OSError("this host has no address of IPv4")
    service = AsyncZeroconf(interfaces=interfaces)
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
    async with _multicast(["127.0.0.1"] if is_local else InterfaceChoice.All) as service:
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

    return list(dict.fromkeys(str(ip) for address in addresses for ip in expanded(address)))
