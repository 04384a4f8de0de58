"""Arrays and buffers in calls, properties and signals, end to end, by every path."""

import contextlib
import os
import queue
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import zmq

from rpc_kit import sharedmem
from rpc_kit.addresses import Address
from rpc_kit.errors import CallTimeout, ReplyLost, SerializationError
from rpc_kit.messages import Ping
from tests.devices import LIMIT
from tests.helpers import PROJECT, Peer, Program, Relay, call, request, wait_until
from tests.imaging import (
    KINDS,
    LARGE,
    SMALL,
    CameraClient,
    CameraServer,
    number_of,
    numbers_of,
    picture,
    shot,
    tell,
)

PATHS = ("shm", "ipc", "tcp", "inproc")


@pytest.fixture
def joined(
    context: Any, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Serves a camera on a thread, with a client of it that takes a certain path."""
    with contextlib.ExitStack() as stack:

        def join(path: str = "shm", **options: Any) -> tuple[Any, Any]:
            url = "inproc://camera" if path == "inproc" else "tcp://127.0.0.1:0"
            given = {} if path == "shm" else {"shared_memory": 0}
            device = serve(CameraServer, url, **given)
            stack.callback(device.released.set)
            at = device.url
            if path == "tcp":
                # Who knows only the port of a relay finds no shorter way, but for streams, which have another port.
                at = stack.enter_context(Relay(device.port)).url
                monkeypatch.setattr(Address, "is_here", False)
            return device, stack.enter_context(CameraClient(context, at, **options))

        yield join


@pytest.fixture
def both(joined: Any) -> Any:
    """A camera, and a client with shared memory."""
    return joined()


def taken(client: Any, member: str) -> dict[str, int]:
    """Path to number of calls or events of a member."""
    found: dict[str, int] = client.stats().paths.get(member, {})
    return found


def make_room(client: Any, number: int = 1) -> None:
    """Have the server make slots, and see that nobody has them: a client takes those for its arguments."""
    images = [client.image(0) for _ in range(number)]
    del images
    client._rpc.calls.ask(Ping(), LIMIT, "PING")


def held(device: Any) -> int:
    """How many slots are in use."""
    usage: int = device.stats()["shm"]["held"]
    return usage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_result(joined: Any, path: str, kind: str) -> None:
    """A picture of any layout arrives as it is, read-only, by the path that is there; a small one by the socket."""
    _, client = joined(path)
    large, small = client.image(7, LARGE, kind), client.image(8, SMALL, kind)

    assert [(7, LARGE, np.uint32), (8, SMALL, np.uint32)] == [
        (number_of(each), each.size, each.dtype) for each in (large, small)
    ]
    assert ("fortran" == kind, False) == (large.flags.f_contiguous and large.ndim == 2, large.flags.writeable)
    with pytest.raises(ValueError, match="read-only"):
        large[0] = 1
    copy = large.copy()
    copy[0] = 1
    assert (1, True) == (int(copy.flat[0]), copy.flags.writeable)
    expected = {"shm": 1, "ipc": 1} if path == "shm" else {path: 2}
    assert expected == taken(client, "image")


@pytest.mark.parametrize("path", PATHS)
def test_arguments(joined: Any, path: str) -> None:
    """Positional, variable and named arguments, in one call."""
    device, client = joined(path)
    make_room(client)

    assert [1, 2, 3, 4] == client.number(picture(1), picture(2, SMALL), picture(3), named=picture(4))
    assert {path: 1} == taken(client, "number")
    assert not device.last.flags.writeable


def test_slots_for_arguments(both: Any) -> None:
    """Arguments that had to be sent find slots soon, also when results want some all the time."""
    _, client = both
    for number in range(3):
        assert ([number], number) == (client.number(picture(number)), number_of(client.image(number)))
    assert 0 < taken(client, "number").get("shm", 0)
    for number in range(27):
        assert ([number], number) == (client.number(picture(number)), number_of(client.image(number)))

    # Now and then the server has not let go of the argument before when the next one looks for a slot.
    assert 25 <= taken(client, "number")["shm"]


@pytest.mark.parametrize("path", PATHS)
def test_property(joined: Any, path: str) -> None:
    """Set, get, and the notify signal."""
    _, client = joined(path)
    make_room(client)
    changes: queue.Queue[Any] = queue.Queue()
    client.mask_changed.connect(changes.put)
    client.mask = picture(5)

    assert 5 == number_of(client.mask)
    assert 5 == number_of(changes.get(timeout=LIMIT))
    assert {path: 1} == taken(client, "mask_changed")
    assert {path: 2} == taken(client, "mask")


@pytest.mark.parametrize("path", PATHS)
def test_dataclass(joined: Any, path: str) -> None:
    """Arrays in fields, and in lists in dictionaries in fields, there and back."""
    _, client = joined(path)
    make_room(client)
    made = client.take(shot(6))

    assert ([7, 6, 6, 6], "noted") == (numbers_of(made), made.note)
    assert {path: 1} == taken(client, "take")


@pytest.mark.parametrize("path", PATHS)
def test_buffer_method(joined: Any, path: str) -> None:
    """A buffer method gives bytes, and a dictionary with arrays."""
    _, client = joined(path)
    payload, info = client.raw(9, LARGE)

    assert (True, "B", True) == (isinstance(payload, memoryview), payload.format, payload.readonly)
    assert 9 == number_of(np.frombuffer(payload, np.uint32))
    assert (9, [9]) == (number_of(info["image"]), list(map(number_of, info["more"])))
    assert {path: 1} == taken(client, "raw")


@pytest.mark.parametrize("path", PATHS)
def test_plain_signal(joined: Any, path: str) -> None:
    """Arrays in the dictionary of a signal that declares none go the way of all plain signals."""
    device, client = joined(path)
    came: queue.Queue[Any] = queue.Queue()
    client.reports.connect(came.put)
    image = picture(3)
    device.reports.emit({"n": 1, "images": [image, picture(4, SMALL)], "bytes": b"abc"})
    image[:] = 9
    found = came.get(timeout=LIMIT)

    assert (1, [3, 4], b"abc") == (found["n"], list(map(number_of, found["images"])), bytes(found["bytes"]))
    assert {"tcp"} >= set(taken(client, "reports")) or path == "inproc"


VALUES: dict[str, Any] = {
    "0-d": np.array(5),
    "empty": np.zeros((0, 3)),
    "transposed": np.arange(12).reshape(3, 4).T,
    "every second": np.arange(12)[::2],
    "big-endian": np.arange(5, dtype=">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "text": np.array(["a", "äöü"]),
    "time": np.array(["2024-01-01"], "datetime64[D]"),
    "structured": np.array([(1, [2.0, 3.0])], [("a", "u1"), ("b", "f8", (2,))]),
    "nan": np.array([np.nan, np.inf]),
    "large": np.arange(100_000.0).reshape(10, -1),
    "large fortran": np.asfortranarray(np.arange(100_000.0).reshape(10, -1)),
    "large, far from the beginning": np.arange(200_000.0)[100_000:],
}


@pytest.mark.parametrize("path", PATHS)
def test_kinds_of_arrays(joined: Any, path: str) -> None:
    """Any dtype and shape comes back as it was sent, also by the path of the largest."""
    _, client = joined(path)
    client.image(0, 1 << 20)
    for name, value in VALUES.items():
        found = client.echo(value)

        assert (name, value.dtype, value.shape) == (name, found.dtype, found.shape)
        np.testing.assert_array_equal(value, found)
    found = client.echo({"$buffer": 0, "nested": [{"$buffer": VALUES["0-d"]}, {"$buffer": 3}], "b": bytearray(b"x")})
    assert (0, 5, 3, b"x") == (
        found["$buffer"],
        int(found["nested"][0]["$buffer"]),
        found["nested"][1]["$buffer"],
        bytes(found["b"]),
    )


@pytest.mark.parametrize("path", PATHS)
def test_what_cannot_be_sent(joined: Any, path: str) -> None:
    """Objects and masked arrays are refused on either side, and the client goes on."""
    device, client = joined(path)
    with pytest.raises(SerializationError, match="echo: argument 1: .*Python objects"):
        client.echo(np.array([object()]))
    with pytest.raises(SerializationError, match="masked"):
        client.echo(np.ma.array([1]))
    device.image = lambda number, *_: np.array([object()])
    with pytest.raises(TypeError, match=r"image\(\): its result of type ndarray: .*Python objects"):
        client.image(1)

    assert [1] == client.number(picture(1))


def test_loan_is_shared(both: Any) -> None:
    """The client has the memory of the loan, without a copy; from then on nobody may write to it."""
    device, client = both
    lent = [device.loan((100, 1000), np.uint32)]
    lent[0][:] = 1
    device.image = lambda number, *_: lent[0].reshape(-1)
    result = client.image(1)

    assert (1, {"shm": 1}) == (number_of(result), taken(client, "image"))
    for each in (lent[0], lent[0][10:20], device.image(0)):
        with pytest.raises(ValueError, match="read-only"):
            each[0] = 2
    wait_until(lambda: 1 == held(device))
    del each
    lent.clear()
    wait_until(lambda: 1 == held(device))
    del result
    wait_until(lambda: 0 == held(device))


def test_part_of_a_loan(both: Any) -> None:
    """A part of a loan is not copied either: one slot for all."""
    device, client = both
    loan = device.loan((4, LARGE), np.uint32)
    loan[:] = np.arange(4)[:, None]
    device.image = lambda number, *_: loan[number]
    results = [client.image(number) for number in range(4)]

    assert ([0, 1, 2, 3], {"shm": 4}) == (list(map(number_of, results)), taken(client, "image"))
    wait_until(lambda: 1 == held(device))


def test_loan_of_a_forgotten_frame(both: Any) -> None:
    """A loan that is never sent is given back with the last view of it."""
    device, _ = both
    loan = device.loan(LARGE, np.uint32)
    view = loan[5:]
    del loan

    wait_until(lambda: 1 == held(device))
    del view
    wait_until(lambda: 0 == held(device))


@pytest.mark.parametrize("path", PATHS)
def test_array_that_the_device_uses_again(joined: Any, path: str) -> None:
    """A plain array is copied: the device may write to it at once, whatever its size is."""
    device, client = joined(path)
    image = picture(0)

    def fill(number: int, size: int = LARGE) -> Any:
        image[:] = number
        return image[:size]

    device.image = fill
    results = [client.image(number, size) for number in range(20) for size in (SMALL, 10_000, 40_000, LARGE)]
    image[:] = 99

    assert [number for number in range(20) for _ in range(4)] == list(map(number_of, results))
    assert image.flags.writeable


@pytest.mark.parametrize("path", PATHS)
def test_array_that_the_caller_uses_again(joined: Any, path: str) -> None:
    """A caller may write to its argument when the call has returned; what the device has kept stays."""
    _, client = joined(path)
    make_room(client, 5)
    image = picture(0)
    for number in range(8):
        image[:] = number
        assert number + 1 == client.keep(image)
    image[:] = 99

    assert list(range(8)) == client.kept()


@pytest.mark.parametrize("path", ["shm", "ipc"])
def test_results_that_are_kept(joined: Any, path: str) -> None:
    """Whoever keeps results never sees them change, however many further ones come and go."""
    device, client = joined(path)
    kept = {number: client.image(number, 150_000) for number in range(50)}
    parts = {number: client.image(number, 150_000)[1000:2000] for number in range(50, 60)}
    for number in range(2000):
        assert number == int(client.image(number, 150_000, "copied" if number % 2 else "loan")[-1])

    assert list(range(60)) == [number_of(each) for each in (*kept.values(), *parts.values())]
    assert {path: 2060} == taken(client, "image")
    if path == "shm":
        wait_until(lambda: 60 == held(device))
        assert device.stats()["shm"]["slots"] <= 66


def test_more_is_kept_than_there_is(context: Any, serve: Any) -> None:
    """When all shared memory is held, results come by the socket; when some is given back, by it again."""
    device = serve(CameraServer, shared_memory=8 * 4 * LARGE)
    with CameraClient(context, device.url) as client:
        kept = [client.image(number) for number in range(20)]
        counts = taken(client, "image")

        assert list(range(20)) == list(map(number_of, kept))
        assert (20, True) == (sum(counts.values()), 5 <= counts["shm"] <= 8)
        del kept[:10]
        assert 30 == number_of(client.image(30))
        assert counts["shm"] + 1 == taken(client, "image")["shm"]


def test_timeout_loses_no_slot(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of replies that nobody has waited for are free again after the pick-up time."""
    monkeypatch.setattr(sharedmem, "PICK_UP_TIME", 0.2)
    device, client = joined()
    for number in range(3):
        device.released.clear()
        with pytest.raises(CallTimeout):
            client.hesitate(number)
        device.released.set()
        assert [number] == client.number(picture(number))
    device.last = None

    wait_until(lambda: 0 == held(device))
    assert 1 == number_of(client.image(1))


def test_timeout_with_argument_in_a_slot(both: Any) -> None:
    """The slot of an argument is free when its caller has given up, and the device too."""
    device, client = both
    make_room(client)
    real = device.number

    def slow(image: Any, *more: Any, **named: Any) -> Any:
        device.entered.set()
        device.released.wait(LIMIT)
        return real(image)

    device.number = slow
    client._rpc._timeouts["number"] = 0.3
    with pytest.raises(CallTimeout):
        client.number(picture(4))
    device.released.set()
    wait_until(lambda: device.last is not None)
    assert 4 == number_of(device.last)
    device.last = None
    wait_until(lambda: 0 == held(device))


def test_reply_that_is_picked_up_too_late(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller is told that the call was executed, and never gets the pixels of another one."""
    device, client = joined()
    real = client._rpc.transfer.receive

    def late(headers: Any, frames: Any) -> Any:
        monkeypatch.setattr(client._rpc.transfer, "receive", real)
        device._rpc.transfer._made._tickets.clear()
        with CameraClient(client._rpc._context, device.url) as other:
            assert 2 == number_of(other.image(2))
        return real(headers, frames)

    monkeypatch.setattr(client._rpc.transfer, "receive", late)
    with pytest.raises(ReplyLost, match="image was executed; its reply was not fetched in time"):
        client.image(1)
    assert 3 == number_of(client.image(3))


def test_restart(context: Any, spawn: Any) -> None:
    """After a restart at the same url arguments arrive by the socket, then by the new shared memory."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, server.line, liveness=9.0) as client:
        before = [client.image(number) for number in range(3)]
        make_room(client)
        assert ([5], {"shm": 1}) == (client.number(picture(5)), taken(client, "number"))
        for run in range(3):
            server.kill()
            server = spawn("tests.imaging", "serve", server.line)
            assert [6] == client.number(picture(6))
            assert run + 1 == sum(count for path, count in taken(client, "number").items() if path != "shm")
            before.append(client.image(7))
            make_room(client)
            assert {"shm": 6 + 2 * run} == taken(client, "image")
            assert [8] == client.number(picture(8))
            assert run + 2 == taken(client, "number")["shm"]

        assert [0, 1, 2, 7, 7, 7] == list(map(number_of, before))


def test_restart_with_result_first(context: Any, spawn: Any) -> None:
    """The first call after a restart may be one for a picture."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, server.line, liveness=9.0) as client:
        assert 1 == number_of(client.image(1))
        server.kill()
        server = spawn("tests.imaging", "serve", server.line)
        assert [2, 3] == [number_of(client.image(number)) for number in (2, 3)]
        assert 2 == taken(client, "image")["shm"]


def test_restart_without_shared_memory(context: Any, spawn: Any) -> None:
    """A server that is restarted without shared memory gets arguments by the socket."""
    server = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, server.line, liveness=9.0) as client:
        make_room(client)
        assert [1] == client.number(picture(1))
        server.kill()
        server = spawn("tests.imaging", "serve", server.line, "--memory", "0")
        assert [[2], [3]] == [client.number(picture(2)), client.number(picture(3))]
        assert 4 == number_of(client.image(4))
        assert ({"shm": 1, "ipc": 2}, {"shm": 1, "ipc": 1}) == (taken(client, "number"), taken(client, "image"))


def test_version_1(both: Any, context: Any) -> None:
    """A client of version 1 gets lists, and may send them; of what is too large an error."""
    device, _ = both
    with Peer(context, device.url, zmq.REQ) as peer:
        assert {"success": True, "result": [3] * 10} == peer.ask(call("image", 3, 10))
        assert {"success": True} == peer.ask(request("PROPERTY_SET", property="mask", value=[7, 7]))
        assert {"success": True, "value": [7, 7]} == peer.ask(request("PROPERTY_GET", property="mask"))
        assert {"success": True, "result": [4, 5]} == peer.ask(call("number", [4, 4, 4], [5]))
        too_large = peer.ask(call("image", 3, (1 << 20) + 1))
        assert (False, True) == (too_large["success"], "use a client of protocol version 2" in too_large["error"])
        peer.send(call("raw", 2, 10))
        info, payload = peer.receive()
        assert (b'{"image":[2,2,2,2,2,2,2,2,2,2],"more":[[2,2,2,2,2,2,2,2,2,2]]}', 40) == (info, len(payload))
    assert 7 == number_of(device.mask)


def test_version_1_signals(both: Any, context: Any) -> None:
    """Signals with arrays reach a client of version 1 as lists, and those that are too large do no harm."""
    device, _ = both
    with Peer(context, device.url, zmq.REQ) as peer:
        port = peer.ask(request("INIT_SIGNALS_HANDLING"))["signal_port"]
    with Peer(context, f"tcp://127.0.0.1:{port}", zmq.SUB) as subscriber:
        subscriber.socket.subscribe("")

        def comes() -> bool:
            device.counted.emit(0)
            return bool(subscriber.socket.poll(50))

        wait_until(comes)
        device.frames.emit(picture(1, (1 << 20) + 1))
        device.frames.emit(picture(2, 3))
        device.reports.emit({"image": picture(3, 2)})
        device.counted.emit(1)
        found = []
        while not found or found[-1]["args"] != [1]:
            found.append(subscriber.reply())

    assert [[[2, 2, 2]], [{"image": [3, 3]}], [1]] == [each["args"] for each in found if each["args"] != [0]]


def test_device_keeps_arguments(both: Any) -> None:
    """What the device keeps of arguments stays, and only takes the slots that it is in."""
    device, client = both
    make_room(client, 12)
    for number in range(10):
        assert number + 1 == client.keep(picture(number))
    for number in range(300):
        assert [number] == client.number(picture(number))
        assert number == number_of(client.image(number))

    assert list(range(10)) == client.kept()
    device.last = None
    assert {"shm": 10} == taken(client, "keep")
    wait_until(lambda: 10 == held(device))
    device._kept.clear()
    wait_until(lambda: 0 == held(device))


def test_failed_call_gives_the_slot_back(both: Any) -> None:
    """An exception of the device with an argument in a slot; the traceback on the server keeps nothing for ever."""
    device, client = both
    make_room(client)
    for _ in range(20):
        with pytest.raises(ValueError, match="as wanted"):
            client.fail(picture(1))
        wait_until(lambda: 0 == held(device))

    assert {"shm": 20} == taken(client, "fail")


def test_fork_with_views(process_of_camera: Program, spawn: Any) -> None:
    """A forked child sees what its parent holds, which loses nothing by the end of the child."""
    user = spawn("tests.imaging", "use", process_of_camera.line)
    assert [1, 2] == [tell(user, "image", number) for number in (1, 2)]
    assert [1, 2, 7] == tell(user, "fork")
    assert [3] * 100 == [tell(user, "image", 3) for _ in range(100)]
    assert [1, 2] == tell(user, "numbers")[:2]
    assert {"image": {"shm": 102}} == tell(user, "paths")


@pytest.fixture
def process_of_camera(spawn: Any) -> Any:
    """A camera in another process; its `line` is the url."""
    return spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")


def test_killed_client_gives_all_back(both: Any, spawn: Any) -> None:
    """What a client held that is killed is free at once."""
    device, _ = both
    user = spawn("tests.imaging", "use", device.url)
    assert [1, 2, 3] == [tell(user, "image", number) for number in (1, 2, 3)]
    wait_until(lambda: 3 == held(device))
    user.kill()

    wait_until(lambda: 0 == held(device), 2.0)


def test_file_is_gone_with_its_server(context: Any, serve: Any, spawn: Any) -> None:
    """Of one that stops at once, of one that was killed with the next server; what a client holds stays."""
    killed = spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")
    with CameraClient(context, killed.line) as client:
        image = client.image(1)
        assert {"shm": 1} == taken(client, "image")
        path = client._rpc.transfer._ring._file.path
    killed.kill()
    assert os.path.exists(path)
    device = serve(CameraServer)
    with CameraClient(context, device.url) as client:
        other = client.image(2)
        own = client._rpc.transfer._ring._file.path
    assert (False, True) == (os.path.exists(path), os.path.exists(own))
    device.stop_server()
    wait_until(lambda: not os.path.exists(own))

    assert [1, 2] == [number_of(image), number_of(other)]


def test_views_outlive_client_and_context(serve: Any) -> None:
    """A picture outlives all that it came by."""
    device = serve(CameraServer)
    with zmq.Context() as context:
        with CameraClient(context, device.url) as client:
            image, small = client.image(1), client.image(2, SMALL)
    ended = weakref.ref(client)
    del client

    assert ([1, 2], None) == ([number_of(image), number_of(small)], ended())
    wait_until(lambda: 1 == held(device))
    del image
    wait_until(lambda: 0 == held(device))


ENDS = {
    "streams and views": "",
    "a listener": "client.frames.connect(kept.append); client.emit(3, 3)",
    "views that live longest": "sys.kept = kept",
    "views in a cycle": "kept.append(kept); threading.kept = kept",
    "a thread that waits": "threading.Thread(target=next, args=(streams[0],), daemon=True).start()",
    "an exit in the middle": "for each in streams[1]: sys.exit(0)",
}


@pytest.mark.parametrize("name", list(ENDS))
def test_end_of_a_process(process_of_camera: Program, name: str) -> None:
    """A process that closes nothing ends without a word, also with open streams and views."""
    source = f"""
import sys, threading, zmq
from tests.imaging import CameraClient

client = CameraClient(zmq.Context(), sys.argv[1])
streams = [client.frames.stream("all", timeout=5) for _ in range(2)]
client.emit(1, 2)
kept = [client.image(7), client.image(8)[5:], next(streams[0]), next(streams[0])]
print(*[int(each[0]) for each in kept], flush=True)
{ENDS[name]}
"""
    ended = subprocess.run(
        [sys.executable, "-c", source, process_of_camera.line],
        cwd=PROJECT, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip

    assert ("7 8 1 2\n", "", 0) == (ended.stdout, ended.stderr, ended.returncode)


@pytest.mark.parametrize("codec", ["zlib", "jpeg"])
@pytest.mark.parametrize("path", ["shm", "ipc"])
def test_no_compression_on_one_host(joined: Any, monkeypatch: pytest.MonkeyPatch, path: str, codec: str) -> None:
    """A client on the host of the server gets nothing compressed."""
    monkeypatch.setattr("rpc_kit.transfer.compress", partial(pytest.fail, "compressed"))
    _, client = joined(path, codec=codec)

    assert (1, {path: 1}) == (number_of(client.image(1)), taken(client, "image"))


def test_zlib(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over tcp everything of 4 KiB or more comes compressed, without loss; buffers and properties, too."""
    sizes = received_sizes(monkeypatch)
    _, client = joined("tcp", codec="zlib")

    assert [1, 2] == [number_of(client.image(1)), number_of(client.image(2, 10))]
    assert [3, 2, 2, 2] == numbers_of(client.take(shot(2)))
    payload, info = client.raw(4, LARGE)
    client.mask = picture(5)
    assert (4, 4, 5) == (number_of(np.frombuffer(payload, np.uint32)), number_of(info["image"]), number_of(client.mask))
    assert 6 == number_of(client.image(6, 100_000, "fortran"))
    assert {"tcp"} == {path for paths in client.stats().paths.values() for path in paths}
    assert sum(sizes) < 4 * LARGE / 10


def received_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all frames with buffers that clients of this process get."""
    sizes: list[int] = []
    from rpc_kit import calls, stream_reader

    for module in (calls, stream_reader):
        real = module.receive_rest  # type: ignore[attr-defined]

        def noting(made: Any, real: Any = real) -> Any:
            frames = real(made)
            sizes.extend(map(len, frames))
            return frames

        monkeypatch.setattr(module, "receive_rest", noting)
    return sizes


def test_jpeg(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures come nearly as they are; what JPEG cannot hold is an error that says what to do."""
    sizes = received_sizes(monkeypatch)
    device, client = joined("tcp", codec="jpeg", quality=80)
    rows = np.linspace(0, 255, 480).astype(np.uint8)
    for shape in ((480, 640), (480, 640, 1), (480, 640, 3)):
        image = np.ascontiguousarray(np.broadcast_to(rows.reshape(480, *[1] * (len(shape) - 1)), shape))
        device.echo = lambda value, image=image: image
        found = client.echo(0)

        assert (shape, np.uint8, False) == (found.shape, found.dtype, found.flags.writeable)
        assert int(np.abs(found.astype(int) - image).max()) < 10
        assert sizes.pop() < image.nbytes / 10
    with pytest.raises(TypeError, match=r"jpeg cannot compress .*connect with codec=.zlib."):
        client.image(1)
    device.echo = lambda value: np.arange(10.0)
    assert 45 == client.echo(0).sum()  # too small to be compressed
    assert {"tcp": 4} == taken(client, "echo")


@pytest.mark.parametrize("path", ["ipc", "shm"])
def test_path_after_an_error(joined: Any, path: str) -> None:
    """A call that fails does not make the later ones slower."""
    device, client = joined(path)
    with pytest.raises(CallTimeout):
        client.hesitate(1)
    device.released.set()

    assert [1, 2] == [number_of(client.image(1)), number_of(client.image(2, SMALL))]
    assert {path, "ipc"} == set(taken(client, "image"))
