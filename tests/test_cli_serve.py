"""``rpc-kit serve`` as a process: the device that it serves, and what it says when it cannot."""

import os
import re
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rpc_kit import RegistryClient, RPCClient, RPCServer
from rpc_kit.cli.device_class import type_of
from tests.devices import LIMIT, InstrumentClient, InstrumentServer
from tests.helpers import PROJECT, Program, wait_until

if TYPE_CHECKING:
    import zmq

OVEN = "tests.test_cli_serve:OvenServer"
INSTRUMENT = "tests.devices:InstrumentServer"
NOBODY = "tcp://127.0.0.1:1"


class Mode(Enum):
    BAKE = "bake"
    GRILL = "grill"


class Oven(ABC):
    """Tells what it was made with."""

    @RPCServer.register_method_json
    @abstractmethod
    def made_with(self) -> str: ...


class OvenServer(Oven, RPCServer):
    def __init__(
        self,
        context: "zmq.Context[Any]",
        url: str,
        watts: float = 800,
        mode: Mode = Mode.BAKE,
        label: str = "",
        note: str | None = None,
        zones: list[int] | None = None,
        *,
        protocol: Path | None = None,
        anything: Any = None,
        untyped=None,  # type: ignore[no-untyped-def]
        **options: Any,
    ) -> None:
        given = dict(locals())
        self._settings = {name: given[name] for name in [*_SETTINGS, *options] if name in given}
        self._settings.update(options)
        super().__init__(context, url, **options)

    def made_with(self) -> str:
        return repr(self._settings)


_SETTINGS = ("watts", "mode", "label", "note", "zones", "protocol", "anything", "untyped")


@RPCClient.register_interface(Oven)
class OvenClient(Oven, RPCClient):
    """The client of the oven."""


class BrokenServer(InstrumentServer):
    """Its instrument is not there, which is seen at once or after it has bound its sockets."""

    def __init__(self, context: Any, url: str, late: bool) -> None:
        if late:
            super().__init__(context, url)
        raise OSError("the cable\nis not plugged in")


class InterruptedServer(InstrumentServer):
    """Gets a signal while it is made."""

    def __init__(self, context: Any, url: str) -> None:
        super().__init__(context, url)
        signal.raise_signal(signal.SIGINT)


class ImpatientServer(InstrumentServer):
    """Is told to end before it is served."""

    def register_to_registry(self, *args: Any, **options: Any) -> str:
        name = super().register_to_registry(*args, **options)
        signal.raise_signal(signal.SIGTERM)
        return name


class UnfinishedServer(Oven, RPCServer):
    """Lacks a method."""


class UnresolvedServer(InstrumentServer):
    """Has an annotation that only type checkers know."""

    def __init__(self, context: Any, url: str, vendor: "Vendor" = None) -> None:  # type: ignore  # noqa: F821
        super().__init__(context, url)


class WithoutServerInItsName(InstrumentServer):
    """Is of the type of its interface."""


class SelfMadeServer(RPCServer):
    """Has no interface apart from itself."""

    @RPCServer.register_method_json
    def identify(self) -> str:
        return "self-made"


@pytest.fixture(autouse=True)
def configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for the user's configuration, and modules in it; no registry is known, and none is found."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("RPC_REGISTRY", raising=False)
    (tmp_path / "zeroconf.py").write_text("raise ImportError('not in this test')\n")
    return tmp_path


Serve = Callable[..., Program]


@pytest.fixture
def serve(spawn: Callable[..., Program]) -> Serve:
    """Runs ``rpc-kit serve``."""
    return lambda *arguments: spawn("rpc_kit", "serve", *arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve(serve: Serve, connect: Callable[..., Any], number: int) -> None:
    """The first line is the url, where the device answers; it ends with status 0, and its log tells of its life."""
    program = serve(INSTRUMENT, "--registry", "none")

    assert 3 == connect(program.line).add(1, 2)
    program.send_signal(number)
    status, errors = program.end()
    said = [line.split(" ", 2)[2] for line in errors.splitlines()]
    assert (0, f"INFO rpc_kit.cli.serve: serving InstrumentServer at {program.line}") == (status, said[0])
    assert "INFO rpc_kit.cli.serve: InstrumentServer has ended" == said[-1]


@pytest.mark.parametrize("module", ["rpc_kit", "rpc_kit.cli"])
def test_modules(spawn: Callable[..., Program], module: str) -> None:
    """Both modules are the command line."""
    status, errors = spawn(module, "serve").end()

    assert (2, "rpc-kit: one of the arguments") == (status, errors[:29])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("watts=1200", "'watts': 1200.0"),
        ("watts=1e3", "'watts': 1000.0"),
        ("watts=-inf", "'watts': -inf"),
        ("mode=grill", "'mode': <Mode.GRILL: 'grill'>"),
        ("mode='grill'", "'mode': <Mode.GRILL: 'grill'>"),
        ("label=1200", "'label': '1200'"),
        ("label='x' = \"y\"", "'label': '\\'x\\' = \"y\"'"),
        ("label=", "'label': ''"),
        ("note=007", "'note': '007'"),
        ("note=7", "'note': '7'"),
        ("zones=[1, 2]", "'zones': [1, 2]"),
        ("protocol=/tmp/a b", "'protocol': PosixPath('/tmp/a b')"),
        ("anything={a = [1, true]}", "'anything': {'a': [1, True]}"),
        ("anything=1\nb = 2", "'anything': '1\\nb = 2'"),
        ("anything=no value", "'anything': 'no value'"),
        ("untyped=2.5", "'untyped': 2.5"),
        ("remote_stop=false", "'remote_stop': False"),
        ("alive_timeout=5", "'alive_timeout': 5.0"),
    ],
)
def test_settings(serve: Serve, context: Any, text: str, expected: str) -> None:
    """A setting is converted to its annotation, also that of a class to which it is passed on."""
    program = serve(OVEN, "--registry", "none", "--set", text)

    with OvenClient(context, program.line) as client:
        assert expected in client.made_with()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("instrument-0", "instrument")),
        (["--name", "scope"], ("scope", "instrument")),
        (["--type", "gauge"], ("gauge-0", "gauge")),
        (["--name", "left gauge", "--type", "gauge"], ("left gauge", "gauge")),
    ],
)
def test_registered(serve: Serve, registry: Any, arguments: list[str], expected: tuple[str, str]) -> None:
    """When the url is printed the device is in the registry, and after its end it is not."""
    name, type_ = expected
    program = serve(INSTRUMENT, "--registry", registry.url, *arguments)

    assert {name: (type_, program.line)} == registry.get_devices()
    program.send_signal(signal.SIGTERM)
    status, errors = program.end()
    assert (0, {}) == (status, registry.get_devices())
    assert f"INFO rpc_kit.cli.serve: registered as {name} at {registry.url}" in errors


def test_signal_before_it_is_served(serve: Serve, registry: Any) -> None:
    """A device that is told to end while it is registered is unregistered, and ends with status 0."""
    status, errors = serve("tests.test_cli_serve:ImpatientServer", "--registry", registry.url).end()

    assert (0, {}) == (status, registry.get_devices())
    assert "stopping on SIGTERM" in errors


def test_interrupted_constructor(serve: Serve) -> None:
    """Ctrl-C in a constructor ends the program as it does elsewhere, and leaves nothing behind."""
    status, errors = serve("tests.test_cli_serve:InterruptedServer", "--registry", "none").end()

    assert (130, "KeyboardInterrupt") == (status, errors.splitlines()[-1])


def test_registry_of_environment(serve: Serve, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a flag the registry is found as clients find it; one that does not answer is passed over."""
    monkeypatch.setenv("RPC_REGISTRY", f"{NOBODY},{registry.url}")
    serve(INSTRUMENT)

    assert ["instrument-0"] == list(registry.get_devices())


def test_annotation_that_nobody_needs(serve: Serve) -> None:
    """An annotation that cannot be resolved matters only to who sets that parameter."""
    program = serve("tests.test_cli_serve:UnresolvedServer", "--registry", "none")

    assert "tcp://127.0.0.1:" == program.line[:16]


def test_no_registry(serve: Serve, connect: Callable[..., Any]) -> None:
    """When no registry is known the device is served all the same, with a warning."""
    program = serve(INSTRUMENT)

    assert 3 == connect(program.line).add(1, 2)
    program.send_signal(signal.SIGTERM)
    status, errors = program.end()
    warnings = [line for line in errors.splitlines() if "WARNING" in line]
    assert (0, ["the device is not registered yet"]) == (status, [line.split(": ")[1] for line in warnings])


def test_registry_none(serve: Serve, registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants no registry gets none, and no warning."""
    monkeypatch.setenv("RPC_REGISTRY", registry.url)
    program = serve(INSTRUMENT, "--registry", "none")
    program.send_signal(signal.SIGTERM)
    status, errors = program.end()

    assert (0, {}, False) == (status, registry.get_devices(), "WARNING" in errors)


def test_metadata(serve: Serve, registry: Any, context: Any) -> None:
    """Metadata of the command line are texts, and stand in the registry."""
    serve(INSTRUMENT, "--registry", registry.url, "--metadata", "room=012", "--metadata", "owner=a=b")
    with RegistryClient(registry.url, context) as client:
        metadata = client.find("instrument-0").metadata

    assert {"room": "012", "owner": "a=b"} == {key: metadata[key] for key in ("room", "owner")}


@pytest.mark.parametrize(
    ("flags", "expected"), [([], ["scope"]), (["--overwrite"], ["scope"]), (["--no-overwrite"], ["scope", "scope-1"])]
)
def test_overwrite(serve: Serve, registry: Any, flags: list[str], expected: list[str]) -> None:
    """A device takes its name from who has it, unless told otherwise."""
    arguments = [INSTRUMENT, "--registry", registry.url, "--name", "scope"]
    serve(*arguments)
    second = serve(*arguments, *flags)

    assert expected == sorted(registry.get_devices())
    assert second.line == registry.get_devices()[expected[-1]][1]


def test_alive_timeout(serve: Serve, registry: Any) -> None:
    """The lease is the one that was asked for, also of a class whose constructor does not take it."""
    program = serve(
        "tests.test_cli_serve:SelfMadeServer", "--registry", registry.url, "--alive-timeout", "0.5", "--name", "short"
    )
    assert ["short"] == list(registry.get_devices())
    program.kill()

    wait_until(lambda: not registry.get_devices())


def test_max_missed(serve: Serve, registry: Any) -> None:
    """A device that has missed its registry so often ends by itself, and systemd starts it again."""
    program = serve(INSTRUMENT, "--registry", registry.url, "--max-missed", "1", "--alive-timeout", "0.3")
    registry.stop()

    status, errors = program.end()
    assert (1, True) == (status, f"as no registry has answered at {registry.url}" in errors)


def test_stdout_that_nobody_reads(registry: Any) -> None:
    """A device is served though nobody reads its url."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["-m", "rpc_kit", "serve", INSTRUMENT, "--registry", registry.url]
    with subprocess.Popen([sys.executable, *arguments], cwd=PROJECT, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        try:
            wait_until(registry.get_devices)
            wait_until(lambda: b"serving" in process.stderr.readline())
            process.terminate()
            errors = process.communicate(timeout=LIMIT)[1]
        finally:
            process.kill()

    assert (0, False) == (process.returncode, b"BrokenPipe" in errors)


def test_current_folder(configuration: Path) -> None:
    """A class is found in the current folder, though Python itself would not look there."""
    (configuration / "lab").mkdir()
    (configuration / "lab" / "workshop.py").write_text("")
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "rpc_kit", "serve", "workshop:Drill"],
        cwd=configuration / "lab",
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )

    assert (2, "rpc-kit: workshop has no class Drill\n") == (ran.returncode, ran.stderr)


def test_port_in_use(serve: Serve) -> None:
    """One line without a traceback, exit status 1."""
    url = serve(INSTRUMENT, "--registry", "none").line

    expected = f"rpc-kit: [Errno 98] cannot bind to {url}: Address already in use\n"
    assert (1, expected) == serve(INSTRUMENT, "--registry", "none", "--url", url).end()


@pytest.mark.parametrize("late", ["false", "true"])
def test_constructor_that_fails(serve: Serve, late: str) -> None:
    """The log has the traceback, the last line says what happened, and the program ends with status 1."""
    program = serve("tests.test_cli_serve:BrokenServer", "--registry", "none", "--set", f"late={late}")
    status, errors = program.end()

    expected = "rpc-kit: BrokenServer cannot be made: OSError: the cable is not plugged in"
    assert ("", 1, expected) == (program.line, status, errors.splitlines()[-1])
    assert 'raise OSError("the cable\\nis not plugged in")' in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "one of the arguments device --device --config is required (see rpc-kit serve --help)"),
        (["scope", "--device", "scope"], "argument --device: not allowed with argument device (see"),
        ([INSTRUMENT, "--regist", "none"], "unrecognized arguments: --regist none (see"),
        ([":"], "a class is given as package.module:ClassName, not ':'"),
        (["tests.devices:Instrument:Server"], "a class is given as package.module:ClassName"),
        (["../devices:X"], "a class is given as package.module:ClassName"),
        (["nosuch.devices:X"], "nosuch.devices cannot be imported: No module named 'nosuch'"),
        (["tests.devices:Nosuch"], "tests.devices has no class Nosuch"),
        (["tests.devices:Instrument"], "tests.devices:Instrument is no subclass of RPCServer"),
        (["tests.devices:LIMIT"], "tests.devices:LIMIT is no subclass of RPCServer"),
        (["rpc_kit:RPCServer"], "rpc_kit:RPCServer is no subclass of RPCServer"),
        (["tests.test_cli_serve:UnfinishedServer"], "UnfinishedServer is abstract: it lacks made_with"),
        (["tests.test_cli_serve:UnresolvedServer", "--set", "vendor=a"], "'vendor' cannot be resolved: name 'Vendor'"),
        (["tests.test_cli_serve:BrokenServer"], "BrokenServer cannot be made with these settings: missing a required"),
        ([INSTRUMENT, "--set", "a"], "argument --set: expected KEY=VALUE, not 'a' (see"),
        ([INSTRUMENT, "--set", "=a"], "argument --set: expected KEY=VALUE, not '=a' (see"),
        ([OVEN, "--set", "watts=many"], "setting 'watts': expected float, got str ('many')"),
        ([OVEN, "--set", "mode=boil"], "setting 'mode': expected tests.test_cli_serve.Mode, got str ('boil')"),
        ([OVEN, "--set", 'zones=[1, "b"]'], "setting 'zones': expected list[int] | None, got list"),
        (["tests.test_cli_serve:SelfMadeServer", "--set", "a=1"], "has no setting 'a'; its settings are alive_timeout"),
        ([INSTRUMENT, "--metadata", "a"], "argument --metadata: expected KEY=VALUE, not 'a'"),
        ([INSTRUMENT, "--url", "nowhere"], "'nowhere' is no url: expected tcp://host:port"),
        ([INSTRUMENT, "--registry", "tcp://*:5555"], "'tcp://*:5555' is no registry"),
        ([INSTRUMENT, "--registry", "tcp://a b"], "is no registry"),
        ([INSTRUMENT, "--max-missed", "0"], "`max_missed`: expected `int` >= 1"),
        ([INSTRUMENT, "--max-missed", "many"], "argument --max-missed: invalid int value: 'many'"),
        ([INSTRUMENT, "--alive-timeout", "0"], "`alive_timeout`: expected `float` > 0.0"),
        ([INSTRUMENT, "--alive-timeout", "nan"], "`alive_timeout`: expected `float` > 0.0"),
        ([INSTRUMENT, "--alive-timeout", "1e9"], "`alive_timeout`: expected `float` <= 604800.0"),
        ([INSTRUMENT, "--log-level", "loud"], "argument --log-level: a log level is one of debug"),
        ([INSTRUMENT, "--log", "loud"], "argument --log: a log filter is LOGGER=LEVEL"),
    ],
)
def test_wrong_arguments(serve: Serve, arguments: list[str], text: str) -> None:
    """What is wrong is said in one line, exit status 2."""
    status, errors = serve(*arguments).end()

    assert (2, text) == (status, text if text in errors else errors)
    assert ("rpc-kit: ", 1) == (errors[:9], len(errors.splitlines()))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nosuch", r"No module named 'nosuch' \(\S+/oven.py:2\)"),
        ("from tests.devices import Nosuch", r"cannot import name 'Nosuch' from .* \(\S+/oven.py:2\)"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(\S+/oven.py:2\)"),
        ("def", r"SyntaxError: invalid syntax \(oven.py, line 2\)"),
        ("raise SystemExit", r"SystemExit: SystemExit \(\S+/oven.py:2\)"),
    ],
)
def test_module_that_fails(serve: Serve, configuration: Path, source: str, expected: str) -> None:
    """A module that cannot be imported: the line says what failed, and where."""
    (configuration / "oven.py").write_text(f"# The second line fails.\n{source}\n")
    status, errors = serve("oven:OvenServer").end()

    assert 2 == status
    assert re.fullmatch(f"rpc-kit: oven cannot be imported: {expected}; by .*\n", errors), errors


def test_wrong_arguments_in_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the journal the line is an error."""
    reader, writer = os.pipe()
    found = os.fstat(writer)
    with open(reader) as output:
        with open(writer) as errors:
            ran = subprocess.run(
                [sys.executable, "-m", "rpc_kit", "serve", "a:b:c"],
                cwd=PROJECT,
                env={**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
                stderr=errors.fileno(),
                timeout=LIMIT,
            )
        assert (2, "<3>rpc-kit: a class is given") == (ran.returncode, output.read()[:28])


@pytest.mark.parametrize(
    ("cls", "expected"),
    [
        (InstrumentServer, "instrument"),
        (WithoutServerInItsName, "instrument"),
        (OvenServer, "oven"),
        (SelfMadeServer, "selfmade"),
    ],
)
def test_type_of(cls: type[RPCServer], expected: str) -> None:
    """The type is that of the interface, or else of the class."""
    assert expected == type_of(cls)


def test_signals(serve: Serve, context: Any) -> None:
    """What is served is the whole device, signals included."""
    program = serve(INSTRUMENT, "--registry", "none")
    ticks: list[int] = []
    with InstrumentClient(context, program.line) as client:
        client.ticked.connect(ticks.append)
        client.tick(1, 3)
        wait_until(lambda: len(ticks) == 3)

    assert [1, 2, 3] == ticks
