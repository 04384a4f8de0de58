"""gRPC with bytes in and out: no generated code, no message size limit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from benchmarks.system import frame

UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def echo(request: bytes, context: object) -> bytes:
    return request.decode().encode()


def image(request: bytes, context: object) -> bytes:
    return frame(int(request))


class Grpc:
    def serve(self, announce: Callable[[int], None]) -> None:
        server = grpc.server(ThreadPoolExecutor(), options=UNLIMITED)
        handlers = {
            "Echo": grpc.unary_unary_rpc_method_handler(echo),
            "Image": grpc.unary_unary_rpc_method_handler(image),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bench", handlers),))
        announce(server.add_insecure_port("127.0.0.1:0"))
        server.start()
        server.wait_for_termination()

    def connect(self, port: int) -> GrpcConnection:
        return GrpcConnection(port)


class GrpcConnection:
    thread_safe = True

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)
        self.call_echo = self.channel.unary_unary("/Bench/Echo")
        self.call_image = self.channel.unary_unary("/Bench/Image")

    def echo(self, text: str) -> str:
        result: bytes = self.call_echo(text.encode())
        return result.decode()

    def image(self, size: int) -> bytes:
        result: bytes = self.call_image(str(size).encode())
        return result

    def close(self) -> None:
        self.channel.close()
