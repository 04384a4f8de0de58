"""Programs of the tests of mDNS: they announce registries, find them, or meet them as other programs do."""

import argparse
import asyncio
import json
import logging
import socket
import sys
import threading
import time

from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncZeroconf

from rpc_kit import mdns
from rpc_kit.discovery import Announcement, registry_urls
from rpc_kit.errors import NoRegistry
from tests.devices import LIMIT


def announce(options: argparse.Namespace) -> None:
    """Announce a registry until a line is read, then print which threads are left and whether it took long."""
    mdns.RECHECK_TIME = 0.1
    with Announcement(options.words, options.port, options.name) as announcement:
        print("announcing", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        announcement.close()
    print(json.dumps([[thread.name for thread in threading.enumerate()], time.monotonic() - began < 2.0]), flush=True)


def find(options: argparse.Namespace) -> None:
    """Look until all the given urls are found, and then so many times more; print what the last looks found."""
    mdns.MOST_FOUND, mdns.EXTRA_TIME = options.most, options.extra

    async def in_a_loop() -> list[str]:
        return registry_urls(timeout=options.timeout)

    def look() -> list[str] | str:
        try:
            return asyncio.run(in_a_loop()) if options.loop else registry_urls(timeout=options.timeout)
        except NoRegistry as exc:
            return str(exc).rpartition("; ")[2]

    deadline = time.monotonic() + LIMIT
    while not set(options.words) <= set(found := look()) and time.monotonic() < deadline:
        pass
    print(json.dumps([look() for _ in range(options.more)] or found), flush=True)


def crowd(options: argparse.Namespace) -> None:
    """Announce each of ``address,address/port``, unchecked, until standard input ends."""
    infos = []
    for number, word in enumerate(options.words):
        hosts, _, port = word.partition("/")
        name, server = f"crowd-{number}.{mdns.SERVICE_TYPE}", f"crowd-{number}.local."
        infos.append(
            ServiceInfo(mdns.SERVICE_TYPE, name, int(port), server=server, parsed_addresses=hosts.split(","))
        )

    async def announce_all() -> None:
        service = AsyncZeroconf(interfaces=["127.0.0.1"])
        # All at once: the name of each is known to be its own.
        for sent in [await service.async_register_service(info, cooperating_responders=True) for info in infos]:
            await sent
        print("announcing", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await service.async_close()

    asyncio.run(announce_all())


def block(options: argparse.Namespace) -> None:
    """Have the port of mDNS for itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as alone:
        alone.bind(("", 5353))
        print("blocking", flush=True)
        sys.stdin.read()


def watch(options: argparse.Namespace) -> None:
    """Print what comes and goes."""

    def see(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        print(state_change.name, name.removesuffix(f".{mdns.SERVICE_TYPE}").rpartition("-")[0], flush=True)

    with Zeroconf() as zeroconf, ServiceBrowser(zeroconf, mdns.SERVICE_TYPE, [see]):
        print("watching", flush=True)
        sys.stdin.read()


def main() -> None:
    roles = {each.__name__: each for each in (announce, find, crowd, block, watch)}
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=roles)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--port", type=int)
    parser.add_argument("--name")
    parser.add_argument("--most", type=int, default=mdns.MOST_FOUND)
    parser.add_argument("--extra", type=float, default=mdns.EXTRA_TIME)
    parser.add_argument("--more", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=3.0)
    parser.add_argument("--loop", action="store_true")
    options = parser.parse_intermixed_args()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    roles[options.role](options)


if __name__ == "__main__":
    main()
