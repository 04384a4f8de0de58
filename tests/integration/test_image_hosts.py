"""Pictures between hosts, users, and systems without shared memory: what is not there is done without."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.devices import LIMIT
from tests.helpers import Program
from tests.imaging import LARGE, CameraClient, number_of, picture, tell
from tests.real.hosts import Hosts
from tests.real.parts import path_of, require

Start = Callable[..., Program]
NOBODY = "65534"


def with_shm(options: str) -> list[str]:
    """Runs the command behind it with a /dev/shm of its own, as each host has one."""
    return [path_of("unshare"), "--mount", "sh", "-c", f'mount -t tmpfs {options} tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server or a client of the camera."""
    require("root", "unshare")
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, prefix: Sequence[str] = ()) -> Program:
            made = Program("tests.imaging", *arguments, prefix=prefix)
            stack.callback(made.kill)
            # First in good order: what a server of another user leaves when it is killed is not ours to remove.
            stack.callback(made.process.wait, LIMIT)
            stack.callback(made.process.terminate)
            return made

        yield run


def use_all(user: Program) -> Any:
    """Have a client do everything with pictures; the paths that were taken."""
    assert "connected" == user.line
    assert [1, 2] == [tell(user, "image", number) for number in (1, 2)]
    assert [3] == tell(user, "send", 3)
    assert 4 == tell(user, "mask", 4)
    tell(user, "stream", "all")
    tell(user, "emit", 5, 9)
    assert [5, 6, 7, 8, 9] == [tell(user, "next") for _ in range(5)]
    assert [1, 2, 5, 6, 7, 8, 9] == tell(user, "numbers")
    paths = tell(user, "paths")
    return {member: paths[member] for member in ("image", "number", "mask", "frames")}


def all_by(path: str) -> dict[str, dict[str, int]]:
    """The paths of `use_all` when there is only one."""
    return {"image": {path: 2}, "number": {path: 1}, "mask": {path: 2}, "frames": {path: 5}}


@pytest.mark.parametrize("codec", ["", "zlib"])
def test_two_hosts(hosts: Hosts, start: Start, codec: str) -> None:
    """Between hosts everything goes by tcp."""
    here, there = hosts
    server = start("serve", "tcp://*:0", prefix=here.prefix)
    url = f"tcp://{here.address}:{server.line.rpartition(':')[2]}"
    user = start(
        "use", url, *(("--codec", codec) if codec else ()), prefix=[*there.prefix, *with_shm("-o size=100m")]
    )

    assert all_by("tcp") == use_all(user)


def test_client_on_the_host_of_the_server(hosts: Hosts, start: Start) -> None:
    """A client on the same host has shared memory, though it knows the server by the address that all others use."""
    here, there = hosts
    server = start("serve", "tcp://*:0", prefix=here.prefix)
    url = f"tcp://{here.address}:{server.line.rpartition(':')[2]}"
    far = start("use", url, prefix=[*there.prefix, *with_shm("-o size=100m")])
    near = start("use", url, prefix=here.prefix)
    tell(near, "image", 0)
    tell(near, "drop")
    paths = use_all(near)

    assert ({"shm": 3}, {"shm": 5}) == (paths["image"], paths["frames"])
    assert all_by("tcp") == use_all(far)


def test_two_containers(start: Start) -> None:
    """Of one network, but each with its own /dev/shm: by a socket."""
    server = start("serve", "tcp://127.0.0.1:0")
    user = start("use", server.line, prefix=with_shm("-o size=100m"))

    assert all_by("ipc") == use_all(user)


@pytest.mark.parametrize("who", ["server", "client"])
@pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "ipc://@camera-of-somebody"])
def test_another_user(start: Start, who: str, url: str) -> None:
    """Who may not read the memory of the other one does without it."""
    server = start("serve", url, *(("--user", NOBODY) if who == "server" else ()))
    user = start("use", server.line, *(("--user", NOBODY) if who == "client" else ()))

    assert all_by("ipc") == use_all(user)


def test_same_user_who_is_not_root(start: Start) -> None:
    """Shared memory needs no privilege."""
    server = start("serve", "tcp://127.0.0.1:0", "--user", NOBODY)
    user = start("use", server.line, "--user", NOBODY)
    paths = use_all(user)

    assert ({"shm": 2}, {"shm": 5}) == (paths["image"], paths["frames"])


def test_server_for_all_addresses(start: Start, context: Any) -> None:
    """A client on the host of a server that listens at every address takes the short way, too."""
    server = start("serve", "tcp://*:0", "--memory", "0")
    with CameraClient(context, server.line.replace("*", "127.0.0.1")) as client:
        assert 1 == number_of(client.image(1))
        assert {"image": {"ipc": 1}} == client.stats().paths


@pytest.mark.parametrize("who", ["server", "client"])
@pytest.mark.parametrize("options", ["-o ro", "-o size=64k"])
def test_no_shared_memory(start: Start, who: str, options: str) -> None:
    """Without a /dev/shm that can be written to, or with one that is too small, by a socket."""
    server = start("serve", "tcp://127.0.0.1:0", prefix=with_shm(options) if who == "server" else ())
    user = start("use", server.line, prefix=with_shm(options) if who == "client" else ())

    assert all_by("ipc") == use_all(user)


def test_shared_memory_is_nearly_full(start: Start) -> None:
    """As much goes by shared memory as there is room for, everything else by a socket; nobody dies of it."""
    prefix = with_shm(f"-o size={10 * 4 * LARGE}")
    server = start("serve", "tcp://127.0.0.1:0", "--memory", str(1 << 30), prefix=prefix)
    inside = [path_of("nsenter"), "--mount=" + str(Path("/proc", str(server.pid), "ns", "mnt")), f"--wd={Path.cwd()}"]
    user = start("use", server.line, prefix=inside)
    assert list(range(20)) == [tell(user, "image", number) for number in range(20)]
    paths = tell(user, "paths")["image"]

    assert (20, True) == (paths["shm"] + paths["ipc"], 3 <= paths["shm"] <= 10)
    assert list(range(20)) == tell(user, "numbers")
    assert [3] == tell(user, "send", 3)


def test_picture_of_this_host(start: Start, context: Any) -> None:
    """What is sent and held here is not disturbed by another user's client."""
    server = start("serve", "tcp://127.0.0.1:0")
    other = start("use", server.line, "--user", NOBODY)
    with CameraClient(context, server.line) as client:
        held = [client.image(number) for number in range(5)]
        tell(other, "stream", "all")
        for number in range(20):
            assert [number] == client.number(picture(number))
            client.emit(number, number)
            assert (number, number) == (tell(other, "next"), tell(other, "image", number))

        assert list(range(5)) == list(map(number_of, held))
        assert {"image": {"ipc": 20}, "frames": {"ipc": 20}} == tell(other, "paths")
