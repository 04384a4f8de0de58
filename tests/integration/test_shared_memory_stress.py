"""One camera and viewers in processes that hold, fork and get killed for twenty seconds."""

import json
import os
import random
import signal
import time
from typing import Any

from tests.devices import LIMIT
from tests.helpers import Peer, Program, call, request, wait_until

SECONDS = 20.0
VIEWERS = 4


def test_viewers_that_die(spawn: Any, context: Any) -> None:
    """Every picture is right wherever it is held; at the end no slot is, and no file is left."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def start() -> Program:
        made: Program = spawn("tests.integration.viewers", "view", str(chance.randrange(1 << 30)), "--url", camera.line)
        assert "viewing" == made.line
        return made

    camera = spawn("tests.integration.viewers", "shoot", str(seed))
    with Peer(context, camera.line) as peer:
        path = peer.ask(request("GET_INVENTORY", id=["me", 1]))["shm"]["path"]

        def state() -> Any:
            return peer.ask(request("PING"))

        viewers = [start() for _ in range(VIEWERS)]
        end, killed = time.monotonic() + SECONDS, 0
        while time.monotonic() < end:
            due = time.monotonic() + chance.uniform(0.1, 1.0)
            wait_until(lambda due=due: time.monotonic() > due)
            victim = viewers.pop(chance.randrange(VIEWERS))
            assert victim.process.poll() is None
            victim.kill()
            viewers.append(start())
            killed += 1
        for each in viewers:
            each.send_signal(signal.SIGTERM)
        results = [json.loads(each.process.communicate(timeout=LIMIT)[0]) for each in viewers]
        emitted = peer.ask(call("halt", id=["me", 2]))["result"]
        wait_until(lambda: 0 == state()["shm"]["held"])
        print(f"{emitted} frames, {killed} killed, {state()['shm']}, {results}")
        assert os.path.exists(path)
        camera.send_signal(signal.SIGTERM)

    assert [[]] * VIEWERS == [result["wrong"] for result in results]
    assert sum(result["counts"].get("next", 0) for result in results) > 100
    assert (True, True) == (emitted > 500, killed > 5)
    assert (0, "") == camera.end()
    assert not os.path.exists(path)
