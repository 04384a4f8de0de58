"""How a program finds its registries: by argument, environment, file or mDNS."""

import contextlib
import math
import os
import socket
import threading
from collections.abc import Sequence
from typing import Self

from .addresses import Address
from .errors import MissingExtra, NoRegistry
from .folders import config_folder

DEFAULT_PORT = 5555
"""Where a registry listens unless told otherwise."""
VARIABLE = "RPC_REGISTRY"
STOP_TIME = 5.0
"""How long goodbyes and the end of a thread may take, s."""


def registry_urls(explicit: str | Sequence[str] | None = None, timeout: float = 3.0) -> list[str]:
    """The urls of the registries to use, the preferred one first.

    The first of these that names any: `explicit`; the environment variable ``RPC_REGISTRY``; ``registry`` in
    ``~/.config/rpc-kit/config.toml``; what is announced by mDNS, which needs the extra ``discovery``. Of a registry
    that was found by mDNS all urls are listed, the one that is most likely reached from here first.

    Parameters
    ----------
    explicit : str or sequence of str, optional
        Urls, also as ``url,url``. ``host`` stands for ``tcp://host:5555``, here as in all other places.
    timeout : float, default 3.0
        How long to wait for mDNS, s.

    Raises
    ------
    NoRegistry
        When none is known.
    ValueError
        When one is no url, or the file is damaged; says where it stands.
    """
    if not 0 <= timeout < math.inf:
        raise ValueError(f"a timeout is a number of seconds from 0 on, not {timeout!r}")
    if explicit is None:
        return _urls(os.environ.get(VARIABLE, ""), VARIABLE) or _urls_of_file() or _urls_of_mdns(timeout)
    urls = _urls(explicit, "the argument")
    if not urls:
        raise ValueError(f"the argument names no registry: {explicit!r}")
    return urls


def _urls(given: object, where: str) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{where}: registries are a url or a list of urls, not {given!r}")
    entries = [entry.strip() for text in texts for entry in text.split(",")]
    return list(dict.fromkeys(_url(entry, where) for entry in entries if entry))


def _url(entry: str, where: str) -> str:
    try:
        address = Address.parse(entry if "://" in entry else f"tcp://{entry}")
    except ValueError as exc:
        raise ValueError(f"{where}: {entry!r} is no registry: {exc}") from exc
    if address.is_wildcard or address.port == 0:
        raise ValueError(f"{where}: {entry!r} is no registry: a client needs one host and one port")
    if address.transport == "tcp" and address.port is None:
        address = address.with_port(DEFAULT_PORT)
    return str(address)


def _config_file() -> str:
    return os.path.join(config_folder() or "~/.config", "rpc-kit", "config.toml")


def _urls_of_file() -> list[str]:
    path = _config_file()
    if not os.path.isfile(path):
        return []
    import tomllib

    with open(path, "rb") as file:
        try:
            given = tomllib.load(file).get("registry", "")
        except ValueError as exc:
            raise ValueError(f"{path} is no TOML: {exc}") from exc
    try:
        return _urls(given, path)
    except TypeError as exc:
        raise ValueError(str(exc)) from exc


def _urls_of_mdns(timeout: float) -> list[str]:
    urls: list[str] = []
    problems: list[Exception] = []

    def browse() -> None:
        import asyncio

        try:
            from . import mdns

            urls.extend(asyncio.run(mdns.browse(timeout)))
        except Exception as exc:
            problems.append(exc)

    try:
        _require_zeroconf()
        # On a thread of its own, as the caller's may run an event loop (Jupyter).
        thread = threading.Thread(target=browse, name="rpc-discovery", daemon=True)
        thread.start()
        thread.join(timeout + STOP_TIME)
    except MissingExtra as exc:
        problems.append(exc)
    if urls:
        return urls
    cause = problems[0] if problems else None
    raise NoRegistry(
        f"no registry is known: pass its url, or set {VARIABLE}=tcp://host:{DEFAULT_PORT}, or write "
        f'registry = "tcp://host:{DEFAULT_PORT}" to {_config_file()}; '
        + (f"mDNS is not available: {cause}" if cause else f"mDNS found none within {timeout:g} s")
    ) from cause


def _require_zeroconf() -> None:
    try:
        import zeroconf  # noqa: F401
    except ImportError as exc:
        raise MissingExtra("zeroconf is not installed: pip install rpc-kit[discovery]") from exc


class Announcement:
    """Announces a registry by mDNS, for `registry_urls` to find, until it is closed.

    It runs on a thread of its own, and follows the addresses of the host. What fails there is logged and tried again.

    Parameters
    ----------
    addresses : sequence of str
        Numeric addresses or wildcards (``*``, ``0.0.0.0``, ``::``) at which the registry listens. When all of them are
        of the loopback, it is announced on this host only.
    port : int
    name : str, default "<host name>-<port>"
        What people see of it in a browser of mDNS; need not be unique.

    Raises
    ------
    MissingExtra
        When zeroconf is not installed.
    ValueError
        When there is no address, or one that is neither a wildcard nor numeric, or that needs the name of an interface
        (``fe80::1%eth0``), or when the port is none.
    """

    def __init__(self, addresses: Sequence[str], port: int, name: str | None = None) -> None:
        _require_zeroconf()
        import asyncio

        from . import mdns

        hosts = [address.strip("[]") for address in addresses]
        mdns.check_addresses(hosts)
        if not 1 <= port <= 65535:
            raise ValueError(f"a port is a number from 1 to 65535, not {port}")
        if name is None:
            name = f"{socket.gethostname().partition('.')[0]}-{port}"
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(mdns.keep_announced(hosts, port, name))
        self._thread = threading.Thread(target=self._run, name="rpc-announcement", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Withdraw it; any number of times."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join(STOP_TIME)

    def _end(self) -> None:
        # A second cancellation would end the goodbyes after the first.
        if not self._task.cancelling():
            self._task.cancel()

    def _run(self) -> None:
        import asyncio

        try:
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
        finally:
            self._loop.close()
