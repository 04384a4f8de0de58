"""``rpc-kit serve``: serve a device, as its file or the command line says."""

import argparse
import contextlib
import faulthandler
import gc
import logging
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zmq

from ..addresses import Address
from ..discovery import registry_urls
from ..errors import NoRegistry, RPCError
from ..logs import add_log_options, discard, set_up_logging
from ..process import stopped_by_signals
from ..server import RPCServer
from ..sockets import ZmqContext
from . import CommandError, UsageError, one_line
from .device_class import convert_settings, load_class, scalar_of, type_of
from .device_file import DEFAULT_URL, Device, find_file, read_file, to_device

logger = logging.getLogger(__name__)

NO_REGISTRY = "none"
LOOK_PAUSE = 10.0
"""Between two looks for a registry, when none is named and none has announced itself, s."""
NO_DESCRIPTOR = -1
_KEYS = ("name", "type", "registry", "url", "overwrite", "max_missed", "alive_timeout")
"""Keys of a device file that are flags too."""


def add_command(commands: Any) -> None:
    """Add the command to those of ``rpc-kit``."""
    text = "Serve a device until SIGTERM or Ctrl-C; the first line that is printed is its url."
    parser = commands.add_parser("serve", help="serve a device", description=text)
    parser.set_defaults(run=run)
    source = parser.add_argument_group("what is served").add_mutually_exclusive_group(required=True)
    source.add_argument("device", nargs="?", help="package.module:ClassName, or the name of a device with a file")
    source.add_argument("--device", dest="device_name", metavar="NAME", help="the name of a device with a file")
    source.add_argument("--config", type=Path, metavar="FILE", help="a device file anywhere")
    how = parser.add_argument_group("how it is served; these win over the file")
    how.add_argument("--name", help="name in the registry (default: that of the file, or <type>-0)")
    how.add_argument("--type", help="device type (default: name of the interface in lower case)")
    how.add_argument("--registry", metavar="URLS", help="url,url …, or none (default: RPC_REGISTRY, or what is found)")
    how.add_argument("--url", help=f"where to listen, url,url …; tcp://*:0 for other hosts (default: {DEFAULT_URL})")
    pairs: dict[str, Any] = {"type": _pair, "action": "append", "default": [], "metavar": "KEY=VALUE"}
    how.add_argument("--set", help="argument of the class, as a value in TOML or a plain text; any number", **pairs)
    how.add_argument("--metadata", help="what stands in the registry, a number or a text; may be given again", **pairs)
    how.add_argument("--overwrite", action=argparse.BooleanOptionalAction, help="take the name from who has it")
    how.add_argument("--max-missed", type=int, metavar="N", help="end after so many renewals without an answer")
    how.add_argument("--alive-timeout", type=float, metavar="S", help="lease in the registry, s (default: 60)")
    add_log_options(parser)
    parser.set_defaults(log_level=None)  # that of the file


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, not {text!r}")
    return key, value


def run(options: argparse.Namespace) -> int:
    """Serve until the end; the exit status."""
    device = _asked(options)
    try:
        set_up_logging(device.logging.level, device.logging.filters)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # without a standard error
        faulthandler.enable()  # where a device hangs is seen when the watchdog ends it
    cls = load_class(device.class_)
    settings = convert_settings(cls, device.settings, dict(options.set))
    urls = [url.strip() for url in device.url.split(",")] if isinstance(device.url, str) else device.url
    _check_urls(urls)
    registries = _registries(device.registry) if device.registry != NO_REGISTRY else []
    with zmq.Context() as context:
        served = _make(cls, context, urls, settings)
        # From here on, not only while it is served: what is registered is to be unregistered.
        with served, stopped_by_signals(served._rpc.stop_on, NO_DESCRIPTOR):
            type_ = device.type or type_of(cls)
            if registries:
                _register(served, type_, device, registries)
            elif device.registry != NO_REGISTRY:
                _register_later(served, type_, device)
            _announce(served)
            _serve(served)
    return 0


def _asked(options: argparse.Namespace) -> Device:
    """What the file says, and the flags that win over it."""
    flags = {key: getattr(options, key) for key in _KEYS if getattr(options, key) is not None}
    if options.config is not None:
        table = read_file(options.config)
    elif options.device is not None and ":" in options.device:
        table = {"class": options.device}
    else:
        table = read_file(find_file(options.device_name if options.device is None else options.device))
    metadata = {**table.get("metadata", {}), **{key: scalar_of(text) for key, text in options.metadata}}
    log = {**table.get("logging", {})}
    log["level"] = options.log_level or log.get("level", "info")
    log["filters"] = [*log.get("filters", []), *options.log]
    return to_device({**table, **flags, "metadata": metadata, "logging": log})


def _check_urls(urls: Sequence[str]) -> None:
    try:
        for url in urls:
            Address.parse(url)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def _registries(given: str | Sequence[str]) -> list[str]:
    """Urls of the registries; none if none is known."""
    try:
        return registry_urls(given or None)
    except NoRegistry as exc:
        logger.warning("the device is not registered yet: %s", one_line(exc))
        return []
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def _register_later(served: RPCServer, type_: str, device: Device) -> None:
    """Look for a registry that announces itself, until there is one."""

    def look() -> None:
        while not served._rpc.finished.wait(LOOK_PAUSE):
            with contextlib.suppress(NoRegistry):
                try:
                    _register(served, type_, device, registry_urls())
                except (RPCError, RuntimeError) as exc:
                    logger.error("%s", one_line(exc))
                return

    threading.Thread(target=look, name="rpc-discovery-later", daemon=True).start()


def _make(cls: type[RPCServer], context: ZmqContext, urls: Sequence[str], settings: dict[str, Any]) -> RPCServer:
    try:
        # A device class may know of one url only.
        return cls(context, urls if len(urls) > 1 else urls[0], **settings)
    except BaseException as exc:
        text = one_line(exc)
        if not _is_of_sockets(exc):
            logger.error("%s cannot be made", cls.__name__, exc_info=exc)
            text = f"{cls.__name__} cannot be made: {type(exc).__name__}: {text}"
        # The traceback holds what was made of the device, and with it sockets that would outlast their context.
        traceback.clear_frames(exc.__traceback__)
        gc.collect()
        if isinstance(exc, Exception):
            raise CommandError(text) from exc
        raise


def _is_of_sockets(error: BaseException) -> bool:
    """Whether it says that the url cannot be bound, and there is nothing to see in the device."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals.get("__name__") == "rpc_kit.sockets"


def _register(served: RPCServer, type_: str, device: Device, registries: list[str]) -> None:
    try:
        name = served.register_to_registry(
            type_,
            device.name,
            ",".join(registries),
            device.overwrite,
            metadata=device.metadata,
            max_missed=device.max_missed,
            alive_timeout=device.alive_timeout,
        )
        if name:  # else the registrar has warned, and tries on
            logger.info("registered as %s at %s", name, served.registry_addr)
    except (RPCError, OSError) as exc:
        raise CommandError(f"the device cannot be registered: {one_line(exc)}") from exc
    except (TypeError, ValueError) as exc:
        raise UsageError(f"the device cannot be registered: {one_line(exc)}") from exc


def _announce(served: RPCServer) -> None:
    logger.info("serving %s at %s", served.name, served.url)
    try:
        print(served.url, flush=True)
    except OSError:
        discard(sys.stdout)  # whoever started it does not want to know


def _serve(served: RPCServer) -> None:
    try:
        served.serve_forever()
    except Exception as exc:
        logger.exception("%s has failed", served.name)
        raise CommandError(f"{served.name} has failed: {one_line(exc)}") from exc
    member = served._rpc.member
    if member is not None and member.is_lost:
        # A failure, so that systemd starts it again.
        registries = ", ".join(served._rpc.registries)
        raise CommandError(f"{served.name} has ended, as no registry has answered at {registries}")
    logger.info("%s has ended", served.name)
