"""``rpc-registry``: run a registry, and look into one."""

import argparse
import json
import logging
import queue
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from rpc_kit import RegistryClient
from rpc_kit.cli import CommandError, UsageError
from rpc_kit.cli.main import Parser, run_command
from rpc_kit.cli.serve import NO_DESCRIPTOR
from rpc_kit.discovery import Announcement
from rpc_kit.errors import MissingExtra
from rpc_kit.logs import set_up_logging
from rpc_kit.messages import Entry
from rpc_kit.process import stopped_by_signals
from rpc_kit.sockets import ZmqContext
from rpc_kit.watching import RegistryEvent

from .config import Settings, make_store, settings
from .service import DeviceRegistry

logger = logging.getLogger(__name__)

LONGEST_TIMEOUT = 3600.0
"""How long a registry may have for an answer, s."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = Parser(prog="rpc-registry", description="The registry of lab devices.")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_serve(commands)
    for name, run, text in (
        ("list", _list, "list the devices"),
        ("find", _find, "show one device"),
        ("watch", _watch, "show devices as they come and go, until Ctrl-C"),
        ("evict", _evict, "remove a device; one that is alive registers again"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        if name in ("find", "evict"):
            command.add_argument("name")
        if name == "list":
            command.add_argument("metadata", nargs="*", metavar="KEY=VALUE", help="only devices with these metadata")
            command.add_argument("--type", help="only devices of that type")
        command.add_argument("--registry", metavar="URLS", help="url,url … (default: RPC_REGISTRY, or what is found)")
        command.add_argument("--timeout", type=_seconds, default=5.0, metavar="S", help="for an answer (default: 5 s)")
        command.add_argument("--json", action="store_true", help="for programs")
    return run_command(parser, arguments)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="run a registry until SIGTERM or Ctrl-C",
        description="Run a registry. Each option may also be set in the environment, as RPC_REGISTRY_PORT, and in a "
        "file, as port; flags win over the environment, and that over the file.",
    )
    serve.set_defaults(run=_serve)
    serve.add_argument("--addr", help="host to listen on; 127.0.0.1 for this host only (default: all)")
    serve.add_argument("--port", type=int, help="0 for any free one (default: 5555)")
    serve.add_argument("--store", help="memory, sqlite, sqlite:FILE or etcd:http://host:2379,… (default: sqlite)")
    serve.add_argument("--etcd-ca", metavar="FILE", help="authority of etcd's certificates, for https://")
    serve.add_argument("--etcd-cert", metavar="FILE", help="certificate of this registry for etcd")
    serve.add_argument("--etcd-key", metavar="FILE", help="its key")
    serve.add_argument("--announce", action=argparse.BooleanOptionalAction, help="by mDNS (default: yes)")
    serve.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning, error (default: info)")
    serve.add_argument("--log", metavar="LOGGER=LEVEL,…", help="levels of single loggers")
    serve.add_argument(
        "--config", type=Path, metavar="FILE", help="default: ~/.config/rpc-kit/registry.toml, /etc/rpc-kit/…"
    )


def _serve(options: argparse.Namespace) -> int:
    flags = {name: getattr(options, name) for name in Settings.__struct_fields__}
    try:
        found = settings(flags, options.config)
        set_up_logging(found.log_level, [each for each in found.log.split(",") if each])
        store = make_store(found.store, found.etcd_ca, found.etcd_cert, found.etcd_key)
    except (ValueError, OSError, MissingExtra) as exc:
        raise UsageError(str(exc)) from exc
    with zmq.Context() as context:
        try:
            registry = DeviceRegistry(context, found.addr, found.port, store)
        except ValueError as exc:
            raise UsageError(str(exc)) from exc
        except OSError as exc:
            raise CommandError(str(exc)) from exc
        # From here on, not only while it serves.
        with stopped_by_signals(lambda number: registry.stop(), NO_DESCRIPTOR):
            logger.info("serving %d devices at %s, kept in %s", len(registry.get_devices()), registry.url, store)
            print(registry.url, flush=True)
            announcement = _announcement(found, registry)
            try:
                registry.run()
            finally:
                if announcement is not None:
                    announcement.close()
    return 0


def _announcement(found: Settings, registry: DeviceRegistry) -> Announcement | None:
    if not found.announce:
        return None
    try:
        return Announcement([found.addr], registry.port or 0)
    except (MissingExtra, ValueError) as exc:
        logger.info("not announced by mDNS: %s", exc)
        return None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(f"a timeout is a number of seconds up to {LONGEST_TIMEOUT:.0f}, not {text}")
    return seconds


def _client(context: ZmqContext, options: argparse.Namespace) -> RegistryClient:
    try:
        return RegistryClient(options.registry, context, options.timeout)
    except ValueError as exc:
        raise UsageError(str(exc)) from exc


def _list(options: argparse.Namespace) -> int:
    pairs = [text.partition("=") for text in options.metadata]
    if any(not equals for _, equals, _ in pairs):
        raise UsageError("metadata are given as KEY=VALUE, a type as --type TYPE")
    with zmq.Context() as context, _client(context, options) as client:
        # All of the type, as a number on the command line is a text.
        entries = [
            entry
            for entry in client.list(options.type)
            if all(key in entry.metadata and _as_text(entry.metadata[key]) == value for key, _, value in pairs)
        ]
    _show(entries, options.json)
    return 0


def _find(options: argparse.Namespace) -> int:
    with zmq.Context() as context, _client(context, options) as client:
        entry = client.find(options.name)
    if options.json:
        print(_as_json(entry))
        return 0
    for key, value in msgspec.to_builtins(entry).items():
        if isinstance(value, dict):
            value = ", ".join(f"{name}={_as_text(each)}" for name, each in value.items())
        elif isinstance(value, (list, tuple)):
            value = " ".join(map(_as_text, value))
        elif key == "registered":
            value = _as_date(value)
        print(f"{key:<15} {_as_text(value)}")
    return 0


def _evict(options: argparse.Namespace) -> int:
    with zmq.Context() as context, _client(context, options) as client:
        entry = client.evict(options.name)
    print(_as_json(entry) if options.json else f"{_as_text(entry.name)} at {_as_text(entry.address)} is evicted")
    return 0


def _watch(options: argparse.Namespace) -> int:
    events: queue.Queue[RegistryEvent] = queue.Queue()
    with zmq.Context() as context, _client(context, options) as client, client.watch(events.put):
        while True:
            event = events.get()
            if options.json:
                print(json.dumps({"event": event.kind, "reason": event.reason, **msgspec.to_builtins(event.entry)}))
            else:
                entry, when = event.entry, _as_date(time.time())
                what = "  ".join(map(_as_text, (entry.name, entry.device_type, entry.address)))
                print(f"{when}  {event.kind:<8} {what}" + (f" ({_as_text(event.reason)})" if event.reason else ""))
            sys.stdout.flush()


COLUMNS: dict[str, Callable[[Entry], str]] = {
    "NAME": lambda entry: _as_text(entry.name) + (" (stale)" if entry.stale else ""),
    "TYPE": lambda entry: _as_text(entry.device_type),
    "ADDRESS": lambda entry: _as_text(entry.address),
    "INTERFACE": lambda entry: _as_text(entry.interface or "-"),
    "HOST": lambda entry: _as_text(entry.metadata.get("host", "-")),
    "PID": lambda entry: _as_text(entry.metadata.get("pid", "-")),
    "REGISTERED": lambda entry: _as_date(entry.registered),
}


def _show(entries: Iterable[Entry], as_json: bool) -> None:
    if as_json:
        print(json.dumps(msgspec.to_builtins(list(entries)), indent=2))
        return
    rows = [list(COLUMNS), *([column(entry) for column in COLUMNS.values()] for entry in entries)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _as_json(entry: Entry) -> str:
    return json.dumps(msgspec.to_builtins(entry), indent=2)


def _as_text(value: object) -> str:
    # Nobody has looked at what devices say of themselves: nothing of it is for the terminal.
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def _as_date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
    except (OverflowError, ValueError, OSError):
        return "?"  # no time of this world
