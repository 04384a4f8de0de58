"""``rpc-registry`` and ``python -m registry`` as processes: what they print, and how they end."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from rpc_kit.registration import register_device
from tests.devices import LIMIT
from tests.helpers import PROJECT, Peer, Program, call, request
from tests.registries import ScriptedRegistry

SERVE = ["registry", "serve", "--addr", "127.0.0.1", "--port", "0", "--no-announce"]
QUIET = [*SERVE, "--store", "memory", "--log-level", "warning"]
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
DEVICES: list[dict[str, Any]] = [
    {
        "device_type": "camera", "addr": "tcp://10.0.0.1:9000", "name": "left", "interface": "Camera",
        "addresses": ["tcp://10.0.0.1:9000", "tcp://[fd00::1]:9000"], "interface_hash": "abc", "epoch": "e1",
        "metadata": {"host": "lab1", "pid": 7, "room": "12", "cooled": True, "gain": 0.5, "spare": None},
    },
    {"device_type": "camera", "addr": "tcp://10.0.0.2:9000", "name": "right", "metadata": {"room": 12, "host": "lab2"}},
    {"device_type": "stage", "addr": "tcp://10.0.0.3:9000", "name": "", "metadata": {"note": "a\x1b[2J\nb"}},
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home that stays empty, in an environment without settings."""
    made = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in [name for name in os.environ if name.startswith("RPC_REGISTRY")]:
            monkeypatch.delenv(name)
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
            monkeypatch.setenv(name, str(made))
        yield made
    assert [] == list(made.iterdir())


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """A registry with some devices."""
    program = Program(*QUIET)
    with zmq.Context() as context, Peer(context, program.line, zmq.REQ) as peer:
        for device in DEVICES:
            enter(peer, **device)
    yield program.line
    program.send_signal(signal.SIGTERM)
    assert (0, "") == program.end()


def enter(peer: Peer, **device: Any) -> str:
    """Register for ten minutes; the uuid."""
    reply = peer.ask(request("REGISTER", payload={"alive_timeout": 600, **device}))
    return str(reply["payload"]["uuid"])


def run(*arguments: str, how: Sequence[str] = ("-m", "registry"), **environment: str) -> tuple[int, str, str]:
    """Run a command to its end: exit status, output and errors."""
    ran = subprocess.run(
        [sys.executable, *how, *arguments],
        cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve(spawn: Any, context: Any, number: int) -> None:
    """It prints its url, registers devices, and ends with status 0 when told to."""
    program = spawn(*QUIET)
    name, uuid = register_device(context, "scope", "tcp://127.0.0.1:9000", "", program.line)

    assert ("scope-0", True) == (name, bool(uuid))
    program.send_signal(number)
    assert (0, "") == program.end()


def test_end_before_it_serves(spawn: Any) -> None:
    """From the moment its url is known it ends in an orderly way."""
    programs = [spawn(*QUIET) for _ in range(6)]
    for program in programs:
        assert program.line.startswith("tcp://127.0.0.1:")
        program.send_signal(signal.SIGTERM)

    assert [(0, "")] * 6 == [program.end() for program in programs]


SIGNALLED = """
import os, signal, sys
from registry import cli

cli.print = lambda *text, **options: os.kill(os.getpid(), signal.SIGTERM)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_end_at_once(spawn: Any) -> None:
    """A signal that comes together with the url is not lost."""
    assert (0, "", "") == run(*QUIET[1:], how=["-c", SIGNALLED])


def test_what_is_kept(spawn: Any, context: Any, tmp_path: Path) -> None:
    """Devices are there after an orderly end, and after a kill."""
    file = tmp_path / "folder" / "registry.sqlite"
    arguments = [*SERVE, "--store", f"sqlite:{file}"]
    names = []
    for number in range(3):
        program = spawn(*arguments)
        with Peer(context, program.line, zmq.REQ) as peer:
            names.append([each["name"] for each in peer.ask(call("list"))["result"]])
            enter(peer, device_type="scope", addr=f"tcp://h:{number}", name="")
        program.send_signal(signal.SIGTERM if number else signal.SIGKILL)
        status, errors = program.end()
        assert f"serving {number} devices at {program.line}, kept in {file}\n" in errors
        assert (0 if number else -9) == status

    assert [[], ["scope-0"], ["scope-0", "scope-1"]] == names


def test_port_in_use(spawn: Any) -> None:
    """One clear line, exit status 1."""
    port = spawn(*QUIET).line.rpartition(":")[2]
    ended = run(*QUIET[1:], "--port", port)

    assert (1, "", f"rpc-registry: [Errno 98] cannot bind to tcp://127.0.0.1:{port}: Address already in use\n") == ended


def test_settings(spawn: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says how to serve, the environment wins over it, and flags over both."""
    file = tmp_path / "registry.toml"
    file.write_text('addr = "localhost"\nport = 70\nstore = "nothing"\nannounce = false\nlog_level = "warning"\n')
    monkeypatch.setenv("RPC_REGISTRY_PORT", "0")
    monkeypatch.setenv("RPC_REGISTRY_STORE", "sqlite")
    program = spawn("registry", "serve", "--config", str(file), "--store", "memory")
    program.send_signal(signal.SIGTERM)

    assert re.fullmatch(r"tcp://localhost:\d+", program.line)
    assert (0, "") == program.end()


WRONG = [
    ([], "the following arguments are required: command (see rpc-registry --help)"),
    (["server"], "invalid choice: 'server'"),
    (["serve", "--port", "many"], "argument --port: invalid int value: 'many' (see rpc-registry serve --help)"),
    (["serve", "--port", "99999"], "the settings: a port is a number from 0 to 65535, not 99999"),
    (["serve", "--store", "redis"], "a store is memory, sqlite, sqlite:FILE or etcd:http://host:2379,http://…, not"),
    (["serve", "--log-level", "loud"], "a log level is one of debug, info, warning, error, critical, not 'loud'"),
    (["serve", "--log", "loud"], "a log filter is LOGGER=LEVEL"),
    (["serve", "--config", "/missing.toml"], "[Errno 2] No such file or directory: '/missing.toml'"),
    (["serve", "--store", "memory", "--addr", "a host"], "'tcp://a host:5555' has no proper host"),
    (["find"], "the following arguments are required: name (see rpc-registry find --help)"),
    (["evict", "--registry", "h", "a", "b"], "unrecognized arguments: b (see rpc-registry --help)"),
    (["list", "--registry", ""], "the argument names no registry: ''"),
    (["list", "--registry", "tcp://*:1"], "'tcp://*:1' is no registry: a client needs one host and one port"),
    (["watch", "--registry", "pigeon://h"], "the argument: 'pigeon://h' is no registry: "),
    (["list", "--registry", "h", "room"], "metadata are given as KEY=VALUE"),
    (["list", "--registry", "h", "--timeout", "soon"], "argument --timeout: "),
    (["list", "--registry", "h", "--timeout", "inf"], "a timeout is a number of seconds up to 3600, not inf"),
    (["find", "a", "--registry", "h", "--timeout", "nan"], "a timeout is a number of seconds up to 3600, not nan"),
    (["watch", "--registry", "h", "--timeout", "0"], "a timeout is a number of seconds up to 3600, not 0"),
]
NOWHERE = ["--registry", "tcp://127.0.0.1:1", "--timeout", "0.2"]
NO_ANSWER = "no registry answers at tcp://127.0.0.1:1: "


@pytest.mark.parametrize(("arguments", "text"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_arguments(arguments: list[str], text: str) -> None:
    """What is wrong is said in one line, with exit status 2."""
    status, output, errors = run(*arguments)

    assert (2, "", 1) == (status, output, errors.count("\n"))
    assert f"rpc-registry: {text}" in errors or text in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serve", "--addr", "127.0.0.1", "--port", "0", "--store", "sqlite:/dev/null/a"], "/dev/null/a cannot be"),
        (["list", *NOWHERE], NO_ANSWER),
        (["list", "--json", *NOWHERE], NO_ANSWER),
        (["find", "a", *NOWHERE], NO_ANSWER),
        (["evict", "a", *NOWHERE], NO_ANSWER),
    ],
)
def test_what_cannot_be_done(arguments: list[str], text: str) -> None:
    """It is said in one line, with exit status 1."""
    status, output, errors = run(*arguments)

    assert (1, "", 1) == (status, output, errors.count("\n"))
    assert errors.startswith("rpc-registry: ") and text in errors


def test_registry_that_is_not_known() -> None:
    """It is said in one line how to name one."""
    without_mdns = "import sys; sys.modules['zeroconf'] = None; from registry.cli import main; sys.exit(main(['list']))"
    status, output, errors = run(how=["-c", without_mdns])

    assert (1, "", 1) == (status, output, errors.count("\n"))
    assert errors.startswith("rpc-registry: no registry is known: pass its url, or set RPC_REGISTRY=")


def test_list(url: str) -> None:
    """A table of all devices in the order of their registration; nothing of it is for the terminal."""
    status, output, errors = run("list", "--registry", url)
    lines = [re.sub(DATE, "DATE", line) for line in output.splitlines()]

    assert (0, "") == (status, errors)
    assert [
        "NAME     TYPE    ADDRESS              INTERFACE  HOST  PID  REGISTERED",
        "left     camera  tcp://10.0.0.1:9000  Camera     lab1  7    DATE",
        "right    camera  tcp://10.0.0.2:9000  -          lab2  -    DATE",
        "stage-0  stage   tcp://10.0.0.3:9000  -          -     -    DATE",
    ] == lines


def test_list_as_json(url: str) -> None:
    """All that is known of all devices."""
    status, output, errors = run("list", "--json", "--registry", url)
    found = json.loads(output)

    assert (0, "", 3) == (status, errors, len(found))
    assert ["left", "right", "stage-0"] == [each["name"] for each in found]
    expected = {**DEVICES[0], "address": DEVICES[0]["addr"], "stale": False}
    del expected["addr"]
    assert expected.keys() | {"uuid", "registered"} == found[0].keys()
    assert expected == {key: found[0][key] for key in expected}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--type", "camera"], ["left", "right"]),
        (["--type", "laser"], []),
        (["room=12"], ["left", "right"]),
        (["room=12", "host=lab2"], ["right"]),
        (["--type", "stage", "room=12"], []),
        (["cooled=true"], ["left"]),
        (["gain=0.5", "pid=7"], ["left"]),
        (["spare=null"], ["left"]),
        (["missing=null"], []),
        (["note=a=b"], []),
    ],
)
def test_filters(url: str, arguments: list[str], names: list[str]) -> None:
    """Only devices of a type, or with certain metadata, which are compared as they are printed."""
    status, output, errors = run("list", *arguments, "--registry", url)

    assert (0, "") == (status, errors)
    assert names == [line.split()[0] for line in output.splitlines()[1:]]


def test_list_of_nothing(spawn: Any) -> None:
    """An empty table, an empty list."""
    url = spawn(*QUIET).line

    assert (0, "NAME  TYPE  ADDRESS  INTERFACE  HOST  PID  REGISTERED\n", "") == run("list", RPC_REGISTRY=url)
    assert (0, "[]\n", "") == run("list", "--json", RPC_REGISTRY=url)


def test_find(url: str) -> None:
    """All that is known of one device."""
    status, output, errors = run("find", "left", "--registry", url)
    lines = re.sub(DATE, "DATE", re.sub("[0-9a-f-]{36}", "UUID", output)).splitlines()

    assert (0, "") == (status, errors)
    assert [
        "uuid            UUID",
        "name            left",
        "device_type     camera",
        "address         tcp://10.0.0.1:9000",
        "addresses       tcp://10.0.0.1:9000 tcp://[fd00::1]:9000",
        "interface       Camera",
        "interface_hash  abc",
        "epoch           e1",
        "metadata        host=lab1, pid=7, room=12, cooled=true, gain=0.5, spare=null",
        "registered      DATE",
        "stale           false",
    ] == lines


def test_find_what_is_for_no_terminal(url: str) -> None:
    """What a device says of itself cannot move the cursor."""
    _, output, _ = run("find", "stage-0", "--registry", url)

    assert r'metadata        note="a\u001b[2J\nb"' in output.splitlines()


def test_find_as_json(url: str) -> None:
    """The same for programs."""
    status, output, errors = run("find", "stage-0", "--json", "--registry", url)

    assert (0, "", DEVICES[2]["metadata"]) == (status, errors, json.loads(output)["metadata"])


@pytest.mark.parametrize("command", ["find", "evict"])
def test_unknown_device(url: str, command: str) -> None:
    """One line, exit status 1."""
    assert (1, "", "rpc-registry: no device is registered as 'middle'\n") == run(command, "middle", "--registry", url)


def test_evict(spawn: Any, context: Any) -> None:
    """The device is gone, and told once more."""
    url = spawn(*QUIET).line
    with Peer(context, url, zmq.REQ) as peer:
        for name in ("left", "right"):
            enter(peer, device_type="camera", addr=f"tcp://{name}:1", name=name)

        assert (0, "left at tcp://left:1 is evicted\n", "") == run("evict", "left", "--registry", url)
        status, output, _ = run("evict", "right", "--json", "--registry", url)
        assert (0, "tcp://right:1") == (status, json.loads(output)["address"])
        assert [] == peer.ask(call("list"))["result"]


@contextlib.contextmanager
def watching(url: str, *arguments: str) -> Iterator[Program]:
    """A watch that is ended by Ctrl-C, which is no failure."""
    program = Program("registry", "watch", "--registry", url, *arguments)
    try:
        yield program
        program.send_signal(signal.SIGINT)
        assert (130, "") == program.end()
    finally:
        program.kill()


def test_watch(spawn: Any, context: Any) -> None:
    """What is there is shown first, then what comes, changes and goes, and why, until Ctrl-C."""
    registry = spawn(*QUIET)
    with Peer(context, registry.line, zmq.REQ) as peer:
        camera = {"device_type": "camera", "addr": "tcp://h:1", "name": "left"}
        uuid = enter(peer, **camera)
        with watching(registry.line) as watch:
            lines = [watch.line]
            enter(peer, **{**camera, "addr": "tcp://h:2"}, uuid=uuid)
            enter(peer, **{**camera, "addr": "tcp://h:2"}, overwrite=True)
            peer.ask(call("evict", "left"))
            enter(peer, device_type="stage", addr="tcp://h:3", name="", alive_timeout=0.01)
            lines += [watch.output.readline().strip() for _ in range(6)]

    assert [
        "DATE  added    left  camera  tcp://h:1",
        "DATE  changed  left  camera  tcp://h:2",
        "DATE  removed  left  camera  tcp://h:2 (replaced)",
        "DATE  added    left  camera  tcp://h:2",
        "DATE  removed  left  camera  tcp://h:2 (evicted)",
        "DATE  added    stage-0  stage  tcp://h:3",
        "DATE  removed  stage-0  stage  tcp://h:3 (expired)",
    ] == [re.sub(DATE, "DATE", line) for line in lines]


def test_watch_as_json(url: str) -> None:
    """One object in each line."""
    with watching(url, "--json") as watch:
        shown = [json.loads(line) for line in [watch.line, *(watch.output.readline() for _ in range(2))]]

    assert [("added", "", "left"), ("added", "", "right"), ("added", "", "stage-0")] == [
        (each["event"], each["reason"], each["name"]) for each in shown
    ]
    assert DEVICES[0]["metadata"] == shown[0]["metadata"]


def test_watch_that_nobody_reads(url: str) -> None:
    """It ends with its reader, without an error."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "registry", "watch", "--registry", url],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (0, b"") == (process.wait(LIMIT), process.stderr.read())


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["find"]])
def test_program_and_module_are_the_same(arguments: list[str]) -> None:
    """``python -m registry`` is ``rpc-registry``."""
    status, output, errors = run(*arguments, how=["-c", "import sys; from registry.cli import main; sys.exit(main())"])

    assert (status, output, errors) == run(*arguments)
    assert ("usage: rpc-registry " in output) is (status == 0)


@pytest.mark.parametrize(("registered", "date"), [("NaN", "?"), ("1e300", "?"), ("-1e300", "?"), ("0", "-")])
@pytest.mark.parametrize("command", [["list"], ["find", "a"], ["evict", "a"]], ids=lambda command: command[0])
def test_registry_that_is_malicious(context: Any, command: list[str], registered: str, date: str) -> None:
    """Whatever a registry says of a device, nothing of it moves the cursor, and no date is too odd."""
    odd = "a\x1b]0;b\x07\n"
    entry = dict.fromkeys(["uuid", "name", "device_type", "address", "interface", "interface_hash", "epoch"], odd)
    more = {"addresses": [odd], "metadata": {"host": odd, odd: odd}, "registered": float(registered)}
    with ScriptedRegistry(context) as scripted:
        result = [{**entry, **more}] if command == ["list"] else {**entry, **more}
        scripted.answers["METHOD_CALL"] = {"success": True, "result": result}
        status, output, errors = run(*command, "--registry", scripted.url)

    assert (0, "") == (status, errors)
    assert output.replace("\n", "").isprintable()
    assert r'"a\u001b]0;b\u0007\n"' in output
    if command == ["list"]:
        assert (2, True) == (len(output.splitlines()), output.endswith(f" {date}\n"))
    elif command == ["find", "a"]:
        assert f"registered      {date}" in output.splitlines()
