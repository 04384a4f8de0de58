"""The systems compared: one module each, found by name and imported only where it is used."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from benchmarks.system import System


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a system is written and which libraries it needs."""

    module: str
    name: str
    needs: tuple[str, ...] = ()


OURS = "rpc-kit"
RAW = "pyzmq"
SYSTEMS = {
    OURS: Entry("rpc_kit", "RpcKit", ("rpc_kit",)),
    RAW: Entry("pyzmq", "Pyzmq", ("zmq",)),
    "pyro5-msgpack": Entry("pyro5", "Pyro5Msgpack", ("Pyro5", "msgpack")),
    "pyro5-serpent": Entry("pyro5", "Pyro5Serpent", ("Pyro5",)),
    "rpyc": Entry("rpyc", "Rpyc", ("rpyc",)),
    "grpc": Entry("grpc", "Grpc", ("grpc",)),
    "zerorpc": Entry("zerorpc", "Zerorpc", ("zerorpc",)),
    "xmlrpc": Entry("xmlrpc", "XmlRpc"),
}


def missing(name: str) -> list[str]:
    """Libraries of a system that are not installed, without importing them here."""
    return [library for library in SYSTEMS[name].needs if importlib.util.find_spec(library) is None]


def load(name: str) -> System:
    """The system of that name."""
    entry = SYSTEMS[name]
    module = importlib.import_module(f"benchmarks.systems.{entry.module}")
    system: System = getattr(module, entry.name)()
    return system
