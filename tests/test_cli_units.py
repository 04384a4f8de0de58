"""``rpc-kit units``: unit files that systemd takes, and that are not overwritten when somebody has changed them."""

import configparser
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rpc_kit.cli import units
from rpc_kit.cli.main import main
from rpc_kit.endpoint import STOP_TIME
from tests.devices import LIMIT
from tests.helpers import PROJECT, Program
from tests.real.parts import path_of, require

NAMES = ["rpc-device@.service", "rpc-registry.service"]
VARIANTS = pytest.mark.parametrize("variant", [[], ["--user"]], ids=["system", "user"])
NOBODY = 65534


def verify(folder: Path, variant: list[str]) -> str:
    """What systemd finds wrong with the units in a folder."""
    require("systemd-analyze")
    ran = subprocess.run(
        [path_of("systemd-analyze"), *variant, "verify", *(str(folder / name) for name in NAMES)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    # Its status is 0 also when it does not know a key.
    return f"{ran.returncode} {ran.stderr}".removeprefix("0 ")


@VARIANTS
def test_systemd_takes_them(tmp_path: Path, variant: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """systemd finds nothing wrong with the units of the system and of a user."""
    assert 0 == main(["units", "install", *variant, "--directory", str(tmp_path)])

    assert "" == verify(tmp_path, variant)


def test_systemd_would_see_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The test above would fail for a key that systemd does not know."""
    main(["units", "install", "--directory", str(tmp_path)])
    path = tmp_path / NAMES[0]
    path.write_text(path.read_text().replace("RestartSec", "RestartSecs"))

    assert "Unknown key 'RestartSecs'" in verify(tmp_path, [])


@pytest.mark.parametrize("name", ["my lab", "100%h", "$HOME", "@a:b", "~ä#;"])
def test_python_in_strange_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Whatever the path of the interpreter is, systemd finds it."""
    (tmp_path / name).mkdir()
    python = tmp_path / name / "python"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    main(["units", "install", "--directory", str(tmp_path)])
    assert "" == verify(tmp_path, [])
    python.unlink()

    assert "is not executable: No such file or directory" in verify(tmp_path, [])


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b", "a\nb"])
def test_python_that_systemd_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A path that systemd would refuse is refused before anything is written."""
    monkeypatch.setattr(sys, "executable", f"/opt/{name}/python")

    assert (2, []) == (main(["units", "install", "--directory", str(tmp_path)]), list(tmp_path.iterdir()))
    assert "quotes, backslashes or control characters" in capsys.readouterr().err


@VARIANTS
def test_install(tmp_path: Path, spawn: Callable[..., Program], variant: list[str]) -> None:
    """Both units are written, readable for all, with the absolute path of this interpreter; the next steps are said."""
    program = spawn("rpc_kit", "units", "install", *variant, "--directory", str(tmp_path / "new" / "folder"))
    said = [program.line, *program.output.read().splitlines()]
    assert (0, "") == program.end()
    found = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}

    assert NAMES == sorted(found)
    assert {0o644} == {path.stat().st_mode & 0o777 for path in found.values()}
    commands = {name: parsed(path)["Service"]["ExecStart"] for name, path in found.items()}
    expected = [f"{sys.executable} -m rpc_kit serve %i", f"{sys.executable} -m registry serve"]
    assert expected == [commands[name] for name in NAMES]
    assert f"wrote {found[NAMES[0]]}" == said[0]
    systemctl = " ".join(["systemctl", *variant])
    assert f"next: {systemctl} daemon-reload" in said
    assert f"{systemctl} enable --now rpc-device@cam0" == said[-1].strip()


def parsed(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(path)
    return unit


def seconds(text: str) -> float:
    return float(text.removesuffix("min")) * 60 if text.endswith("min") else float(text)


@VARIANTS
@pytest.mark.parametrize("name", NAMES)
def test_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, variant: list[str]) -> None:
    """A stop has more time than a method.

    A loop of failures of a device ends however long each takes, and one an hour does not; a registry is tried for ever.
    """
    main(["units", "install", *variant, "--directory", str(tmp_path)])
    unit = parsed(tmp_path / name)
    service = unit["Service"]
    burst, interval = int(unit["Unit"].get("StartLimitBurst", 0)), seconds(unit["Unit"]["StartLimitIntervalSec"])
    start, stop, pause = (seconds(service[key]) for key in ("TimeoutStartSec", "TimeoutStopSec", "RestartSec"))

    assert STOP_TIME < stop
    if name == "rpc-registry.service":
        assert (0, 0) == (burst, interval)
    else:
        assert burst * (start + stop + pause) < interval < burst * 3600
    assert ("notify", "main", "on-failure") == tuple(service[key] for key in ("Type", "NotifyAccess", "Restart"))
    assert ("30", "65536") == (service["WatchdogSec"], service["LimitNOFILE"])


@pytest.mark.parametrize("name", NAMES)
def test_variants_differ(name: str) -> None:
    """What needs the rights of the system is only in its variant; no mark of the template is left in either."""
    system, user = (units.unit_text(name, for_user).splitlines() for for_user in (False, True))

    assert "DynamicUser=yes" in system and "WantedBy=multi-user.target" in system
    assert "NoNewPrivileges=yes" in user and "WantedBy=default.target" in user
    keys = {line.partition("=")[0] for line in user if "=" in line and not line.startswith("#")}
    assert set() == {key for key in keys if key.startswith(("Protect", "Private", "Dynamic", "Supplement"))}
    assert [] == [line for line in [*system, *user] if any(mark in line for mark in ("[system]", "[user]", "{", "}"))]


def test_show(spawn: Callable[..., Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown is what would be installed, each below its path."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    program = spawn("rpc_kit", "units", "show", "--user")
    shown = f"{program.line}\n{program.output.read()}"
    spawn("rpc_kit", "units", "install", "--user").end()
    folder = tmp_path / "systemd" / "user"

    assert NAMES == sorted(path.name for path in folder.iterdir())
    assert "".join(f"# {folder / name}\n{(folder / name).read_text()}\n" for name in NAMES) == shown


def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """``rpc-kit units show | head -1`` ends without a word."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer) as output:
        ran = subprocess.run(
            [sys.executable, "-m", "rpc_kit", "units", "show"],
            cwd=PROJECT,
            stdout=output.fileno(),
            stderr=subprocess.PIPE,
            timeout=LIMIT,
        )

    assert (0, b"") == (ran.returncode, ran.stderr)


def test_install_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was written by us, also by another version, is written anew."""
    monkeypatch.setattr(sys, "executable", "/usr/bin/old")
    main(["units", "install", "--directory", str(tmp_path)])
    monkeypatch.undo()

    assert 0 == main(["units", "install", "--directory", str(tmp_path)])
    assert [units.unit_text(name, False) for name in NAMES] == [(tmp_path / name).read_text() for name in NAMES]


CHANGES: dict[str, Callable[[str], bytes]] = {
    "key": lambda text: text.replace("WatchdogSec=30", "WatchdogSec=60").encode(),
    "line": lambda text: f"{text}\n".encode(),
    "mark": lambda text: text.partition("\n")[2].encode(),
    "empty": lambda text: b"",
    "no text": lambda text: b"\xff",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_by_hand(
    tmp_path: Path, spawn: Callable[..., Program], change: Callable[[str], bytes]
) -> None:
    """A file that was changed is not overwritten without --force, and none is written then."""
    path = tmp_path / NAMES[1]
    changed = change(units.unit_text(NAMES[1], False))
    path.write_bytes(changed)

    expected = f"rpc-kit: {path} was changed by hand; it is overwritten with --force only\n"
    assert (1, expected) == spawn("rpc_kit", "units", "install", "--directory", str(tmp_path)).end()
    assert ([path], changed) == (list(tmp_path.iterdir()), path.read_bytes())
    assert (0, "") == spawn("rpc_kit", "units", "install", "--force", "--directory", str(tmp_path)).end()
    assert units.unit_text(NAMES[1], False) == path.read_text()


def test_masked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit that was masked stays masked."""
    (tmp_path / NAMES[0]).symlink_to(os.devnull)

    assert 1 == main(["units", "install", "--directory", str(tmp_path)])
    assert os.devnull == os.readlink(tmp_path / NAMES[0])


def test_crash_while_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file is there as a whole or as it was, and nothing else is left."""
    main(["units", "install", "--directory", str(tmp_path)])
    before = {path: path.read_text() for path in tmp_path.iterdir()}

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    capsys.readouterr()
    assert 1 == main(["units", "install", "--directory", str(tmp_path)])
    expected = f"rpc-kit: cannot write {tmp_path / NAMES[0]}: No space left on device\n"
    assert (expected, "") == (capsys.readouterr().err, capsys.readouterr().out)
    assert before == {path: path.read_text() for path in tmp_path.iterdir()}


@pytest.fixture
def without_rights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What others have is closed to this process, also when it is root's."""
    own = os.geteuid()
    # The project itself may lie where nobody else may read.
    texts = {name: units.unit_text(name, for_user=False) for name in NAMES}
    monkeypatch.setattr(units, "unit_text", lambda name, for_user: texts[name])
    if own == 0:
        os.seteuid(NOBODY)
    yield
    os.seteuid(own)


def test_permission_denied(without_rights: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says that it needs root, or --user."""
    assert 1 == main(["units", "install", "--directory", "/usr/lib/rpc-kit-nobody-may"])

    assert (
        "rpc-kit: cannot write /usr/lib/rpc-kit-nobody-may/rpc-device@.service: Permission denied; "
        "run it as root, or with --user for services of your own\n"
    ) == capsys.readouterr().err


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no folder is named."""
    (tmp_path / "file").touch()
    assert 1 == main(["units", "install", "--directory", str(tmp_path / "file")])

    assert f"rpc-kit: cannot read {tmp_path / 'file' / NAMES[0]}: Not a directory\n" == capsys.readouterr().err


def test_home_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A user without a home is told what to set."""
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)

    assert 2 == main(["units", "install", "--user"])
    assert "rpc-kit: this user has no home: set XDG_CONFIG_HOME\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "mode", "expected"),
    [("/tmp", 0o755, "it sees nothing of /tmp"), ("/dev/shm", 0o700, "is closed to others"), ("/dev/shm", 0o755, "")],
)
def test_python_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str, mode: int, expected: str
) -> None:
    """When services of the system cannot run this Python, that is said; those of the user can."""
    folder = Path(place, f"rpc-kit-test-{os.getpid()}")
    folder.mkdir()
    folder.chmod(mode)
    try:
        monkeypatch.setattr(sys, "executable", str(folder / "python"))
        assert 0 == main(["units", "install", "--directory", str(folder)])
        said = capsys.readouterr().out
        assert (bool(expected), True) == ("but a service cannot run" in said, expected in said)
        main(["units", "install", "--user", "--force", "--directory", str(folder)])
        assert "cannot run" not in capsys.readouterr().out
    finally:
        shutil.rmtree(folder)
