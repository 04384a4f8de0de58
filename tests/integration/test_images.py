"""A camera and its viewers, each in a process of its own."""

import signal
from typing import Any

import pytest

from rpc_kit.stream_reader import WINDOW
from rpc_kit.stream_sender import MOST_QUEUED
from tests.helpers import Peer, Program, in_thread, request, wait_until
from tests.imaging import CameraClient, number_of, picture, tell


@pytest.fixture
def camera(spawn: Any) -> Any:
    """A camera; its `line` is the url."""
    return spawn("tests.imaging", "serve", "tcp://127.0.0.1:0")


def viewer(spawn: Any, camera: Program, policy: str = "") -> Any:
    """A viewer, with a stream if it is to have one."""
    made = spawn("tests.imaging", "use", camera.line)
    if policy:
        tell(made, "stream", policy)
    return made


def state(context: Any, camera: Program) -> Any:
    """What the server says of its memory and streams."""
    with Peer(context, camera.line) as peer:
        return peer.ask(request("PING"))


def test_viewers_share_slots(camera: Any, context: Any, spawn: Any) -> None:
    """Four viewers hold the same three frames in three slots, and these are free after the last viewer has let go."""
    viewers = [viewer(spawn, camera, "all") for _ in range(4)]
    tell(viewers[0], "emit", 1, 3)
    for number in (1, 2, 3):
        assert [number] * 4 == [tell(each, "next") for each in viewers]
    assert [[1, 2, 3]] * 4 == [tell(each, "numbers") for each in viewers]

    wait_until(lambda: 3 == state(context, camera)["shm"]["held"])
    for each in viewers[1:]:
        tell(each, "drop")
    wait_until(lambda: 3 == state(context, camera)["shm"]["held"])
    viewers[0].kill()
    wait_until(lambda: 0 == state(context, camera)["shm"]["held"], 2.0)


def test_viewers_of_all_policies(camera: Any, context: Any, spawn: Any) -> None:
    """One that does not read holds up neither the camera nor those that do, and costs so much and no more."""
    viewers = {policy: viewer(spawn, camera, policy) for policy in ("all", "latest", "every")}
    idle = viewer(spawn, camera, "all")
    for number in range(1, 301):
        tell(viewers["all"], "emit", number, number)
        assert number == tell(viewers["all"], "next")
        tell(viewers["all"], "drop")
        if number % 50 == 0:
            assert number == tell(viewers["latest"], "next")
    streams = state(context, camera)["streams"]

    assert ["all", "all", "every", "latest"] == sorted(each["policy"] for each in streams)
    assert [0, 0, MOST_QUEUED, MOST_QUEUED] == sorted(each["waiting"] for each in streams)
    assert list(range(1, WINDOW + MOST_QUEUED + 1)) == [tell(idle, "next") for _ in range(WINDOW + MOST_QUEUED)]


def test_viewer_forks(camera: Any, spawn: Any) -> None:
    """A child sees the frames of its parent, whose stream goes on."""
    made = viewer(spawn, camera, "all")
    tell(made, "emit", 1, 4)
    assert [1, 2] == [tell(made, "next") for _ in range(2)]
    assert [1, 2, 7] == tell(made, "fork")

    assert [3, 4] == [tell(made, "next") for _ in range(2)]
    assert 5 == tell(made, "image", 5)
    assert [1, 2, 3, 4, 5] == tell(made, "numbers")


def test_camera_is_killed(camera: Any, spawn: Any, context: Any) -> None:
    """Frames outlive their camera; the next one at its address has shared memory of its own."""
    made = viewer(spawn, camera, "latest")
    tell(made, "emit", 1, 1)
    assert (1, 2) == (tell(made, "next"), tell(made, "image", 2))
    camera.send_signal(signal.SIGKILL)
    assert "ServerLost" in tell(made, "next")
    again = spawn("tests.imaging", "serve", camera.line)
    wait_until(lambda: 3 == tell(made, "image", 3))
    assert [1, 2, 3] == tell(made, "numbers")
    with CameraClient(context, again.line) as client:
        with in_thread(lambda: tell(made, "next")) as outcome:
            # Emitted again and again, as nobody knows when the stream is open.
            wait_until(lambda: client.emit(4, 4) or outcome)
        assert [7] == client.number(picture(7))
        assert 8 == number_of(client.image(8))

    assert [4] == outcome
    assert {"shm": 2} == tell(made, "paths")["frames"]
