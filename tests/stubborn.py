"""A device as a program that serves it on its main thread, and gives a method little time to end when it is stopped."""

import argparse
import ctypes
import threading

import zmq

from rpc_kit import RPCServer, endpoint
from tests.devices import InstrumentServer


class Stubborn(InstrumentServer):
    """An instrument with a driver that waits for its hardware."""

    @RPCServer.register_method_json
    def hang(self) -> None:
        libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_lock(lock)
        libc.pthread_mutex_lock(lock)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("stop_time", type=float)
    parser.add_argument("--registry")
    parser.add_argument("--stop-after", type=float, help="stop the server so long after a method has begun, s")
    parser.add_argument("--release-after", type=float, help="let the method end so long after that, s")
    options = parser.parse_args()
    endpoint.STOP_TIME = options.stop_time
    with zmq.Context() as context, Stubborn(context, "tcp://127.0.0.1:0") as device:
        if options.registry:
            device.register_to_registry("instrument", "left", options.registry)

        def stop() -> None:
            device.entered.wait()
            threading.Event().wait(options.stop_after)
            device.stop_server()
            threading.Event().wait(options.release_after)
            print("releasing", flush=True)
            device.released.set()

        if options.stop_after is not None:
            threading.Thread(target=stop, daemon=True).start()
        print(device.url, flush=True)
        device.serve_forever()
        print("served", flush=True)


if __name__ == "__main__":
    main()
