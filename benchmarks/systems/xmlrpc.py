"""XML-RPC of the standard library, with connections kept alive."""

from __future__ import annotations

from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import cast
from xmlrpc.client import ServerProxy
from xmlrpc.server import SimpleXMLRPCRequestHandler, SimpleXMLRPCServer

from benchmarks.system import Device


class Handler(SimpleXMLRPCRequestHandler):
    # The default, 1.0, makes a connection per call.
    protocol_version = "HTTP/1.1"


class Server(ThreadingMixIn, SimpleXMLRPCServer):
    daemon_threads = True


class XmlRpc:
    def serve(self, announce: Callable[[int], None]) -> None:
        server = Server(("127.0.0.1", 0), Handler, logRequests=False)
        server.register_instance(Device())
        announce(int(server.server_address[1]))
        server.serve_forever()

    def connect(self, port: int) -> XmlRpcConnection:
        return XmlRpcConnection(port)


class XmlRpcConnection:
    thread_safe = False

    def __init__(self, port: int) -> None:
        self.proxy = ServerProxy(f"http://127.0.0.1:{port}", use_builtin_types=True)

    def echo(self, text: str) -> str:
        return cast(str, self.proxy.echo(text))

    def image(self, size: int) -> bytes:
        return cast(bytes, self.proxy.image(size))

    def close(self) -> None:
        self.proxy("close")()
