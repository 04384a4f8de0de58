"""Servers and streams in forked processes: there they do nothing, and the parent goes on."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests.devices import LIMIT
from tests.helpers import PROJECT

BEGIN = """
import os, sys, threading, zmq
from tests.devices import InstrumentClient, InstrumentServer
from tests.helpers import wait_until

context = zmq.Context()
"""
IN_CHILD = {
    "dropping": "del device, serving",
    "dropping one that is not served": "del idle",
    "leaving": "device.__exit__(None, None, None)",
    "stopping": "device.stop_server(); idle.stop_server()",
    "exiting": "sys.exit(7)",
}
CHILD = """
device, idle = (InstrumentServer(context, "tcp://127.0.0.1:0") for _ in range(2))
serving = threading.Thread(target=device.serve_forever)
serving.start()
wait_until(lambda: device._rpc.serving)
client = InstrumentClient(context, device.url)
if os.fork() == 0:
    {}
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), client.add(1, 2), idle._rpc.ended)
client.close()
for each in (device, idle):
    each.stop_server()
serving.join()
context.term()
"""
METHOD = """
class Forking(InstrumentServer):
    def count(self):
        own = self._rpc.endpoint._own
        own.acquire()  # as if the standby were at work
        child = os.fork()
        if child == 0:
            sys.exit(7)
        own.release()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def ask():
    with InstrumentClient(context, device.url) as client:
        print(client.count(), client.count(), client.add(1, 2))
        client.stop_server()

device = Forking(context, "tcp://127.0.0.1:0")
asking = threading.Thread(target=ask)
asking.start()
device.serve_forever()
asking.join()
context.term()
"""


STREAM = """
from rpc_kit.errors import ClientClosed
from tests.imaging import CameraClient, CameraServer, number_of

device = CameraServer(context, "tcp://127.0.0.1:0")
serving = threading.Thread(target=device.serve_forever)
serving.start()
wait_until(lambda: device._rpc.serving)
client = CameraClient(context, device.url)
streams = [client.frames.stream(policy, timeout=5) for policy in ("all", "latest")]
device.emit(1, 1)
print(*[number_of(next(each)) for each in streams], flush=True)
device.emit(2, 2)
if os.fork() == 0:
    {}
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]), *[number_of(next(each)) for each in streams])
device.emit(3, 3)
print(*[number_of(next(each)) for each in streams], *[each.dropped for each in streams])
for each in (*streams, client):
    each.close()
device.stop_server()
serving.join()
context.term()
"""
STREAM_IN_CHILD = {
    "reading": """
    for each in streams:
        try:
            next(each)
        except ClientClosed:
            continue
        os._exit(1)""",
    "closing": "for each in streams: each.close()",
    "dropping": "del streams, client",
    "closing the client": "client.close()",
    "exiting": "sys.exit(7)",
}


def output_of(source: str) -> Any:
    """What a program with its children prints; whoever hangs is ended."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", BEGIN + source],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return *process.communicate(timeout=LIMIT), process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


@pytest.mark.parametrize("name", list(IN_CHILD))
def test_server_in_forked_process(name: str) -> None:
    """Whatever a forked process does with the server of its parent changes nothing, and takes no time."""
    assert ("7 3 False\n", "", 0) == output_of(CHILD.format(IN_CHILD[name]))


def test_method_that_forks() -> None:
    """A sys.exit() in a process that a method forked ends that process, without a reply; the server goes on."""
    assert ("7 7 3\n", "", 0) == output_of(METHOD)


@pytest.mark.parametrize("name", list(STREAM_IN_CHILD))
def test_stream_in_forked_process(name: str) -> None:
    """Whatever a forked process does with the streams of its parent ends at once, and takes no event from it."""
    assert ("1 1\n7 2 2\n3 3 0 0\n", "", 0) == output_of(STREAM.format(STREAM_IN_CHILD[name]))
