"""A program for each end of a connection: one says what the other has said; and for multicasts."""

import argparse
import socket
import struct
import sys

GROUP = ("224.77.0.1", 7700)
PATIENCE = 0.3
"""How long an answer may take until it is called silence, s."""


def serve(host: str, port: int) -> None:
    """Send back all that comes on one connection."""
    with socket.create_server((host, port)) as listener:
        print(listener.getsockname()[1], flush=True)
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1000):
                connection.sendall(data)


def ask(host: str, port: int) -> None:
    """Send what is read, and print what comes back; an empty line only waits for more."""
    with socket.create_connection((host, port), PATIENCE) as connection:
        print("connected", flush=True)
        for line in sys.stdin:
            if line.strip():
                connection.sendall(line.encode())
            try:
                print(connection.recv(1000).decode().strip() or "closed", flush=True)
            except TimeoutError:
                print("silence", flush=True)


def hear(host: str, port: int) -> None:
    """Print what comes by multicast."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(GROUP)
        receiver.setsockopt(
            socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", *map(socket.inet_aton, (GROUP[0], host)))
        )
        print("listening", flush=True)
        while True:
            print(receiver.recv(1000).decode(), flush=True)


def tell(host: str, port: int) -> None:
    """Send by multicast what is read, and print that it was sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        print("ready", flush=True)
        for line in sys.stdin:
            sender.sendto(line.strip().encode(), GROUP)
            print("sent", flush=True)


def main() -> None:
    roles = {each.__name__: each for each in (serve, ask, hear, tell)}
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=roles)
    parser.add_argument("host")
    parser.add_argument("port", type=int, nargs="?", default=0)
    options = parser.parse_args()
    roles[options.role](options.host, options.port)


if __name__ == "__main__":
    main()
