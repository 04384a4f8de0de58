"""One client process of the load test: mixed calls for some seconds, each answer checked; prints what it found."""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from tests.devices import InstrumentClient, Mode, Point, pattern
from tests.helpers import Peer, call, request

TIMEOUT = 10_000


def expect(expected: Any, actual: Any) -> None:
    if expected != actual:
        raise AssertionError(f"expected {str(expected)[:200]}, got {str(actual)[:200]}")


def fails(kind: type, function: Callable[..., Any], *args: Any) -> None:
    try:
        result = function(*args)
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}, got {str(result)[:200]}")


def our_calls(client: Any, random_: random.Random) -> dict[str, Callable[[], None]]:
    """Calls of an RPCClient by name."""

    def number() -> int:
        return random_.randrange(-(1 << 40), 1 << 40)

    def add() -> None:
        a, b = number(), number()
        expect(a + b, client.add(a, b))

    def echo() -> None:
        value = {"a": [number(), None, "ü" * random_.randrange(2000)], "b": random_.random()}
        expect(value, client.echo(value))

    def nested() -> None:
        value = {str(number()): [(Mode.FAST, Point(random_.random(), float("inf")))]}
        expect(value, client.nested(value))

    def buffer() -> None:
        size = random_.choice([0, 10, 1000, 100_000, 2_000_000])
        payload, info = client.buffer("array", size)
        expect((size, True), (info["size"], np.array_equal(pattern(size), np.frombuffer(payload, np.uint8))))

    def level() -> None:
        client.level = random_.random()
        expect(True, 0 <= client.level < 1)

    def bad() -> None:
        fails(ValueError, client.fail, "ValueError", "as wanted")
        fails(TypeError, client.add, "1", 2)
        fails(TypeError, client.unsendable, "object")
        fails(ValueError, setattr, client, "level", -1.0)
        expect((False, "Method __class__ not implemented"), _error(client.execute("__class__", {})))

    def pause() -> None:
        expect(0.002, client.pause(0.002))

    return {each.__name__: each for each in (add, echo, nested, buffer, level, bad, pause)}


def _error(result: tuple[bool, Any]) -> tuple[bool, Any]:
    return result[0], result[1][0]


def plain_calls(peer: Peer, random_: random.Random) -> dict[str, Callable[[], None]]:
    """Calls of a plain REQ socket, version 1, by name."""

    def add() -> None:
        a, b = random_.randrange(1 << 40), random_.randrange(1 << 40)
        expect({"success": True, "result": a + b}, peer.ask(call("add", a, b)))

    def buffer() -> None:
        size = random_.choice([1, 1000, 500_000])
        peer.send(call("buffer", "bytes", size))
        info, payload = peer.receive()
        expect(({"size": size, "error": None}, True), (json.loads(info), pattern(size).tobytes() == payload))

    def level() -> None:
        expect({"success": True}, peer.ask(request("PROPERTY_SET", property="level", value=random_.random())))
        expect(True, 0 <= peer.ask(request("PROPERTY_GET", property="level"))["value"] < 1)

    def bad() -> None:
        for frame in (b"", b"nonsense", b"\xff", b"[]", b'{"event": 1}', b"[" * 5000, request("METHOD_CALL")):
            expect(False, peer.ask(frame)["success"])
        expect("no", peer.ask(call("fail", "ValueError", "no"))["error"])

    def inventory() -> None:
        expect("InstrumentServer", peer.ask(request("GET_INVENTORY"))["name"])

    return {each.__name__: each for each in (add, buffer, level, bad, inventory)}


def main() -> None:
    kind, url, seed, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    made, wrong, slowest = Counter[str](), [], 0.0
    random_ = random.Random(seed)
    with zmq.Context() as context:
        connect = InstrumentClient(context, url, TIMEOUT) if kind == "ours" else Peer(context, url, zmq.REQ)
        with connect as client:
            calls = (our_calls if kind == "ours" else plain_calls)(client, random_)
            if kind == "ours":
                client.level_changed.connect(lambda level: made.update(["events"]))
            print("ready", flush=True)
            end = time.monotonic() + seconds
            while (started := time.monotonic()) < end:
                name = random_.choice(list(calls))
                try:
                    calls[name]()
                except Exception as exc:
                    wrong.append(f"{name}: {exc!r}")
                made[name] += 1
                slowest = max(slowest, time.monotonic() - started)
    print(json.dumps({"made": made, "wrong": wrong[:10], "slowest": slowest}), flush=True)


if __name__ == "__main__":
    main()
