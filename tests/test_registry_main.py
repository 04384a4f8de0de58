"""``python -m registry serve`` as a process."""

import signal
from typing import Any

import pytest

from registry import find_device, register_device


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve(spawn: Any, context: Any, number: int) -> None:
    """It prints its url, registers devices, and ends with status 0 when told to."""
    program = spawn("registry", "serve", "--addr", "127.0.0.1", "--port", "0")
    name, uuid = register_device(context, "scope", "tcp://127.0.0.1:9000", "", program.line)

    assert ("scope-0", True) == (name, bool(uuid))
    assert "tcp://127.0.0.1:9000" == find_device(context, name, program.line)
    program.send_signal(number)
    assert (0, "") == program.end()


def test_port_in_use(spawn: Any) -> None:
    """One clear line, exit status 1."""
    port = spawn("registry", "serve", "--addr", "127.0.0.1", "--port", "0").line.rpartition(":")[2]
    ended = spawn("registry", "serve", "--addr", "127.0.0.1", "--port", port).end()

    assert (1, f"rpc-registry: [Errno 98] cannot bind to tcp://127.0.0.1:{port}: Address already in use\n") == ended


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["serve", "--port", "99999"], 1, "rpc-registry: 'tcp://*:99999' has no proper port"),
        (["serve", "--port", "-1"], 1, "rpc-registry: 'tcp://*:-1' has no proper port"),
        (["serve", "--addr", "a host"], 1, "rpc-registry: 'tcp://a host:5555' has no proper host"),
        (["serve", "--port", "many"], 2, "invalid int value: 'many'"),
        ([], 2, "required: command"),
    ],
)
def test_wrong_arguments(spawn: Any, arguments: list[str], status: int, text: str) -> None:
    """What is wrong is said in one line, without a traceback."""
    ended, errors = spawn("registry", *arguments).end()

    assert (status, text) == (ended, text if text in errors else errors)
    assert "Traceback" not in errors
